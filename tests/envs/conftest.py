"""Registers the probe environments for the whole folder."""

import gymnasium

for name in ("Counter", "Drawn", "Missing", "Early", "Unseeded", "Bad"):
    gymnasium.register(f"dreamer/{name}-v0", entry_point=f"tests.envs.probe_envs:{name}")
gymnasium.register(
    "dreamer/Short-v0", entry_point="tests.envs.probe_envs:Counter", max_episode_steps=4, kwargs={}
)
