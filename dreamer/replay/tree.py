"""Nested dicts of arrays as flat dicts from path to leaf, without jax."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dreamer.errors import UserError

Path = tuple[str, ...]


def flatten(tree: Mapping[str, Any]) -> dict[Path, Any]:
    """Returns the leaves of a nested mapping by path; what is not a mapping is a leaf."""
    flat: dict[Path, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update({(key, *path): leaf for path, leaf in flatten(value).items()})
        else:
            flat[(key,)] = value
    return flat


def unflatten(flat: Mapping[Path, Any]) -> dict[str, Any]:
    """The inverse of `flatten`; an empty inner dict has no leaf and does not come back."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        inner = tree
        for key in path[:-1]:
            inner = inner.setdefault(key, {})
        inner[path[-1]] = leaf
    return tree


def name(path: Path) -> str:
    """How a path is written in messages."""
    return ".".join(path)


def refuse_others(what: str, found: Any, wanted: Mapping[str, Any]) -> None:
    """Refuses saved arrays that are not like those of a run; floats may have another precision.

    Args:
      what: they are called in messages.
      found: nested dict of arrays.
      wanted: nested mapping of what has their shapes and dtypes.

    Raises:
      UserError: the first difference.
    """
    there = flatten({what: found})
    here = flatten({what: wanted})
    for path in [*here, *there]:
        forms = [_form(leaves[path]) if path in leaves else "missing" for leaves in (there, here)]
        if forms[0] != forms[1]:
            raise UserError(f"{name(path)} is {forms[0]} there and {forms[1]} here")


def _form(leaf: Any) -> str:
    dtype = getattr(leaf, "dtype", None)
    if dtype is None:
        return type(leaf).__name__
    kind = np.dtype(dtype).name
    return f"{'float' if 'float' in kind else kind} {list(leaf.shape)}"
