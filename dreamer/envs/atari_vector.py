"""Backend `vector` of the suite `atari`: ale_py's AtariVectorEnv, whose threads step the games.

Its images are not those of `atari.Game`:
- the screen is turned to gray by ale_py's palette, pooled, and then resized by area (OpenCV);
- where an episode ends inside a step, the frame that ends it is never shown;
- with `lives=discount` a step that loses a life plays all its frames.

Legend: N environments.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import dm_env
import numpy as np
from ale_py import AtariVectorEnv
from dm_env import specs

from dreamer.config.env import WORKERS, AtariEnv
from dreamer.envs.base import FIRST, LAST, MID, Actions, Restart, Specs, episode_seed, short
from dreamer.envs.episodes import digest_of
from dreamer.errors import UserError

POOLED = 2  # most frames that ale_py pools


class AtariVector:
    """N games of one name as a `BatchedEnv`. It draws no frames besides its observations.

    Args:
      config: of the suite.
      max_frames: raw frames of an episode until truncation.
      num_envs: N.
      seed: of the whole batch; the seeds of episodes derive from it.

    Raises:
      UserError: ale_py cannot do what the configuration asks.
    """

    restarts: Sequence[Restart] = ()  # nothing is restarted

    __repr__ = short

    def __init__(self, config: AtariEnv, max_frames: int, num_envs: int, seed: int) -> None:
        _refuse(config)
        self.num_envs = num_envs
        self._config, self._seed = config, seed
        height, width = config.image_size
        self._vector = AtariVectorEnv(
            config.task,
            num_envs,
            num_threads=1 if config.workers == "serial" else min(num_envs, os.cpu_count() or 1),
            max_num_frames_per_episode=max_frames,
            repeat_action_probability=config.sticky,
            full_action_space=config.actions == "all",
            img_height=height,
            img_width=width,
            grayscale=config.gray,
            stack_num=1,
            frameskip=config.repeat,
            maxpool=config.pooling > 1,
            noop_max=config.noops + 1,  # which it never reaches
            episodic_life=config.lives == "reset",
            reward_clipping=config.clip_reward,
            use_fire_reset=False,
        )
        self._actions: list[list[int]] = [[] for _ in range(num_envs)]  # of the episodes
        self._episode = np.full(num_envs, -1)
        self._lives = np.zeros(num_envs, np.int32)
        self._last: dm_env.TimeStep | None = None

    def observation_spec(self) -> Specs:
        shape = (*self._config.image_size, 1 if self._config.gray else 3)
        return {"image": specs.BoundedArray(shape, np.uint8, 0, 255, "image")}

    def action_spec(self) -> Specs:
        number = len(self._vector.ale.get_action_set())
        return {"action": specs.DiscreteArray(number, np.int32, "action")}

    def reset(self) -> dm_env.TimeStep:
        everywhere = np.ones(self.num_envs, bool)
        self._last = self._fresh(self._begin(everywhere))
        return self._last

    def step(self, action: Actions) -> dm_env.TimeStep:
        assert self._last is not None, "call reset first"
        first = self._last.step_type == LAST
        image, reward, over, terminal = self._play(np.asarray(action["action"], np.int32))
        if first.any():
            # ale_py has already begun these episodes, but with a seed of its own.
            image = np.where(first[:, None, None, None], self._begin(first), image)
        self._last = dm_env.TimeStep(
            np.where(first, FIRST, np.where(over, LAST, MID)).astype(np.int32),
            np.where(first, 0, reward).astype(np.float32),
            np.where(~first & terminal, 0, 1).astype(np.float32),
            {"image": image},
        )
        return self._last

    def render(self) -> np.ndarray | None:
        return None

    def get_state(self) -> dict[str, Any]:
        assert self._last is not None, "call reset first"
        parts = {  # as those of the other backend, which then begins new episodes
            "episode": self._episode.tolist(),
            "actions": [list(actions) for actions in self._actions],
            "ended": (self._last.step_type == LAST).tolist(),
            "digest": [digest_of(image) for image in self._last.observation["image"]],
        }
        return {
            "episodes": [
                dict(zip(parts, values, strict=True))
                for values in zip(*parts.values(), strict=True)
            ],
            "step_type": self._last.step_type.tolist(),
            "reward": self._last.reward.tolist(),
            "discount": self._last.discount.tolist(),
        }

    def set_state(self, state: Mapping[str, Any]) -> tuple[np.ndarray, dm_env.TimeStep]:
        episodes = state["episodes"]
        if len(episodes) != self.num_envs:
            raise ValueError(f"state of {len(episodes)} environments given to {self.num_envs}")
        image, over = self._repeat(episodes)
        restored = over == [one["ended"] for one in episodes]
        restored &= [digest_of(x) == one["digest"] for x, one in zip(image, episodes, strict=True)]
        if not restored.all():
            image = np.where(restored[:, None, None, None], image, self._begin(~restored))
        fresh = self._fresh(image)
        self._last = dm_env.TimeStep(
            np.where(restored, state["step_type"], fresh.step_type).astype(np.int32),
            np.where(restored, state["reward"], fresh.reward).astype(np.float32),
            np.where(restored, state["discount"], fresh.discount).astype(np.float32),
            fresh.observation,
        )
        return restored, self._last

    def close(self) -> None:
        self._vector.close()

    def _begin(self, where: np.ndarray) -> np.ndarray:
        """Begins the next episodes of some environments; returns the images of all, of which only
        theirs count: uint8 [N, H, W, C]."""
        self._episode[where] += 1
        index = where.nonzero()[0].tolist()
        first = self._config.first
        seeds = np.array(
            [episode_seed(self._seed, first + i, int(self._episode[i])) for i in index]
        )
        options = None if where.all() else {"reset_mask": where}
        seen, info = self._vector.reset(seed=seeds, options=options)
        self._lives = np.where(where, info["lives"], self._lives)
        for i in index:
            self._actions[i] = []
        return self._image(seen)

    def _play(self, chosen: np.ndarray) -> tuple[np.ndarray, ...]:
        """One step of all: image [N, H, W, C], reward, and whether over and terminal, bool [N]."""
        for actions, one in zip(self._actions, chosen.tolist(), strict=True):
            actions.append(one)
        seen, reward, terminated, truncated, info = self._vector.step(chosen)
        lost = (info["lives"] > 0) & (info["lives"] < self._lives)
        self._lives = info["lives"].copy()
        terminal = terminated | (lost & (self._config.lives == "discount"))
        return self._image(seen), reward, terminated | truncated, terminal

    def _repeat(self, episodes: list[Any]) -> tuple[np.ndarray, np.ndarray]:
        """Plays saved episodes again; the longer, the earlier it begins, so all arrive together.

        Returns:
          image uint8 [N, H, W, C], and whether the episodes are over, bool [N].
        """
        image = self.reset().observation["image"]  # ale_py begins one only after it has begun all
        over = np.zeros(self.num_envs, bool)
        self._episode[:] = [one["episode"] - 1 for one in episodes]
        histories = [one["actions"] for one in episodes]
        for left in range(max(map(len, histories)), -1, -1):  # steps to go
            begins = np.array([len(history) == left for history in histories])
            if begins.any():
                image = np.where(begins[:, None, None, None], self._begin(begins), image)
                over &= ~begins
            if left:
                chosen = [history[-left] if len(history) >= left else 0 for history in histories]
                image, _, over, _ = self._play(np.array(chosen, np.int32))
        return image, over

    def _image(self, seen: np.ndarray) -> np.ndarray:
        """ale_py's stacks of one, [N, 1, H, W] or [N, 1, H, W, 3], as images of our own."""
        return np.array(seen[:, 0, ..., None] if self._config.gray else seen[:, 0])

    def _fresh(self, image: np.ndarray) -> dm_env.TimeStep:
        shape = (self.num_envs,)
        return dm_env.TimeStep(
            np.full(shape, FIRST, np.int32),
            np.zeros(shape, np.float32),
            np.ones(shape, np.float32),
            {"image": image},
        )


def _refuse(config: AtariEnv) -> None:
    """Refuses what ale_py's vector environment cannot do."""
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
