"""Pendulum-v1 with five torques: a discrete task with dense rewards.

`env.task=experiments.discrete_pendulum:DiscretePendulum-v0`, from the root of the project.
"""

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import TransformAction

TORQUES = np.linspace(-2, 2, 5, dtype=np.float32)  # newton metres, the range of Pendulum-v1


def make(render_mode: str | None = None) -> gymnasium.Env:
    env = gymnasium.make("Pendulum-v1", render_mode=render_mode)
    return TransformAction(env, lambda choice: TORQUES[[choice]], spaces.Discrete(len(TORQUES)))


gymnasium.register("DiscretePendulum-v0", entry_point=make)
