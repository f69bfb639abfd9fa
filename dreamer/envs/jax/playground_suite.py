"""MuJoCo Playground: the control suite, walking robots and hands in MuJoCo's physics on JAX.

Source: Zakka et al. 2025, "MuJoCo Playground". Running out of steps is a truncation. Walking robots
and hands take their models from a repository that the package fetches with git on first use.
"""

from dreamer.config.env import PlaygroundEnv
from dreamer.envs.jax.physics import Robot
from dreamer.envs.jax.simulators import traced

with traced():  # its imports warn
    from mujoco_playground import registry

TASKS = registry.ALL_ENVS
SLOW_RESET = True


def make_simulator(config: PlaygroundEnv) -> Robot:
    """Makes a robot; the package's default implementation, Warp, runs on NVIDIA GPUs alone."""
    env = registry.load(config.task, config_overrides={"impl": "jax"})
    return Robot(env, int(registry.get_default_config(config.task).episode_length))
