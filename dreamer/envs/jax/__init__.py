"""Environments written in JAX: pure functions that compile into the training loop."""
