"""Neural networks: flax.linen modules that each describe one step, without randomness."""
