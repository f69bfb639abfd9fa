"""The agent as a library: what programs and notebooks use; `dreamer` itself names all of it."""
