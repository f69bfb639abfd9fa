"""MiniGrid and BabyAI: grid worlds with a mission in words.

Source: Chevalier-Boisvert et al. 2023, "Minigrid & Miniworld". Cells are classes (object, colour,
state), or an image; a mission that changes from episode to episode is a row of word numbers, padded
with 0. Running out of steps is a truncation.
"""

from typing import Any

import gymnasium
import minigrid
import numpy as np
from gymnasium import spaces
from minigrid import wrappers
from minigrid.core.constants import COLOR_TO_IDX, OBJECT_TO_IDX
from minigrid.envs.babyai.core import roomgrid_level

from dreamer.config.env import MinigridEnv
from dreamer.envs.wrappers import finish
from dreamer.errors import UserError

assert minigrid  # its import registers the ids
vars(roomgrid_level)["print"] = lambda *words: None  # it prints every level that it discards

LACKING = "MiniGrid-WFC-"  # their patterns are not in the package
_NAMES = [
    name
    for name in gymnasium.registry
    if name.startswith(("MiniGrid-", "BabyAI-")) and not name.startswith(LACKING)
]
TASKS = tuple({name.rpartition("-v")[0]: name for name in sorted(_NAMES)}.values())  # the newest
LAYERS = {"object": len(OBJECT_TO_IDX), "colour": len(COLOR_TO_IDX), "state": 4}
VOCABULARY = """
, a after and at avoid ball behind blue box door end fetch find from front get go goal green grey
hallway in key lava left matching must near next object of on open opening pick purple put reach red
right room rooms square the then to traverse unlock up use yellow you your
"""
WORDS = VOCABULARY.split()
LENGTHS = {"MiniGrid": 24, "BabyAI": 72}  # words of the longest mission


def make_env(config: MinigridEnv, render: bool) -> gymnasium.Env:
    """Makes one environment."""
    mode = "rgb_array" if render else None
    env = gymnasium.make(config.task, render_mode=mode, disable_env_checker=True)
    grid: Any = env.unwrapped
    first_person = config.view.endswith("first_person")
    if config.view.startswith("rgb"):
        cells = grid.agent_view_size if first_person else max(grid.width, grid.height)
        view = wrappers.RGBImgPartialObsWrapper if first_person else wrappers.RGBImgObsWrapper
        env = view(env, tile_size=max(1, max(config.image_size) // cells))
    elif not first_person:
        env = wrappers.FullyObsWrapper(env)
    return finish(Readable(env, config.view.startswith("symbolic")), config)


class Readable(gymnasium.ObservationWrapper):
    """Cells as classes [width, height] by layer, or the image; the mission as word numbers.

    Raises:
      UserError: Later, a mission has an unknown word, or too many.
    """

    def __init__(self, env: gymnasium.Env, symbolic: bool) -> None:
        super().__init__(env)
        before: Any = env.observation_space
        package = str(env.spec.id).split("-")[0] if env.spec else ""
        varies = package == "BabyAI" or before["mission"].ordered_placeholders is not None
        self._symbolic, self._length = symbolic, LENGTHS[package] if varies else 0
        after: dict[str, gymnasium.Space] = {"direction": before["direction"]}
        if symbolic:
            cells = before["image"].shape[:2]
            for name, classes in LAYERS.items():
                after[name] = spaces.MultiDiscrete(np.full(cells, classes))
        else:
            after["image"] = before["image"]
        if self._length:
            after["mission"] = spaces.MultiDiscrete(np.full(self._length, len(WORDS) + 1))
        self.observation_space = spaces.Dict(after)

    def observation(self, observation: Any) -> dict[str, Any]:
        encoded: dict[str, Any] = {"direction": observation["direction"]}
        if self._symbolic:
            layers = np.moveaxis(observation["image"], -1, 0).astype(np.int64)
            encoded.update(zip(LAYERS, layers, strict=True))
        else:
            encoded["image"] = observation["image"]
        if self._length:
            encoded["mission"] = read(observation["mission"], self._length)
        return encoded


def read(mission: str, length: int) -> np.ndarray:
    """Returns the numbers of a mission's words, from 1 on: int64 [length], padded with 0."""
    words = mission.lower().replace(",", " , ").split()
    if len(words) > length or not set(words) <= set(WORDS):
        raise UserError(
            f"the mission {mission!r} cannot be read; allowed are at most {length} words of {WORDS}"
        )
    numbers = [WORDS.index(word) + 1 for word in words]
    return np.array(numbers + [0] * (length - len(numbers)), np.int64)
