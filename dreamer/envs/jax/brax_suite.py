"""Brax: robots in rigid body physics written in JAX.

Source: Freeman et al. 2021, "Brax - A Differentiable Physics Engine for Large Scale Rigid Body
Simulation". Episodes of 1000 steps end by truncation, as in Brax's own training.
"""

from dreamer.config.env import BraxEnv
from dreamer.envs.jax.physics import Robot
from dreamer.envs.jax.simulators import traced

with traced():  # its imports warn
    from brax import envs

TASKS = (
    *("ant", "halfcheetah", "hopper", "humanoid", "humanoidstandup", "inverted_pendulum"),
    *("inverted_double_pendulum", "pusher", "reacher", "swimmer", "walker2d"),
)
SLOW_RESET = True


def make_simulator(config: BraxEnv) -> Robot:
    """Makes a robot."""
    return Robot(envs.get_environment(config.task, backend=config.physics), limit=1000)
