"""A tree of tensors packed into the rows of one array.

An optimiser over a hundred small tensors launches several kernels for each; on one array it
launches a handful in total. Each tensor starts a new row, so that its norm can be computed from
the norms of its rows.

Legend: R rows, W values per row, P tensors.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

Tree = Any
WIDTH = 512


@dataclass(frozen=True)
class Packing:
    """Layout of a tree of tensors in an array [R, W]; last rows are padded with zeros."""

    treedef: jax.tree_util.PyTreeDef
    shapes: Sequence[tuple[int, ...]]

    @classmethod
    def of(cls, tree: Tree) -> Self:
        """The layout of trees like this one, of arrays or shapes."""
        leaves, treedef = jax.tree.flatten(tree)
        return cls(treedef, tuple(leaf.shape for leaf in leaves))

    @property
    def _rows(self) -> np.ndarray:
        """Rows of each tensor: [P]."""
        return np.array([-(-int(np.prod(shape)) // WIDTH) for shape in self.shapes])

    @property
    def _shape(self) -> tuple[int, int]:
        """[R, W] of the packed array."""
        return int(self._rows.sum()), WIDTH

    def pack(self, tree: Tree) -> Array:
        """A tree of this layout, float32, as [R, W]."""
        parts = []
        for leaf, rows in zip(self.treedef.flatten_up_to(tree), self._rows, strict=True):
            parts += [leaf.reshape(-1), jnp.zeros(rows * WIDTH - leaf.size, leaf.dtype)]
        return jnp.concatenate(parts).reshape(-1, WIDTH)

    def unpack(self, packed: Array) -> Tree:
        """The inverse of `pack`."""
        chex.assert_shape(packed, self._shape)
        flat, leaves = packed.reshape(-1), []
        for shape, rows in zip(self.shapes, self._rows, strict=True):
            leaves.append(flat[: int(np.prod(shape))].reshape(shape))
            flat = flat[rows * WIDTH :]
        return self.treedef.unflatten(leaves)

    def norms(self, packed: Array) -> Array:
        """The Euclidean norm of each tensor: [R, W] to [P]."""
        chex.assert_shape(packed, self._shape)
        squares = jnp.square(packed).sum(-1)
        rows = self._rows[:, None]
        first = np.cumsum(rows)[:, None] - rows
        index = jnp.arange(rows.max())[None]
        found = squares.at[first + index].get(mode="clip")
        return jnp.sqrt(jnp.where(index < rows, found, 0).sum(-1))

    def rows_of(self, tensors: np.ndarray) -> np.ndarray:
        """A constant per tensor as a constant per row: [P] to [R, 1]."""
        chex.assert_shape(tensors, (len(self.shapes),))
        return np.repeat(tensors, self._rows)[:, None]

    def spread(self, values: Array) -> Array:
        """A value per tensor to a value per row: [P] to [R, 1]."""
        chex.assert_shape(values, (len(self.shapes),))
        ends = np.cumsum(self._rows)
        tensor = jnp.searchsorted(ends, jnp.arange(ends[-1]), side="right", method="compare_all")
        return values[tensor][:, None]
