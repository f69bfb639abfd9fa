"""Acting, and rows of replay."""

from typing import Any

import dm_env
import jax
import numpy as np
import pytest
from dm_env import specs

from dreamer.replay import host, tree
from dreamer.rollout.driver import transition, transition_spec
from dreamer.rollout.policy import Policy
from tests import tiny

FIRST, MID, LAST = 0, 1, 2
IMAGE = {"image": specs.BoundedArray((16, 16, 3), np.uint8, 0, 255, "image")}
SMALL = {"encoder": {"mults": [1, 1]}, "decoder": {"mults": [1, 1]}}
MANY = {"b": specs.BoundedArray((2,), np.int32, 0, 3, "b"), **tiny.CONTINUOUS}


def time_step(observations: dict, types: list[int], discount: list[float]) -> dm_env.TimeStep:
    rng = np.random.default_rng(0)
    return dm_env.TimeStep(
        np.array(types, np.int32),
        np.arange(len(types), dtype=np.float32),
        np.array(discount, np.float32),
        {
            key: rng.normal(size=(len(types), *spec.shape), scale=9).astype(spec.dtype)
            for key, spec in observations.items()
        },
    )


def acting(agent: Any, num_envs: int = 3, greedy: bool = False) -> tuple[Policy, Any]:
    policy = Policy(agent, num_envs, greedy)
    policy.reset(jax.random.key(0))
    return policy, tiny.state(agent, learned=True).params


def test_transition_by_hand() -> None:
    step = time_step(tiny.VECTOR, [FIRST, MID, LAST, LAST], [1, 0, 0, 1])
    action = {"a": np.array([1, 2, 3, 4], np.int32), "b": np.full((4, 2), 0.5, np.float32)}
    latent = {"deter": np.ones((4, 2), np.float32)}
    agent = tiny.agent(tiny.VECTOR, tiny.DISCRETE)
    step.observation["unused"] = np.zeros(4)
    row = transition(step, action, latent, agent.observations)
    assert row["is_first"].tolist() == [True, False, False, False]
    assert row["is_last"].tolist() == [False, False, True, True]
    # A life lost ends no episode, a time limit is no terminal state.
    assert row["is_terminal"].tolist() == [False, True, True, False]
    assert row["reward"].tolist() == [0, 1, 2, 3]
    assert row["action"]["a"].tolist() == [1, 2, 0, 0]
    assert row["action"]["b"].tolist() == [[0.5, 0.5], [0.5, 0.5], [0, 0], [0, 0]]
    assert [x.dtype for x in row["action"].values()] == [np.int32, np.float32]
    assert row["observation"].keys() == {"observation"}
    assert row["observation"]["observation"] is step.observation["observation"]
    assert row["latent"] is latent
    assert action["a"].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("observations", "actions", "changes"),
    [
        (tiny.VECTOR, tiny.DISCRETE, {}),
        pytest.param(
            *(tiny.VECTOR, MANY, {"rssm": {"latent": "gaussian"}}), marks=pytest.mark.slow
        ),
        (IMAGE | tiny.VECTOR, tiny.DISCRETE, {"compute_dtype": "bfloat16", **SMALL}),
    ],
    ids=["classes", "numbers", "images"],
)
def test_replay_accepts_rows_of_the_policy(
    observations: dict, actions: dict, changes: dict
) -> None:
    agent = tiny.agent(observations, actions, **changes)
    policy, params = acting(agent)
    step = time_step(observations, [FIRST, MID, LAST], [1, 1, 0])
    row = transition(step, *policy(params, step, 0), agent.observations)
    spec = transition_spec(agent)
    given = {path: (x.shape[1:], x.dtype) for path, x in tree.flatten(row).items()}
    assert given == tree.flatten(spec)
    host.add(host.init(spec, 30, 3, 5), row)  # which refuses anything else


@pytest.fixture(scope="module")
def agent() -> Any:
    return tiny.agent(tiny.VECTOR, tiny.CONTINUOUS)


@pytest.fixture(scope="module")
def actor(agent: Any) -> tuple[Policy, Any]:
    """Compiled once, and given only the networks that it needs."""
    policy, params = acting(agent)
    return policy, {name: params[name] for name in ("encoder", "rssm", "actor")}


def test_draws_follow_from_the_key_and_the_step(actor: tuple[Policy, Any]) -> None:
    step = time_step(tiny.VECTOR, [FIRST] * 3, [1] * 3)
    policy, params = actor

    def actions(key: int, number: int) -> np.ndarray:
        policy.reset(jax.random.key(key))
        return policy(params, step, number)[0]["action"]

    one = actions(0, 5)
    np.testing.assert_array_equal(actions(0, 5), one)
    assert (actions(0, 6) != one).all()
    assert (actions(1, 5) != one).all()
    assert len(np.unique(one)) == one.size  # environments draw for themselves


def test_the_carry_is_kept_until_an_episode_starts(
    actor: tuple[Policy, Any],
) -> None:
    policy, params = actor
    policy.reset(jax.random.key(0))
    rows = [[FIRST] * 3, [MID, MID, FIRST]]
    steps = [time_step(tiny.VECTOR, types, [1] * 3) for types in rows]
    for step in steps:
        _, remembered = policy(params, step, 5)
    policy.reset(jax.random.key(0))
    _, forgotten = policy(params, steps[1], 5)
    changed = (remembered["deter"] != forgotten["deter"]).any(1)
    assert changed.tolist() == [True, True, False]


def test_the_carry_is_restored(actor: tuple[Policy, Any]) -> None:
    policy, params = actor
    policy.reset(jax.random.key(0))
    steps = [time_step(tiny.VECTOR, [kind] * 3, [1] * 3) for kind in (FIRST, MID)]
    policy(params, steps[0], 4)
    state = jax.tree.map(np.copy, policy.get_state())
    first = policy(params, steps[1], 5)
    policy.reset(jax.random.key(0))
    policy.set_state(state)
    jax.tree.map(np.testing.assert_array_equal, policy(params, steps[1], 5), first)


def test_greedy_takes_the_mode_given_the_sampled_latent(
    agent: Any, actor: tuple[Policy, Any]
) -> None:
    step = time_step(tiny.VECTOR, [FIRST] * 3, [1] * 3)
    (greedy, params), (sampling, _) = acting(agent, greedy=True), actor
    sampling.reset(jax.random.key(0))
    (chosen, latent), (drawn, same) = (policy(params, step, 5) for policy in (greedy, sampling))
    np.testing.assert_array_equal(latent["stoch"], same["stoch"])
    mode = agent.behavior.act(params, greedy.carry.latent, {}, None)["action"]
    np.testing.assert_allclose(chosen["action"], mode, rtol=1e-5)
    assert np.abs(drawn["action"] - mode).min() > 1e-4
