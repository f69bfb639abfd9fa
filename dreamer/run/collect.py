"""Plays episodes to be saved, turns them into Minari datasets, and tells what they hold."""

import contextlib
import importlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import dm_env
import jax
import numpy as np

from dreamer import compose, files, trust
from dreamer.config.data import CollectOptions, InfoOptions, ToMinariOptions
from dreamer.config.env import Env, GymnasiumEnv
from dreamer.envs import minari_data, recorded, registry
from dreamer.envs.base import Actions, BatchedEnv, random_action
from dreamer.envs.recorded import ENV, Episode, Spaces
from dreamer.errors import UserError, printable
from dreamer.run import folder, loading, paths, recordings, summary
from dreamer.run.policy import Policy


class Player(Protocol):
    """What acts in N environments: a `Policy` or chance."""

    num_envs: int

    def reset(self, key: jax.Array) -> None: ...

    def __call__(self, params: Any, time_step: dm_env.TimeStep, step: int) -> tuple[Any, Any]: ...


class Chance:
    """Uniformly random actions, of those that masks allow."""

    def __init__(self, num_envs: int, spec: Any, seed: int) -> None:
        self.num_envs = num_envs
        self._spec, self._rng = spec, np.random.default_rng(seed)

    def reset(self, key: jax.Array) -> None:
        """Goes on as before."""

    def __call__(self, params: Any, time_step: dm_env.TimeStep, step: int) -> tuple[Any, None]:
        seen = time_step.observation
        return random_action(self._spec, self.num_envs, self._rng, seen), None


def collect(options: CollectOptions, env_config: Env | None) -> None:
    """Plays and saves episodes of the agent of a run, or of chance in an environment.

    Raises:
      UserError: no such run, or a folder that is not new.
    """
    out = paths.expand(options.out, "out")
    _refuse_old(out, options.out)
    num_envs = min(options.num_envs, options.episodes)
    params, player = None, None
    if options.run:
        saved = loading.load(options.run, options.checkpoint, options.trust, env_config)
        env_config, params = saved.config.env, saved.params
        player = Policy(saved.agent, num_envs, options.greedy)
    assert env_config is not None, "the command line has one"
    env = registry.make(env_config, num_envs, options.seed)
    try:
        chosen: Player = player or Chance(num_envs, env.action_spec(), options.seed)
        episodes = play(chosen, params, env, options.episodes, options.seed)
        with summary.explaining_refusal(out), files.undone_on_failure(out):
            told: list[Episode] = []
            files.write_atomic(out / ENV, compose.to_yaml(env_config))
            recorded.save_spaces(out, recorded.spaces_of(env, env_config.name))
            for number, episode in enumerate(episodes):
                recorded.save(out, number, episode)
                told.append({key: episode[key] for key in ("reward", "is_first")})
        restarts = env.restarts
    finally:
        env.close()
    print("\n".join([restart.line for restart in restarts] + _numbers(told)))
    print(f"saved in {out}; train on them with replay.load={out}")


