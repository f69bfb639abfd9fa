"""Arrays of a checkpoint, written and read by orbax."""

import contextlib
import functools
import logging
import math
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint._src.multihost import multihost

from dreamer.distributed import hosts, mesh
from dreamer.errors import UserError
from dreamer.replay import memory

_CHUNK_BYTES = 2**24  # compressed and written at once: larger ones cost memory, smaller ones time

# Threads inside of `process_settings`, and what restores the process when the last one leaves.
_lock, _inside, _restore = threading.Lock(), 0, contextlib.ExitStack()


@contextlib.contextmanager
def process_settings() -> Iterator[None]:
    """Settings of the process under which orbax is called; restored afterwards.

    Orbax logs every step, and a traceback of each error that it also raises. After a failed save,
    asyncio and Python report the writes that were still pending.
    """
    global _inside
    with _lock:
        if not _inside:
            _apply(_restore)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                _restore.close()


def _apply(stack: contextlib.ExitStack) -> None:
    """Changes the settings of the process until the stack is closed."""

    def replace(owner: Any, name: str, value: Any) -> None:
        stack.callback(setattr, owner, name, getattr(owner, name))
        setattr(owner, name, value)

    usual = sys.unraisablehook

    def report(found: Any) -> None:
        if str(found.exc_value) != "Event loop is closed":
            usual(found)

    replace(sys, "unraisablehook", report)
    for name in ("absl", "asyncio"):
        replace(logging.getLogger(name), "disabled", True)
    if hosts.count() > 1:
        # Each host has its own checkpoints. Orbax only knows checkpoints that all hosts write
        # together, numpy arrays on the first one alone (0.12.8, also with a `primary_host`). So
        # every process acts as the first one and waits for no other.
        replace(multihost, "process_index", lambda: 0)
        replace(multihost, "should_skip_process_sync", lambda processes=None: True)


@contextlib.contextmanager
def _handler(**options: Any) -> Iterator[Any]:
    with process_settings(), contextlib.closing(ocp.PyTreeCheckpointHandler(**options)) as handler:
        yield handler


def write(path: Path, arrays: Any) -> None:
    """Writes a pytree of numpy arrays into a new folder."""
    # The arrays are not used elsewhere, so that orbax need not copy them.
    plain = ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False)
    registry = ocp.type_handlers.create_type_handler_registry((np.ndarray, plain))
    chunked = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES), arrays)
    path.mkdir()
    with _handler(type_handler_registry=registry) as handler:
        handler.save(path, args=ocp.args.PyTreeSave(arrays, save_args=chunked))
        handler.finalize(path)


def read(path: Path, select: Callable[[Any], Any] | None = None, count: int | None = None) -> Any:
    """Arrays as nested dicts of numpy.

    Args:
        path: the folder that was written.
        select: chooses a part of the tree of their metadata; all by default.
        count: rows to read of arrays [N, T, ...], the first of each of the N; all by default.

    Raises:
        UserError: they do not fit into memory.
    """
    with _handler() as handler:
        stored = handler.metadata(path).tree
        selected = stored if select is None else select(stored)
        if count is None:
            _refuse_huge(selected)
        target = jax.tree.map(lambda x: np.zeros(0, x.dtype), selected)
        kinds = jax.tree.map(functools.partial(_kind, count=count), selected)
        args = ocp.args.PyTreeRestore(item=target, restore_args=kinds, partial_restore=True)
        return jax.device_get(handler.restore(path, args=args))


def read_like(path: Path, pattern: Any) -> Any:
    """Arrays as a pytree like `pattern`, which may have only some of them.

    Args:
        path: the folder that was written.
        pattern: numpy arrays are restored as such; other leaves as jax arrays on the leaf's
            sharding or, if it has none, on the first device.

    Raises:
        UserError: an array is missing, or has another shape or dtype.
    """
    with _handler() as handler:
        # Compared first: a forged file may claim shapes that are too large to be read.
        stored, wanted = map(ocp.tree.to_flat_dict, (handler.metadata(path).tree, pattern))
        for key, leaf in wanted.items():
            there, here = _form(stored[key]) if key in stored else "missing", _form(leaf)
            if there != here:
                name = ".".join(map(str, key))
                raise UserError(f"{name} is {there} in the checkpoint and {here} in this run")
        target = jax.tree.map(_target, pattern)
        kinds = ocp.checkpoint_utils.construct_restore_args(target)
        args = ocp.args.PyTreeRestore(item=target, restore_args=kinds, partial_restore=True)
        return handler.restore(path, args=args)


def structure(tree: Any) -> dict[str, str]:
    """Dtype and shape of every leaf by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): _form(leaf) for path, leaf in leaves}


def difference(there: dict[str, str], here: dict[str, str]) -> str:
    """The first difference between what a checkpoint has and what a run has, or ''."""
    for key in [*here, *there]:
        saved, own = there.get(key, "missing"), here.get(key, "missing")
        if saved != own:
            return f"{key} is {saved} in the checkpoint and {own} in this run"
    return ""


def _form(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"


def _target(leaf: Any) -> Any:
    if isinstance(leaf, np.ndarray):
        return leaf
    sharding = getattr(leaf, "sharding", None) or mesh.first_device()
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _kind(stored: Any, count: int | None) -> ocp.RestoreArgs:
    """How an array is restored: whole as numpy, or its first rows as a jax array, which orbax
    requires for a part."""
    if count is None or len(stored.shape) < 2:
        return ocp.RestoreArgs(restore_type=np.ndarray)
    num, length, *rest = stored.shape
    shape = (num, min(math.ceil(count / num), length), *rest)
    return ocp.ArrayRestoreArgs(sharding=mesh.first_device(), global_shape=shape, strict=False)


def _refuse_huge(stored: Any) -> None:
    """Refuses arrays that do not fit into memory: a small file may claim to hold them."""
    size = sum(math.prod(x.shape) * np.dtype(x.dtype).itemsize for x in jax.tree.leaves(stored))
    if size > (free := memory.available()):
        raise UserError(
            f"its arrays need {memory.gib(size)} of memory, and {memory.gib(free)} are free; free "
            "memory, or choose another checkpoint"
        )
