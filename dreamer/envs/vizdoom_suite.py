"""ViZDoom: scenarios of Doom from its screen; TakeCover is a task of the first World Models paper.

Source: Kempka et al. 2016, "ViZDoom"; Ha and Schmidhuber 2018, "World Models". One decision per
frame unless `repeat` is larger. Running out of time is a truncation.
"""

import os
from typing import Any

import gymnasium
from vizdoom import gymnasium_wrapper

from dreamer.config.env import VizdoomEnv
from dreamer.envs.wrappers import finish

assert gymnasium_wrapper  # its import registers the ids
OTHERS = ("Audio", "Notifications", "Deathmatch")  # sound, text, and turns without bounds
IDS = {
    name.removeprefix("Vizdoom").removesuffix("-v1"): name
    for name in gymnasium.registry
    if name.startswith("Vizdoom") and name.endswith("-v1") and not any(x in name for x in OTHERS)
}
TASKS = tuple(IDS)


def make_env(config: VizdoomEnv, render: bool) -> gymnasium.Env:
    """Makes one environment."""
    env = gymnasium.make(IDS[config.task], render_mode="rgb_array", disable_env_checker=True)
    game: Any = env.unwrapped
    game.game.set_doom_config_path(os.devnull)  # else it writes one into the working folder
    return finish(LastScreen(env), config)


class LastScreen(gymnasium.Wrapper):
    """Separates a timeout from death, and keeps the last screen at the end of an episode.

    There the game has no state and draws nothing, but a truncation needs the value of the screen.
    """

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self._observation: Any = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        self._observation, info = self.env.reset(seed=seed, options=options)
        return self._observation, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        if not (terminated or truncated):
            self._observation = observation
        # At a timeout, the game terminates as well.
        return self._observation, float(reward), terminated and not truncated, truncated, info

    def render(self) -> Any:
        return self._observation["screen"]
