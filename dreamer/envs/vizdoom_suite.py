"""ViZDoom: scenarios of Doom from its screen; TakeCover is a task of the first World Models paper.

Source: Kempka et al. 2016, "ViZDoom"; Ha and Schmidhuber 2018, "World Models". One decision per
frame unless `repeat` says more. Running out of time is a truncation.
"""

import functools
import os
from typing import Any

import gymnasium
from vizdoom import gymnasium_wrapper

from dreamer.config.env import VizdoomEnv
from dreamer.envs.base import BatchedEnv
from dreamer.envs.single import batch, check_task, finish

assert gymnasium_wrapper  # its import registers the ids
OTHERS = ("Audio", "Notifications", "Deathmatch")  # sound, text, and turns without bounds
IDS = {
    name.removeprefix("Vizdoom").removesuffix("-v1"): name
    for name in gymnasium.registry
    if name.startswith("Vizdoom") and name.endswith("-v1") and not any(x in name for x in OTHERS)
}
TASKS = tuple(IDS)


def make(config: VizdoomEnv, num_envs: int, seed: int, render: bool = False) -> BatchedEnv:
    """Makes the environments; see `registry.make`.

    Raises:
      UserError: the task is unknown.
    """
    check_task(config, "vizdoom", TASKS)
    return batch(functools.partial(_make_one, config), config, num_envs, seed, render)


def _make_one(config: VizdoomEnv) -> gymnasium.Env:
    env = gymnasium.make(IDS[config.task], render_mode="rgb_array", disable_env_checker=True)
    game: Any = env.unwrapped
    game.game.set_doom_config_path(os.devnull)  # else it writes one into the working folder
    return finish(Lasting(env), config)


class Lasting(gymnasium.Wrapper):
    """Tells the end of time from the end of the player, and keeps the last screen after the end,
    where the game has no state and shows nothing: a value is predicted from it at a truncation."""

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self._seen: Any = None
        self._frame: Any = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        self._seen, info = self.env.reset(seed=seed, options=options)
        return self._seen, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        found, reward, terminated, truncated, info = self.env.step(action)
        if not (terminated or truncated):
            self._seen = found
        # At the end of time, the game calls itself finished as well.
        return self._seen, float(reward), terminated and not truncated, truncated, info

    def render(self) -> Any:
        return self._seen["screen"]