def play(
    player: Player, params: Any, env: BatchedEnv, episodes: int, seed: int
) -> Iterator[Episode]:
    """Whole episodes as they end; every environment plays its own share, so that short ones are not
    favoured."""
    num_envs = player.num_envs
    left = [len(range(i, episodes, num_envs)) for i in range(num_envs)]
    growing: list[list[dict[str, Any]]] = [[] for _ in left]
    player.reset(jax.random.key(seed))
    time_step, step = env.reset(), 0
    while any(left):
        action, _ = player(params, time_step, step)
        for i in np.flatnonzero(left):
            growing[i].append(_row(time_step, action, int(i)))
            if time_step.step_type[i] == dm_env.StepType.LAST:
                rows, growing[i] = growing[i], []
                left[i] -= 1
                yield {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        if any(left):
            time_step, step = env.step(action), step + 1


def _row(time_step: dm_env.TimeStep, action: Actions, i: int) -> dict[str, Any]:
    """What environment i showed and then did, which is nothing at the end."""
    last = time_step.step_type[i] == dm_env.StepType.LAST
    return {
        **{f"observation.{key}": value[i] for key, value in time_step.observation.items()},
        **{f"action.{k}": np.zeros_like(a[i]) if last else a[i] for k, a in action.items()},
        "reward": time_step.reward[i],
        "is_first": time_step.step_type[i] == dm_env.StepType.FIRST,
        "is_last": last,
        "is_terminal": time_step.discount[i] == 0,
    }


def to_minari(options: ToMinariOptions, env_config: Env | None) -> None:
    """Makes a Minari dataset of recorded episodes.

    Raises:
      UserError: there are none, their environment is not known, or there is such a dataset.
    """
    if options.source.startswith(recordings.MINARI):
        raise UserError(f"source={options.source} is a Minari dataset already; name a folder")
    env_config, spaces = _spaces(options, env_config)
    found = recordings.open_recording(options.source, "source", spaces)
    count, steps = minari_data.create(options.dataset, found.read(), spaces, _env_id(env_config))
    print(
        f"{count:,} episodes, {steps:,} steps, saved as minari:{options.dataset}; train on them "
        f"with replay.load=minari:{options.dataset}"
    )


def info(options: InfoOptions, env_config: Env | None) -> None:
    """Prints what recorded episodes hold.

    Raises:
      UserError: there are none, or their environment is not known.
    """
    if options.source.startswith(recordings.MINARI):
        name = options.source.removeprefix(recordings.MINARI)
        spaces = minari_data.spaces_of(name)
    else:
        _, spaces = _spaces(options, env_config)
    found = recordings.open_recording(options.source, "source", spaces)
    leaves = recorded.expected(spaces)
    rows = {"source": f"{found.name}, {printable(spaces.name)}"}
    print("\n".join([f"{name:>9}  {text}" for name, text in rows.items()]))
    print("\n".join(_numbers(found.read())))
    for name, leaf in leaves.items():
        if name.startswith(("observation.", "action.")):
            print(f"{'':>9}  {name}: {recorded.describe(leaf)}")


def _spaces(options: ToMinariOptions | InfoOptions, named: Env | None) -> tuple[Env, Spaces]:
    """The environment of recorded episodes and its spaces: as they were saved, or of the one that
    the user names, where a replay has only the observations that its agent uses."""
    source = options.source
    if named is None:
        env = recordings.env_of(source, "source")
        if options.trust:
            trust.allow(env)
        return env, recordings.saved_spaces_of(source, "source", env)
    used = None
    if folder.saved_config(paths.expand(source, "source")) is not None:
        used = recordings.saved_spaces_of(source, "source", named).observations
    return named, recordings.spaces_of(named, observations=used)


def _env_id(config: Env) -> str | None:
    """By what gymnasium knows an environment, which need not be the name of its task."""
    if not isinstance(config, GymnasiumEnv) or config.entry_point:
        return None
    package, _, name = config.task.rpartition(":")
    if package and trust.known(config):
        with contextlib.suppress(ImportError):
            importlib.import_module(package)  # which registers it
    return name


def _numbers(episodes: Iterable[Any]) -> list[str]:
    """Lines on episodes, returns and steps."""
    returns, lengths = [], []
    for episode in episodes:
        returns.append(float(episode["reward"][1:].sum()))
        lengths.append(len(episode["reward"]) - 1)
    rows = {
        "episodes": f"{len(returns):,} of {min(lengths):,} to {max(lengths):,} steps",
        "steps": f"{sum(lengths):,}",
        "returns": f"{min(returns):.6g} to {max(returns):.6g}, mean {np.mean(returns):.6g}",
    }
    return [f"{name:>9}  {text}" for name, text in rows.items()]


def _refuse_old(out: Path, name: str) -> None:
    with summary.explaining_refusal(out):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"out={name} is there already; name a new folder")
        folder.probe(folder.nearest(out))
