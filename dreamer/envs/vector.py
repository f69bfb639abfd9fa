"""BatchedEnv over gymnasium environments, in this process or one process each, with restarts.

Legend: N environments.
"""

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dm_env
import gymnasium
import numpy as np
from gymnasium.vector.utils import batch_space, iterate

from dreamer.config.env import EnvBase
from dreamer.envs import images
from dreamer.envs.base import (
    LAST,
    Actions,
    BatchedEnv,
    Restart,
    episode_seed,
    saved_episodes,
    saved_state,
    unrestorable,
)
from dreamer.envs.episodes import (
    Episodes,
    Memory,
    Row,
    allocate_rows,
    digest_of,
    read_row,
    view_rows,
)
from dreamer.envs.faults import attempt, warn_of_empty, warn_of_large
from dreamer.envs.spaces import codecs
from dreamer.envs.workers import Answers, Call, Pool, context_of_workers
from dreamer.errors import EnvironmentFault

Maker = Callable[..., gymnasium.Env]
FAILED: Row = (LAST, 0.0, 1.0)  # ends the episode of an environment that failed


@dataclass
class Episode:
    """What repeats an episode, and whether it ended by itself."""

    number: int
    actions: list[Any] = field(default_factory=list)
    over: bool = False


class VectorEnv(BatchedEnv):
    """N gymnasium environments.

    One that fails is restarted while the others continue. Its episode ends as truncated, with
    reward 0 and the last observation; the next has another seed. An episode that cannot start is
    skipped.

    Args:
      maker: Makes one gymnasium environment; a function that pickles, for it also runs in workers.
      config: Options of workers. serial steps the environments one after the other in this process;
        process gives each its own; auto is process for several environments with images on more
        than two cores, else serial. Images are drawn or emulated, which costs more than the way to
        a process and back; on two cores, processes only take turns (measured: no faster).
      num_envs: N.
      seed: Of the whole batch; the seeds of episodes derive from it.
      render: Whether `render` returns frames.
      seeded: Whether `maker` takes a `seed`, another for every environment.

    Raises:
      UserError: A space is not supported.
      EnvironmentFault: Later, environments failed more often than `config` allows, or one at once
        after its restart: it raised an exception, left its spaces, or its process died or hung.
        `get_state` then returns a state from which all start new episodes.
    """

    def __init__(
        self,
        maker: Maker,
        config: EnvBase,
        num_envs: int,
        seed: int,
        render: bool,
        seeded: bool = False,
    ) -> None:
        # One in this process first, so that invalid options fail before any process starts.
        probe = maker(seed=episode_seed(seed, 0, 0)) if seeded else maker()
        with contextlib.ExitStack() as stack:
            stack.callback(attempt, "failed in its close with", probe.close)
            self._space = probe.observation_space
            self._encoder, self._decoder = codecs(self._space, probe.action_space)
            self.native_actions = probe.action_space  # of one environment, in its own units
            self._renders = render and probe.render_mode == "rgb_array"
        super().__init__(num_envs, self._encoder.specs, self._decoder.specs)
        self._name = config.name
        warn_of_empty(self._space, self._name)
        self._batched_actions = batch_space(self.native_actions, num_envs)
        processes = self._worth_processes(config.workers)
        take = functools.partial(context_of_workers().RawArray, "B") if processes else bytearray
        memory = allocate_rows(self._space, num_envs, take)
        self._slots = view_rows(self._space, num_envs, memory)
        make = functools.partial(
            _episodes, maker, seed, seeded, self._space, num_envs, config.first
        )
        self._pool = Pool(make, memory, num_envs, config, processes)
        self._episodes = [Episode(-1) for _ in range(num_envs)]
        self._frames: dict[int, Any] = {}  # drawn last
        self._interrupted = False  # by a failure amid a step

    @property
    def restarts(self) -> Sequence[Restart]:
        return tuple(self._pool.restarts)

    def reset(self) -> dm_env.TimeStep:
        return self._keep(self._begin(range(self.num_envs)))

    def step(self, action: Actions) -> dm_env.TimeStep:
        assert self._last is not None, "call reset first"
        over = np.flatnonzero(self._last.step_type == LAST).tolist()
        self._pool.renew(over)
        native = list(iterate(self._batched_actions, self._decoder.convert(action)))
        playing = [i for i in range(self.num_envs) if i not in over]
        rows = self._begin(over, {i: ("step", native[i]) for i in playing})
        for i in playing:
            if rows[i] is None:
                rows[i] = FAILED
            else:
                self._episodes[i].actions.append(native[i])
                self._episodes[i].over = rows[i][0] == LAST
        return self._keep(rows)

    def render(self) -> np.ndarray | None:
        """See `BatchedEnv.render`; an environment that draws nothing now keeps its last frame.

        Raises:
          EnvironmentFault: One fails in it or returns no picture, and is not restarted.
        """
        if not self._renders:
            return None
        for i, frame in self._pool.call(dict.fromkeys(range(self.num_envs), ("render",))).items():
            if isinstance(frame, EnvironmentFault):
                raise frame
            try:
                drawn = images.picture(frame)
            except (ValueError, TypeError) as error:
                raise EnvironmentFault(f"environment {i} {error}") from error
            self._frames[i] = self._frames.get(i) if drawn is None else drawn
        frames = [frame for frame in self._frames.values() if frame is not None]
        return images.stack(frames) if len(frames) == self.num_envs else None

    def get_state(self) -> dict[str, Any]:
        assert self._last is not None, "call reset first"
        restarts = {"restarts": [list(restart) for restart in self.restarts]}
        if self._interrupted:
            return unrestorable(np.array([one.number for one in self._episodes])) | restarts
        episodes = [
            {
                "episode": one.number,
                "actions": self.native_actions.to_jsonable(one.actions),
                "ended": one.over,
                "digest": digest_of(read_row(self._slots, i)),
            }
            for i, one in enumerate(self._episodes)
        ]
        return restarts | saved_state(episodes, self._last)

    def set_state(self, state: Mapping[str, Any]) -> tuple[np.ndarray, dm_env.TimeStep]:
        saved = saved_episodes(state, self.num_envs)
        self._interrupted = True
        self._pool.restarts = [Restart(*restart) for restart in state.get("restarts", ())]
        load = self.native_actions.from_jsonable
        self._episodes = [
            Episode(one["episode"], list(load(one["actions"])) if one["actions"] else [])
            for one in saved
        ]
        over = self._pool.ask(
            {i: ("repeat", one.number, one.actions) for i, one in enumerate(self._episodes)},
            steps=1 + max(len(one.actions) for one in self._episodes),
        )
        rows = dict(
            enumerate(zip(state["step_type"], state["reward"], state["discount"], strict=True))
        )
        restored = np.zeros(self.num_envs, bool)
        for i, one in enumerate(saved):
            self._episodes[i].over = one["ended"]
            same = digest_of(read_row(self._slots, i)) == one["digest"]
            restored[i] = same and over[i] == one["ended"]
        return restored, self._keep(rows | self._begin(np.flatnonzero(~restored).tolist()))

    def close(self) -> None:
        self._pool.close()

    def _keep(self, rows: Mapping[int, Row]) -> dm_env.TimeStep:
        """Makes and remembers the time step of these rows and the current observations."""
        step_type, reward, discount = zip(*(rows[i] for i in range(self.num_envs)), strict=True)
        self._interrupted = False
        rewards = np.array(reward, np.float32)
        warn_of_large(rewards, self._name)
        self._last = dm_env.TimeStep(
            np.array(step_type, np.int32),
            rewards,
            np.array(discount, np.float32),
            self._encoder.convert(self._slots),
        )
        return self._last

    def _begin(self, which: Iterable[int], meanwhile: Mapping[int, Call] | None = None) -> Answers:
        """Starts the next episodes of some environments, while others run other calls.

        Returns:
          The answers of all; None for others that failed and were restarted.
        """
        self._interrupted = True
        answers: Answers = {}
        calls = dict(meanwhile or {})
        while True:
            for i in which:
                self._episodes[i] = Episode(self._episodes[i].number + 1)
                calls[i] = "begin", self._episodes[i].number
            answers |= self._pool.ask(calls)
            which, calls = [i for i in which if answers[i] is None], {}
            if not which:
                return answers

    def _worth_processes(self, workers: str) -> bool:
        """Whether each environment gets a process, see the class."""
        slow = any(leaf.dtype == np.uint8 for leaf in self._observations.values())
        worth_it = slow and self.num_envs > 1 and _cores() > 2
        return workers == "process" or (workers == "auto" and worth_it)


def _cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _episodes(
    maker: Maker,
    seed: int,
    seeded: bool,
    space: gymnasium.Space,
    num_envs: int,
    first: int,
    memory: Memory,
    index: int,
) -> Episodes:
    """Makes the `Episodes` of one environment, in its worker."""
    number = first + index
    make = functools.partial(maker, seed=episode_seed(seed, number, 0)) if seeded else maker
    return Episodes(make, seed, index, view_rows(space, num_envs, memory), number)
