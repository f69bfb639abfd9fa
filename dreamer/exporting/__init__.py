"""The policy as a file that runs without this package."""
