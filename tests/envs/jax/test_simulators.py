"""Helpers of the suites, without their packages."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dm_env import specs
from jax import Array
from PIL import Image

from dreamer.config.env import GymnaxEnv
from dreamer.envs import registry
from dreamer.envs.check import check
from dreamer.envs.jax import simulators
from dreamer.envs.jax.batched import BatchedJax
from dreamer.envs.jax.episodes import JaxEnv
from dreamer.errors import UserError


def test_an_image_of_the_right_size_keeps_its_values() -> None:
    pixels = np.arange(256, dtype=np.float32).reshape(16, 16, 1)
    found = simulators.image(pixels + 0.4, (16, 16))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, pixels)


@pytest.mark.parametrize("size", [(20, 24), (64, 48)])
def test_an_image_is_resized_as_by_pillow(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 30, 3), np.uint8)
    filtered = Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BILINEAR)
    found = np.asarray(simulators.image(jnp.asarray(pixels), size))
    assert found.shape == (*size, 3)
    assert np.abs(found.astype(int) - np.asarray(filtered)).max() <= 1


def test_values_that_are_not_finite_are_replaced_by_the_previous_ones() -> None:
    before = {"a": jnp.zeros(2), "b": jnp.zeros(3)}
    seen = {"a": jnp.ones(2), "b": jnp.ones(3)}
    found, reward, broken = simulators.finite(seen, jnp.float32(4), before)
    assert (found["a"].sum(), found["b"].sum(), reward, broken) == (2, 3, 4, False)
    for bad in ({**seen, "b": jnp.array([0, jnp.nan, 0])}, {**seen, "a": jnp.full(2, jnp.inf)}):
        found, reward, broken = simulators.finite(bad, jnp.float32(4), before)
        assert (found["a"].sum(), found["b"].sum(), reward, broken) == (0, 0, 0, True)
    assert simulators.finite(seen, jnp.float32(jnp.nan), before)[1:] == (0, True)


def test_a_settled_state_has_the_dtypes_of_another() -> None:
    like = {"count": jnp.int32(0), "over": jnp.array(False), "python": 0.0}
    found = simulators.settled({"count": 3, "over": jnp.int32(1), "python": jnp.float32(2)}, like)
    assert [leaf.dtype.name for leaf in jax.tree.leaves(found)] == ["int32", "bool", "float32"]
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(found))


def test_workers_are_refused() -> None:
    with pytest.raises(UserError, match=r"env.workers=serial: .* leave out env.workers"):
        registry.make_jax(GymnaxEnv(workers="serial"))


def test_an_unknown_task_names_the_nearest() -> None:
    with pytest.raises(UserError, match="env.task=CartPole is no task of gymnax; did you mean Ca"):
        registry.make_jax(GymnaxEnv(task="CartPole"))


def test_an_error_of_a_package_becomes_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(task: str) -> None:
        raise ValueError("Unsupported backend: spring.")

    monkeypatch.setattr("gymnax.make", fail)
    with pytest.raises(UserError, match="^env.task=CartPole-v1 cannot be made: ValueError: Unsup"):
        registry.make_jax(GymnaxEnv())


def test_a_package_may_warn_and_broadcast() -> None:
    with simulators.traced():
        warnings.warn("old", DeprecationWarning, stacklevel=1)
        assert (jnp.ones((2, 3)) + jnp.ones(3)).shape == (2, 3)
    with pytest.raises(ValueError, match="rank"):
        jnp.ones((2, 3)) + jnp.ones(3)


class Hollow:
    """A walk whose state has a raw key and arrays without elements, as those of MuJoCo have."""

    limit = 5
    observations = {"place": specs.Array((), np.float32, "place")}
    actions = {"action": specs.DiscreteArray(2, np.int32, "action")}

    def reset(self, key: Array) -> tuple[Any, Any]:
        state = {
            "key": simulators.plain_key(key),
            "none": jnp.zeros((0, 3)),
            "place": jnp.float32(0),
        }
        return state, {"place": state["place"]}

    def step(self, key: Array, state: Any, action: Any) -> tuple[Any, Any, Array, Array]:
        key, noise = jax.random.split(state["key"])
        place = state["place"] + jax.random.uniform(noise)
        state = {"key": key, "none": state["none"], "place": place}
        return state, {"place": place}, place, place > 3


def test_a_state_with_keys_and_arrays_without_elements_is_restored() -> None:
    env = BatchedJax(JaxEnv(Hollow(), slow_reset=True), 3, 0)
    check(env, 20)
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(env._state)]
    assert (3, 0, 3) in shapes
