"""A tiny agent and random data, shared so that tests share compilation."""

from functools import cache, partial

import jax
import numpy as np
from dm_env import specs

from dreamer.agents.dreamer import dreamer, parts
from dreamer.agents.dreamer.dreamer import Dreamer
from dreamer.config.agent import AgentConfig
from dreamer.replay import host
from dreamer.rollout.driver import transition_spec

VECTOR = {"observation": specs.Array((3,), np.float32, "observation")}
DISCRETE = {"action": specs.DiscreteArray(3, np.int32, "action")}
CONTINUOUS = {"action": specs.BoundedArray((2,), np.float32, -1, 1, "action")}

CONFIG = {
    "compute_dtype": "float32",
    "units": 16,
    "depth": 4,
    "rssm": {
        "deter": 16,
        "hidden": 8,
        "blocks": 4,
        "stoch": 2,
        "classes": 4,
        "prior_layers": 1,
    },
    "encoder": {"layers": 1},
    "decoder": {"layers": 1, "blocks": 4},
    "actor": {"layers": 1},
    "critic": {"layers": 1},
    "returns": {"imagination": 4},
}


def merge(base: dict, changes: dict) -> dict:
    merged = dict(base)
    for key, value in changes.items():
        merged[key] = merge(base.get(key, {}), value) if isinstance(value, dict) else value
    return merged


def agent(observations: dict, actions: dict, **changes) -> Dreamer:
    """An agent of tiny sizes; `changes` are merged into its configuration."""
    return dreamer.make(AgentConfig.model_validate(merge(CONFIG, changes)), observations, actions)


def state(agent: Dreamer, seed: int = 0, learned: bool = False) -> parts.State:
    """Fresh weights; `learned` changes all, the zero outputs too, as if some had been learned."""
    fresh = jax.jit(partial(parts.init, agent))(jax.random.key(seed))
    if not learned:
        return fresh
    leaves, tree = jax.tree.flatten(fresh.params)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    noisy = [x + 0.1 * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys, strict=True)]
    params = jax.tree.unflatten(tree, noisy)
    slow = jax.tree.map(lambda x: 0.9 * x, params["critic"])
    return fresh.replace(params=params, slow_critic=slow)


def batch(agent: Dreamer, batch_size: int, length: int, seed: int = 0) -> dict:
    """Random replay rows, leaves [B, T + 1, ...], with episode boundaries inside."""
    rng = np.random.default_rng(seed)
    limits = {"observation": agent.observations, "action": agent.actions}

    def leaf(path: tuple, value: object) -> object:
        if isinstance(value, dict):
            return {key: leaf((*path, key), part) for key, part in value.items()}
        shape, dtype = (batch_size, length + 1, *value[0]), value[1]
        if np.issubdtype(dtype, bool):
            return np.zeros(shape, bool)
        if not np.issubdtype(dtype, np.integer):
            return rng.normal(size=shape).astype(dtype)
        classes = (
            agent.config.rssm.classes
            if path[0] == "latent"
            else int(np.max(limits[path[0]][path[1]].maximum)) + 1
        )
        return rng.integers(0, classes, shape).astype(dtype)

    rows = leaf((), transition_spec(agent))
    ends = rng.random((batch_size, length + 1)) < 0.2
    rows["is_last"] = ends
    rows["is_terminal"] = ends & (rng.random(ends.shape) < 0.5)
    rows["is_first"] = np.roll(ends, 1, 1)
    rows["is_first"][:, 0] = False
    return rows


def filled(agent: Dreamer, length: int, steps: int = 30) -> host.Replay:
    """Replay of two environments, random rows; windows of `length` trained steps, some queued."""
    replay = host.init(transition_spec(agent), 60, 2, length + 1)
    rows = batch(agent, 2, steps)
    for step in range(steps):
        host.add(replay, jax.tree.map(lambda x, step=step: x[:, step], rows))
    return replay


def feature_size(agent: Dreamer) -> int:
    config = agent.config.rssm
    return config.deter + config.stoch * (config.classes if config.latent == "categorical" else 1)


@cache
def default(
    actions: str = "discrete", gradient: str = "auto", latent: str = "categorical"
) -> Dreamer:
    """The same tiny agent for every test that does not care."""
    spaces = {"discrete": DISCRETE, "continuous": CONTINUOUS}[actions]
    return agent(VECTOR, spaces, actor={"gradient": gradient}, rssm={"latent": latent})
