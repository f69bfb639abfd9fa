"""What the suites share, without any of their packages."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dm_env import specs
from jax import Array
from PIL import Image

from dreamer.config.env import BraxEnv
from dreamer.envs.check import check
from dreamer.envs.jax import foreign
from dreamer.envs.jax.batched import BatchedJax
from dreamer.envs.jax.episodes import JaxEnv
from dreamer.errors import UserError


def test_an_image_of_the_right_size_keeps_its_values() -> None:
    pixels = np.arange(256, dtype=np.float32).reshape(16, 16, 1)
    found = foreign.image(pixels + 0.4, (16, 16))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, pixels)


@pytest.mark.parametrize("size", [(20, 24), (64, 48)])
def test_an_image_is_resized_as_by_pillow(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 30, 3), np.uint8)
    filtered = Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BILINEAR)
    found = np.asarray(foreign.image(jnp.asarray(pixels), size))
    assert found.shape == (*size, 3)
    assert np.abs(found.astype(int) - np.asarray(filtered)).max() <= 1


def test_what_is_not_finite_is_replaced_by_what_was_seen_before() -> None:
    before = {"a": jnp.zeros(2), "b": jnp.zeros(3)}
    seen = {"a": jnp.ones(2), "b": jnp.ones(3)}
    found, reward, broken = foreign.finite(seen, jnp.float32(4), before)
    assert (found["a"].sum(), found["b"].sum(), reward, broken) == (2, 3, 4, False)
    for bad in ({**seen, "b": jnp.array([0, jnp.nan, 0])}, {**seen, "a": jnp.full(2, jnp.inf)}):
        found, reward, broken = foreign.finite(bad, jnp.float32(4), before)
        assert (found["a"].sum(), found["b"].sum(), reward, broken) == (0, 0, 0, True)
    assert foreign.finite(seen, jnp.float32(jnp.nan), before)[1:] == (0, True)


def test_a_settled_state_has_the_dtypes_of_another() -> None:
    like = {"count": jnp.int32(0), "over": jnp.array(False), "python": 0.0}
    found = foreign.settled({"count": 3, "over": jnp.int32(1), "python": jnp.float32(2)}, like)
    assert [leaf.dtype.name for leaf in jax.tree.leaves(found)] == ["int32", "bool", "float32"]
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(found))


def test_workers_are_refused() -> None:
    with pytest.raises(UserError, match=r"env.workers=serial: .* leave out env.workers"):
        foreign.check(BraxEnv(workers="serial"), "Brax", ["ant"])


def test_an_unknown_task_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"env.task=Ant2 is no task of Brax; did you mean ant\?"):
        foreign.check(BraxEnv(task="Ant2"), "Brax", ["ant", "hopper"])


def test_what_a_package_raises_becomes_one_line() -> None:
    with (
        pytest.raises(UserError, match="env.task=swimmer cannot be made by Brax: Unsupported"),
        foreign.made_by("Brax", "swimmer"),
    ):
        raise ValueError("Unsupported backend: spring.")


def test_a_package_may_warn_and_broadcast() -> None:
    with foreign.traced():
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
        state = {"key": foreign.plain_key(key), "none": jnp.zeros((0, 3)), "place": jnp.float32(0)}
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
