"""Nested dicts of arrays as flat dicts from path to leaf, without jax."""

from collections.abc import Mapping
from typing import Any

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
