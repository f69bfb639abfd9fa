"""The physics of environments written in JAX, and what their suites share."""

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp
from jax import Array

from dreamer.envs.base import Specs

NEVER = 2**30  # steps
Tree = TypeVar("Tree")
Observation = Mapping[str, Array]
Action = Mapping[str, Array]


class Simulator(Protocol):
    """The physics of one environment, without episodes."""

    observations: Specs
    actions: Specs
    limit: int  # steps of an episode; 0 is no limit

    def reset(self, key: Array) -> tuple[Any, Observation]:
        """Returns a first state and its observation, leaves as in `observations`."""

    def step(self, key: Array, state: Any, action: Action) -> tuple[Any, Observation, Array, Array]:
        """Returns the next state, its observation, the reward, and whether it is terminal."""


@contextlib.contextmanager
def traced() -> Iterator[None]:
    """Lets a package mix shapes and dtypes while it is traced, and hides its warnings."""
    with jax.numpy_rank_promotion("allow"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def plain_key(key: Array) -> Array:
    """The data of a random key, uint32 [2]: packages keep it in their states, which are saved."""
    return jax.random.key_data(key)


def settled(state: Tree, like: Tree) -> Tree:
    """A state with the dtypes of `like`: a compiled loop needs the same dtypes at every step."""
    return jax.tree.map(lambda x, y: jnp.asarray(x, jnp.result_type(y)), state, like)


def image(pixels: Array, size: tuple[int, int]) -> Array:
    """Pixels (H, W, C) from 0 to 255 as uint8 of another size; shrinking averages all of them."""
    shape = (*size, pixels.shape[-1])
    if pixels.shape != shape:
        pixels = jax.image.resize(pixels.astype(jnp.float32), shape, "linear", antialias=True)
    return jnp.clip(jnp.round(pixels), 0, 255).astype(jnp.uint8)


def finite(observation: Any, reward: Array, before: Any) -> tuple[Any, Array, Array]:
    """Replaces diverged physics: a NaN would spread from the replay into every weight.

    Returns:
      Observation and reward, or the observation `before` and 0 if any of them is not finite; and
      whether that is so.
    """
    leaves = [*jax.tree.leaves(observation), reward]
    broken = ~jnp.all(jnp.array([jnp.isfinite(leaf).all() for leaf in leaves]))
    observation = jax.tree.map(lambda new, old: jnp.where(broken, old, new), observation, before)
    return observation, jnp.where(broken, 0, reward), broken
