"""Pure mathematics on arrays: no parameters, no configuration, no flax."""
