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
    """The inverse of `flatten`, except for empty inner dicts, which have no leaf."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        inner = tree
        for key in path[:-1]:
            inner = inner.setdefault(key, {})
        inner[path[-1]] = leaf
    return tree


def name(path: Path) -> str:
    """Formats a path for messages."""
    return ".".join(path)


def refuse_others(what: str, found: Any, expected: Mapping[str, Any]) -> None:
    """Refuses saved arrays that differ in form from those of a run, except float precision.

    Args:
      what: Their name in messages.
      found: Nested dict of arrays.
      expected: Nested mapping of leaves with their shapes and dtypes.

    Raises:
      UserError: Naming the first difference.
    """
    saved, here = flatten({what: found}), flatten({what: expected})
    for path in [*here, *saved]:
        forms = [_form(leaves[path]) if path in leaves else "missing" for leaves in (saved, here)]
        if forms[0] != forms[1]:
            raise UserError(f"{name(path)} is {forms[0]} in the checkpoint and {forms[1]} here")


def _form(leaf: Any) -> str:
    dtype = getattr(leaf, "dtype", None)
    if dtype is None:
        return type(leaf).__name__
    kind = np.dtype(dtype).name
    return f"{'float' if 'float' in kind else kind} {list(leaf.shape)}"
