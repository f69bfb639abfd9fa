"""Backend `vector` of the suite `atari`: ale_py's AtariVectorEnv, whose threads step the games.

Its images differ from those of `atari.Game`:
- the screen is turned to gray by ale_py's palette, pooled, and then resized by area (OpenCV);
- where an episode ends inside a step, the frame that ends it is never shown;
- with `lives=discount` a step that loses a life plays all its frames.

Legend: N environments.
"""

import os
from collections.abc import Mapping
from typing import Any

import dm_env
import numpy as np
from ale_py import AtariVectorEnv
from dm_env import specs

from dreamer.config.env import WORKERS, AtariEnv
from dreamer.config.section import INT32
from dreamer.envs.base import (
    LAST,
    Actions,
    BatchedEnv,
    episode_seed,
    first_step,
    saved_episodes,
    saved_state,
    time_step,
)
from dreamer.envs.episodes import digest_of
from dreamer.errors import UserError

MAX_FRAMES = 108_000  # raw frames of an episode without a limit: 30 minutes of play
POOLED = 2  # most frames that ale_py pools


def max_frames(config: AtariEnv) -> int:
    """Raw frames of an episode until truncation."""
    return min(config.time_limit * config.repeat, INT32) or MAX_FRAMES


class AtariVector(BatchedEnv):
    """N copies of one game. It draws no frames besides its observations.

    Args:
      config: Of the suite.
      num_envs: N.
      seed: Of the whole batch; the seeds of episodes derive from it.

    Raises:
      UserError: ale_py does not support an option.
    """

    def __init__(self, config: AtariEnv, num_envs: int, seed: int) -> None:
        _refuse(config)
        self._config, self._seed = config, seed
        height, width = config.image_size
        self._vector = AtariVectorEnv(
            config.task,
            num_envs,
            num_threads=1 if config.workers == "serial" else min(num_envs, os.cpu_count() or 1),
            max_num_frames_per_episode=max_frames(config),
            repeat_action_probability=config.sticky,
            full_action_space=config.actions == "all",
            img_height=height,
            img_width=width,
            grayscale=config.gray,
            stack_num=1,
            frameskip=config.repeat,
            maxpool=config.pooling > 1,
            noop_max=config.noops + 1,  # an exclusive bound
            episodic_life=config.lives == "reset",
            reward_clipping=config.clip_reward,
            use_fire_reset=False,
        )
        shape = (height, width, 1 if config.gray else 3)
        image = specs.BoundedArray(shape, np.uint8, 0, 255, "image")
        number = len(self._vector.ale.get_action_set())
        action = specs.DiscreteArray(number, np.int32, "action")
        super().__init__(num_envs, {"image": image}, {"action": action})
        self._history: list[list[int]] = [[] for _ in range(num_envs)]  # actions of the episodes
        self._episode = np.full(num_envs, -1)
        self._lives = np.zeros(num_envs, np.int32)

    def reset(self) -> dm_env.TimeStep:
        image = self._begin(np.ones(self.num_envs, bool))
        self._last = first_step(self.num_envs, {"image": image})
        return self._last

    def step(self, action: Actions) -> dm_env.TimeStep:
        assert self._last is not None, "call reset first"
        first = self._last.step_type == LAST
        image, reward, over, terminal = self._play(np.asarray(action["action"], np.int32))
        if first.any():
            # ale_py has already started these episodes, but with a seed of its own.
            image = np.where(first[:, None, None, None], self._begin(first), image)
        self._last = time_step(first, over, reward, terminal, {"image": image})
        return self._last

    def get_state(self) -> dict[str, Any]:
        assert self._last is not None, "call reset first"
        # In the form of the other backend, which then starts new episodes.
        episodes = [
            {
                "episode": int(self._episode[i]),
                "actions": list(actions),
                "ended": bool(self._last.step_type[i] == LAST),
                "digest": digest_of(self._last.observation["image"][i]),
            }
            for i, actions in enumerate(self._history)
        ]
        return saved_state(episodes, self._last)

    def set_state(self, state: Mapping[str, Any]) -> tuple[np.ndarray, dm_env.TimeStep]:
        episodes = saved_episodes(state, self.num_envs)
        image, over = self._repeat(episodes)
        restored = over == [one["ended"] for one in episodes]
        restored &= [digest_of(x) == one["digest"] for x, one in zip(image, episodes, strict=True)]
        if not restored.all():
            image = np.where(restored[:, None, None, None], image, self._begin(~restored))
        fresh = first_step(self.num_envs, {"image": image})
        rows = {
            name: np.where(restored, state[name], value).astype(value.dtype)
            for name, value in fresh._asdict().items()
            if name != "observation"
        }
        self._last = fresh._replace(**rows)
        return restored, self._last

    def close(self) -> None:
        self._vector.close()

    def _begin(self, where: np.ndarray) -> np.ndarray:
        """Starts the next episodes of some environments.

        Returns:
          Images uint8 [N, H, W, C], valid for those environments only.
        """
        self._episode[where] += 1
        index = where.nonzero()[0].tolist()
        first = self._config.first
        seeds = np.array(
            [episode_seed(self._seed, first + i, int(self._episode[i])) for i in index]
        )
        options = None if where.all() else {"reset_mask": where}
        pixels, info = self._vector.reset(seed=seeds, options=options)
        self._lives = np.where(where, info["lives"], self._lives)
        for i in index:
            self._history[i] = []
        return self._image(pixels)

    def _play(self, chosen: np.ndarray) -> tuple[np.ndarray, ...]:
        """One step of all: image [N, H, W, C], reward, and whether over and terminal, bool [N]."""
        for actions, action in zip(self._history, chosen.tolist(), strict=True):
            actions.append(action)
        pixels, reward, terminated, truncated, info = self._vector.step(chosen)
        lost = (info["lives"] > 0) & (info["lives"] < self._lives)
        self._lives = info["lives"].copy()
        terminal = terminated | (lost & (self._config.lives == "discount"))
        return self._image(pixels), reward, terminated | truncated, terminal

    def _repeat(self, episodes: list[Any]) -> tuple[np.ndarray, np.ndarray]:
        """Repeats saved episodes; the longest starts first, so that all arrive together.

        Returns:
          image uint8 [N, H, W, C], and whether the episodes are over, bool [N].
        """
        image = self.reset().observation["image"]  # ale_py resets some only after resetting all
        over = np.zeros(self.num_envs, bool)
        self._episode[:] = [one["episode"] - 1 for one in episodes]
        histories = [one["actions"] for one in episodes]
        for left in range(max(map(len, histories)), -1, -1):  # steps left to repeat
            begins = np.array([len(history) == left for history in histories])
            if begins.any():
                image = np.where(begins[:, None, None, None], self._begin(begins), image)
                over &= ~begins
            if left:
                chosen = [history[-left] if len(history) >= left else 0 for history in histories]
                image, _, over, _ = self._play(np.array(chosen, np.int32))
        return image, over

    def _image(self, pixels: np.ndarray) -> np.ndarray:
        """Copies ale_py's stacks of one, [N, 1, H, W] or [N, 1, H, W, 3], to [N, H, W, C]."""
        return np.array(pixels[:, 0, ..., None] if self._config.gray else pixels[:, 0])


def _refuse(config: AtariEnv) -> None:
    """Refuses options that ale_py's vector environment lacks."""
    most = min(POOLED, config.repeat)
    if config.pooling > most:
        raise UserError(
            f"env.pooling={config.pooling}: env.backend=vector pools at most {most} of the "
            f"{config.repeat} raw frames of a step; set env.pooling={most} or env.backend=emulator"
        )
    for key in WORKERS:
        value = getattr(config, key)
        if value not in (AtariEnv.model_fields[key].default, "serial"):
            raise UserError(
                f"env.{key}={value}: env.backend=vector steps games in threads of one process; "
                f"leave out env.{key}, or set env.backend=emulator"
            )
