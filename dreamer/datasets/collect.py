"""Collects episodes, converts them to Minari datasets, and describes them."""

import contextlib
import importlib
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np

from dreamer.checkpoint import folder, loading, paths
from dreamer.config import serialization, trust
from dreamer.config.env import Env, GymnasiumEnv
from dreamer.config.options import CollectOptions, InfoOptions, ToMinariOptions
from dreamer.datasets import minari_data, recorded, sources
from dreamer.datasets.recorded import ENV, Episode, Spaces
from dreamer.envs import registry
from dreamer.envs.base import BatchedEnv
from dreamer.errors import UserError, printable
from dreamer.replay import tree
from dreamer.rollout.driver import Driver, episodes_per_env, play
from dreamer.rollout.policy import ActingPolicy, Policy, RandomPolicy
from dreamer.system import files


def collect(options: CollectOptions, env_config: Env | None) -> None:
    """Plays and saves episodes of the agent of a run, or of random actions in an environment.

    Raises:
      UserError: there is no such run, or the folder is not new.
    """
    out = paths.expand(options.out, "out")
    with files.explaining_refusal(out):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"out={options.out} exists already; name a new folder")
        files.probe(files.nearest(out))
    num_envs = min(options.num_envs, options.episodes)
    params: Any = None
    policy: ActingPolicy | None = None
    if options.run:
        saved = loading.load(options.run, options.checkpoint, options.trust, env_config)
        env_config, params = saved.config.env, saved.params
        policy = Policy(saved.agent, num_envs, options.greedy)
    assert env_config is not None, "the command line has one"
    with contextlib.closing(registry.make(env_config, num_envs, options.seed)) as env:
        policy = policy or RandomPolicy(num_envs, env.action_spec(), options.seed)
        episodes = whole_episodes(policy, params, env, options.episodes, options.seed)
        with files.explaining_refusal(out), files.undone_on_failure(out):
            played: list[Episode] = []
            files.write_atomic(out / ENV, serialization.to_yaml(env_config))
            recorded.save_spaces(out, recorded.spaces_of(env, env_config.name))
            for number, episode in enumerate(episodes):
                recorded.save(out, number, episode)
                played.append({"reward": episode["reward"]})
    print("\n".join([restart.line for restart in env.restarts] + _table(_numbers(played))))
    print(f"saved in {out}; train on them with replay.load={out}")


def whole_episodes(
    policy: ActingPolicy, params: Any, env: BatchedEnv, episodes: int, seed: int
) -> Iterator[Episode]:
    """Plays episodes and yields them as they end."""
    policy.reset(jax.random.key(seed))
    left = episodes_per_env(episodes, policy.num_envs)
    growing: list[list[Episode]] = [[] for _ in left]
    for row, ended in play(Driver(env, policy), params):
        leaves = {tree.name(path): leaf for path, leaf in tree.flatten(row).items()}
        for i in map(int, np.flatnonzero(left)):
            growing[i].append(
                {name: leaf[i] for name, leaf in leaves.items() if not name.startswith("latent")}
            )
        for i in [i for i, _, _ in ended if left[i]]:
            rows, growing[i] = growing[i], []
            left[i] -= 1
            yield {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        if not any(left):
            return


def to_minari(options: ToMinariOptions, env_config: Env | None) -> None:
    """Converts recorded episodes to a Minari dataset.

    Raises:
      UserError: there are none, their environment is unknown, or the dataset exists already.
    """
    if options.source.startswith(sources.MINARI):
        raise UserError(f"source={options.source} is a Minari dataset already; name a folder")
    env_config, spaces = _spaces(options, env_config)
    found = sources.open_recording(options.source, "source", spaces)
    count, steps = minari_data.create(options.dataset, found.read(), spaces, _env_id(env_config))
    print(
        f"{count:,} episodes, {steps:,} steps, saved as minari:{options.dataset}; train on them "
        f"with replay.load=minari:{options.dataset}"
    )


def info(options: InfoOptions, env_config: Env | None) -> None:
    """Prints a description of recorded episodes.

    Raises:
      UserError: there are none, or their environment is unknown.
    """
    if options.source.startswith(sources.MINARI):
        spaces = minari_data.spaces_of(options.source.removeprefix(sources.MINARI))
    else:
        _, spaces = _spaces(options, env_config)
    found = sources.open_recording(options.source, "source", spaces)
    rows = {"source": f"{found.name}, {printable(spaces.name)}"} | _numbers(found.read())
    print("\n".join(_table(rows)))
    for name, leaf in recorded.expected(spaces).items():
        if name.startswith(("observation.", "action.")):
            print(f"{'':>9}  {name}: {recorded.describe(leaf)}")


def _spaces(options: ToMinariOptions | InfoOptions, named: Env | None) -> tuple[Env, Spaces]:
    """The environment of recorded episodes and its spaces: the saved ones, or those of the named
    environment. Of a replay, only the observations that its agent uses."""
    source = options.source
    if named is None:
        env = sources.env_of(source, "source")
        if options.trust:
            trust.allow(env)
        return env, sources.saved_spaces_of(source, "source", env)
    used = None
    if folder.saved_config(paths.expand(source, "source")) is not None:
        used = sources.saved_spaces_of(source, "source", named).observations
    return named, sources.spaces_of(named, observations=used)


def _env_id(config: Env) -> str | None:
    """The gymnasium id of an environment, which may differ from the name of its task."""
    if not isinstance(config, GymnasiumEnv) or config.entry_point:
        return None
    package, _, name = config.task.rpartition(":")
    if package and trust.known(config):
        with contextlib.suppress(ImportError):
            importlib.import_module(package)  # which registers it
    return name


def _numbers(episodes: Iterable[Any]) -> dict[str, str]:
    """Statistics of episodes."""
    returns, lengths = [], []
    for episode in episodes:
        returns.append(float(episode["reward"][1:].sum()))
        lengths.append(len(episode["reward"]) - 1)
    return {
        "episodes": f"{len(returns):,} of {min(lengths):,} to {max(lengths):,} steps",
        "steps": f"{sum(lengths):,}",
        "returns": f"{min(returns):.6g} to {max(returns):.6g}, mean {np.mean(returns):.6g}",
    }


def _table(rows: dict[str, str]) -> list[str]:
    return [f"{name:>9}  {text}" for name, text in rows.items()]
