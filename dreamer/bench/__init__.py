"""`python -m dreamer.bench`: how fast the parts of an agent are, alone and together."""
