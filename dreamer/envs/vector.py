"""BatchedEnv over gymnasium environments, in this process or in one each, restarted when they fail.

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
from dreamer.envs import images, slots
from dreamer.envs.base import FIRST, LAST, Actions, Restart, Specs, episode_seed, short
from dreamer.envs.episodes import Episodes, Row, digest_of
from dreamer.envs.faults import attempt, warn_of_empty, warn_of_large
from dreamer.envs.pool import Answers, Call, Pool
from dreamer.envs.spaces import codecs
from dreamer.envs.workers import context_of_workers
from dreamer.errors import EnvironmentFault

Maker = Callable[..., gymnasium.Env]
NOTHING: Mapping[int, Call] = {}
ROW = ("step_type", "reward", "discount")
CLOSED: Row = (LAST, 0.0, 1.0)  # of an episode whose environment failed


@dataclass
class Episode:
    """What repeats an episode, and whether it is over by itself."""

    number: int
    actions: list[Any] = field(default_factory=list)
    over: bool = False


class VectorEnv:
    """N gymnasium environments as a `BatchedEnv`.

    One that fails is restarted while the others continue. Its episode ends as truncated, with
    reward 0 and the last observation; the next has another seed. Where a new episode cannot begin,
    that after it does.

    Args:
      maker: Makes one gymnasium environment; a function that pickles, for it also runs in workers.
      config: What it says of workers. serial steps the environments one after the other in this
        process; process gives each its own; auto is process for several environments with images
        on more than two cores, else serial. Images are drawn or emulated, which costs more than the
        way to a process and back; on two cores, processes only take turns (measured: no faster).
      num_envs: N.
      seed: Of the whole batch; the seeds of episodes derive from it.
      render: Whether `render` returns frames.
      seeded: Whether `maker` takes a `seed`, another for every environment.

    Raises:
      UserError: A space is not supported.
      EnvironmentFault: Later, environments failed more often than `config` allows, or one at once
        after its restart: raised an exception, gave what their spaces do not allow, or their
        process died or hung. `get_state` then gives a state from which all start new episodes.
    """

    __repr__ = short

    def __init__(
        self,
        maker: Maker,
        config: EnvBase,
        num_envs: int,
        seed: int,
        render: bool,
        seeded: bool = False,
    ) -> None:
        self.num_envs = num_envs
        # One in this process first, so that a mistake is refused before any process starts.
        probe = maker(seed=episode_seed(seed, 0, 0)) if seeded else maker()
        with contextlib.ExitStack() as stack:
            stack.callback(attempt, "failed in its close with", probe.close)
            self._space = probe.observation_space
            self._observation, self._action = codecs(self._space, probe.action_space)
            self.native_actions = probe.action_space  # of one environment, in its own units
            self._renders = render and probe.render_mode == "rgb_array"
        self._name = config.name
        warn_of_empty(self._space, self._name)
        self._batched_actions = batch_space(self.native_actions, num_envs)
        processes = self._worth_processes(config.workers)
        take = functools.partial(context_of_workers().RawArray, "B") if processes else bytearray
        memory = slots.allocate(self._space, num_envs, take)
        self._seen = slots.view(self._space, num_envs, memory)
        make = functools.partial(
            _episodes, maker, seed, seeded, self._space, num_envs, config.first
        )
        self._pool = Pool(make, memory, num_envs, config, processes)
        self.close = self._pool.close
        self._episodes = [Episode(-1) for _ in range(num_envs)]
        self._last: dm_env.TimeStep | None = None
        self._frames: dict[int, Any] = {}  # drawn last
        self._amid = False  # a step that failed

    @property
    def restarts(self) -> Sequence[Restart]:
        return tuple(self._pool.restarts)

    def observation_spec(self) -> Specs:
        return dict(self._observation.specs)

    def action_spec(self) -> Specs:
        return dict(self._action.specs)

    def reset(self) -> dm_env.TimeStep:
        return self._keep(self._begin(range(self.num_envs)))

    def step(self, action: Actions) -> dm_env.TimeStep:
        assert self._last is not None, "call reset first"
        over = np.flatnonzero(self._last.step_type == LAST).tolist()
        self._pool.renew(over)
        taken = list(iterate(self._batched_actions, self._action.convert(action)))
        playing = [i for i in range(self.num_envs) if i not in over]
        rows = self._begin(over, {i: ("step", taken[i]) for i in playing})
        for i in playing:
            if rows[i] is None:
                rows[i] = CLOSED
            else:
                self._episodes[i].actions.append(taken[i])
                self._episodes[i].over = rows[i][0] == LAST
        return self._keep(rows)

    def render(self) -> np.ndarray | None:
        """As `BatchedEnv` has it; of one that draws nothing now, the frame before.

        Raises:
          EnvironmentFault: one fails in it or gives no picture, and is not restarted.
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
        if self._amid:
            return unrestorable(np.array([one.number for one in self._episodes])) | restarts
        return restarts | {
            "episodes": [
                {
                    "episode": one.number,
                    "actions": self.native_actions.to_jsonable(one.actions),
                    "ended": one.over,
                    "digest": digest_of(slots.read(self._seen, i)),
                }
                for i, one in enumerate(self._episodes)
            ],
            "step_type": self._last.step_type.tolist(),
            "reward": self._last.reward.tolist(),
            "discount": self._last.discount.tolist(),
        }

    def set_state(self, state: Mapping[str, Any]) -> tuple[np.ndarray, dm_env.TimeStep]:
        if len(state["episodes"]) != self.num_envs:
            raise ValueError(
                f"state of {len(state['episodes'])} environments given to {self.num_envs}"
            )
        self._amid = True
        self._pool.restarts = [Restart(*restart) for restart in state.get("restarts", ())]
        load, saved = self.native_actions.from_jsonable, state["episodes"]
        self._episodes = [
            Episode(one["episode"], list(load(one["actions"])) if one["actions"] else [])
            for one in saved
        ]
        over = self._pool.ask(
            {i: ("repeat", one.number, one.actions) for i, one in enumerate(self._episodes)},
            steps=1 + max(len(one.actions) for one in self._episodes),
        )
        rows = dict(enumerate(zip(*(state[name] for name in ROW), strict=True)))
        restored = np.zeros(self.num_envs, bool)
        for i, one in enumerate(saved):
            self._episodes[i].over = one["ended"]
            same = digest_of(slots.read(self._seen, i)) == one["digest"]
            restored[i] = same and over[i] == one["ended"]
        return restored, self._keep(rows | self._begin(np.flatnonzero(~restored).tolist()))

    def _keep(self, rows: Mapping[int, Row]) -> dm_env.TimeStep:
        """Makes a time step of the rows of all environments and of what they see; remembers it."""
        step_type, reward, discount = zip(*(rows[i] for i in range(self.num_envs)), strict=True)
        self._amid = False
        rewards = np.array(reward, np.float32)
        warn_of_large(rewards, self._name)
        self._last = dm_env.TimeStep(
            np.array(step_type, np.int32),
            rewards,
            np.array(discount, np.float32),
            self._observation.convert(self._seen),
        )
        return self._last

    def _begin(self, which: Iterable[int], meanwhile: Mapping[int, Call] = NOTHING) -> Answers:
        """Begins the next episodes of some environments, while others do something else.

        Returns:
          What all gave; None for others that failed and were restarted.
        """
        self._amid = True
        answers: Answers = {}
        calls = dict(meanwhile)
        while True:
            for i in which:
                self._episodes[i] = Episode(self._episodes[i].number + 1)
                calls[i] = "begin", self._episodes[i].number
            answers |= self._pool.ask(calls)
            which, calls = [i for i in which if answers[i] is None], {}
            if not which:
                return answers

    def _worth_processes(self, workers: str) -> bool:
        """What is chosen, see the class."""
        slow = any(leaf.dtype == np.uint8 for leaf in self._observation.specs.values())
        worth_it = slow and self.num_envs > 1 and _cores() > 2
        return workers == "process" or (workers == "auto" and worth_it)


def unrestorable(episode: np.ndarray) -> dict[str, Any]:
    """A state, of environments in these episodes, from which `set_state` starts the next ones."""
    return {
        "episodes": [
            {"episode": number, "actions": [], "ended": False, "digest": ""}
            for number in episode.tolist()
        ],
        "step_type": np.full(len(episode), FIRST).tolist(),
        "reward": np.zeros(len(episode)).tolist(),
        "discount": np.ones(len(episode)).tolist(),
    }


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
    memory: slots.Memory,
    index: int,
) -> Episodes:
    """Those of one environment, made where they are played."""
    number = first + index
    make = functools.partial(maker, seed=episode_seed(seed, number, 0)) if seeded else maker
    return Episodes(make, seed, index, slots.view(space, num_envs, memory), number)
