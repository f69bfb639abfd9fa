"""What all suites of environments written in JAX by others need."""

import contextlib
import warnings
from collections.abc import Collection, Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array

from dreamer.config.env import WORKERS, EnvBase
from dreamer.errors import UserError, nearest

NEVER = 2**30  # steps
Tree = TypeVar("Tree")


def check(config: EnvBase, package: str, tasks: Collection[str]) -> None:
    """Refuses what no environment written in JAX can do, and a task that the package lacks.

    Raises:
      UserError: workers were asked for, or the task is unknown.
    """
    for key in WORKERS:
        if getattr(config, key) != EnvBase.model_fields[key].default:
            raise UserError(
                f"env.{key}={getattr(config, key)}: environments written in JAX step in compiled "
                f"code, without workers; leave out env.{key}"
            )
    if config.task not in tasks:
        raise UserError(
            f"env.task={config.task} is no task of {package}{nearest(config.task, tasks)}; "
            f"tasks are {', '.join(tasks)}"
        )


@contextlib.contextmanager
def made_by(package: str, task: str) -> Iterator[None]:
    """Turns whatever a package raises while it makes a task, which the user asked for, into one
    line, and says nothing of what it warns of."""
    try:
        with traced():
            yield
    except Exception as error:
        raise UserError(f"env.task={task} cannot be made by {package}: {error}") from error


@contextlib.contextmanager
def traced() -> Iterator[None]:
    """Lets a package be traced with the shapes and dtypes that it mixes."""
    with jax.numpy_rank_promotion("allow"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def plain_key(key: Array) -> Array:
    """The data of a random key, uint32 [2]: packages keep it in their states, which are saved."""
    return jax.random.key_data(key)


def settled(state: Tree, like: Tree) -> Tree:
    """A state with the dtypes of `like`, which a compiled loop demands of every step alike."""
    return jax.tree.map(lambda x, y: jnp.asarray(x, jnp.result_type(y)), state, like)


def image(pixels: Array, size: tuple[int, int]) -> Array:
    """Pixels (H, W, C) from 0 to 255 as uint8 of another size; shrinking averages all of them."""
    shape = (*size, pixels.shape[-1])
    if pixels.shape != shape:
        pixels = jax.image.resize(pixels.astype(jnp.float32), shape, "linear", antialias=True)
    return jnp.clip(jnp.round(pixels), 0, 255).astype(jnp.uint8)


def finite(seen: Any, reward: Array, before: Any) -> tuple[Any, Array, Array]:
    """Observation and reward of physics that may blow up: what was seen `before`, and 0, if one of
    them is not finite; and whether that is so. A NaN would spread from replay into every weight."""
    leaves = [*jax.tree.leaves(seen), reward]
    broken = ~jnp.all(jnp.array([jnp.isfinite(leaf).all() for leaf in leaves]))
    seen = jax.tree.map(lambda new, old: jnp.where(broken, old, new), seen, before)
    return seen, jnp.where(broken, 0, reward), broken
