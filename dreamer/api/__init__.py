"""The library for programs and notebooks; `dreamer` exports all of it."""
