"""Arguments of the wrong shape are refused with names and shapes, while tracing."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from dreamer.agents.dreamer import behavior as behaviors
from dreamer.agents.dreamer import learning, parts
from dreamer.agents.dreamer import world_model as models
from dreamer.nets import rssm
from tests import tiny

B, T = 2, 3
AGENT = tiny.default()
MODEL = AGENT.model
STATE = jax.eval_shape(AGENT.init, jax.random.key(0))
PARAMS = STATE.params


def x(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def batch(**changes: Any) -> dict:
    return {**tiny.batch(AGENT, B, T), **changes}


def train(rows: dict) -> Any:
    return learning.train_step(AGENT, tiny.state(AGENT), rows, jax.random.key(0))


def act(observation: Any, is_first: Any) -> Any:
    carry = parts.initial_carry(AGENT, 2)
    key = jax.random.key(0)
    return partial(AGENT.act, key=key, greedy=False)(PARAMS, carry, observation, is_first)


FLAGS = x(B, T, dtype=bool)
WRONG = {
    "observation of another size": (
        lambda o: MODEL.encoder.apply(PARAMS["encoder"], o),
        ({"observation": x(5, 4)},),
        r"\(5, 4\).*\(\.\.\., 3\)",
    ),
    "feature of another size": (
        lambda f: MODEL.rssm.apply(PARAMS["rssm"], f, jnp.zeros((5, 16)), method="core"),
        (x(5, 23),),
        r"\(5, 23\).*\(\.\.\., 24\)",
    ),
    "latent of two batches": (
        lambda deter, stoch: rssm.feature({"deter": deter, "stoch": stoch}),
        (x(5, 16), x(4, 2, 4)),
        r"stoch.*\(4,\) != \(5,\)",
    ),
    "actions of other steps": (
        lambda *a: models.observe(MODEL, PARAMS, MODEL.rssm.initial(B), *a, None),
        (x(B, T, 16), x(B, T + 1, 3), FLAGS),
        r"\(2, 3\), \(2, 4\), \(2, 3\)",
    ),
    "time before batch": (
        lambda *a: models.observe(MODEL, PARAMS, MODEL.rssm.initial(B), *a, None),
        (x(T, B, 16), x(T, B, 3), x(T, B, dtype=bool)),
        r"\(2, 16\).*\(3, None\)",
    ),
    "one action for all": (
        lambda a: models.imagine_step(MODEL, PARAMS, MODEL.rssm.initial(4), a, None),
        (x(1, 3),),
        r"\(4,\), \(1,\)",
    ),
    "returns of other states": (
        lambda f, r: behaviors.critic_loss(AGENT.behavior, PARAMS, PARAMS["critic"], f, r),
        (x(4, 5, 24), x(5, 5)),
        r"\(4, 5, 24\).*\(5, 5, None\)",
    ),
    "rewards of a column": (train, (batch(reward=x(B, T + 1, 1)),), r"\(2, 4, 1\).*\(2, 4\)"),
    "rewards of other steps": (train, (batch(reward=x(B, T)),), r"\(2, 3\).*\(2, 4\)"),
    "flags of one environment": (
        act,
        ({"observation": x(2, 3)}, x(1, dtype=bool)),
        r"observation.*\(2,\) != \(1,\)",
    ),
    "flags in a column": (
        act,
        ({"observation": x(2, 3)}, x(2, 1, dtype=bool)),
        r"\(2, 1\)\) but expected 1",
    ),
}


@pytest.mark.parametrize(("function", "arguments", "message"), WRONG.values(), ids=WRONG)
def test_wrong_shapes_are_refused(function: Any, arguments: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=f"(?s){message}"):
        jax.eval_shape(function, *arguments)


def test_a_number_of_environments_that_is_not_known_passes() -> None:
    """As in the export of a policy for any number of environments."""
    (count,) = jax.export.symbolic_shape("n")
    carry = jax.tree.map(
        lambda leaf: x(count, *leaf.shape[1:], dtype=leaf.dtype), parts.initial_carry(AGENT, 1)
    )

    def step(carry: Any, observation: Any, is_first: Any, seed: Any) -> Any:
        params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), PARAMS)
        noise = AGENT.noise(jax.random.key(seed), is_first.shape[0], False)
        return AGENT.act_with(params, carry, observation, is_first, noise)

    seen = {"observation": x(count, 3)}
    arguments = carry, seen, x(count, dtype=bool), x(dtype=jnp.uint32)
    exported = jax.export.export(jax.jit(step))
    assert exported(*arguments).in_avals[-2].shape == (count,)
