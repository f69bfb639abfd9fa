"""Replay in host memory: one ring of steps per environment, new windows first, then uniform ones.

Legend: N environments, B batch, L window length (one context step and T trained ones), S slots of a
ring. The four functions `init`, `add`, `sample`, `update` take a replay and return one, as those of
the device replay do. Here they work in place: the replay passed in is the replay returned.

All environments add a step together, so one counter numbers the steps of all rings: absolute step
`s` of environment `n` is stored in `ring[n, s % S]`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dreamer.errors import UserError
from dreamer.replay import memory, tree
from dreamer.system import allocator

# A partly filled ring is saved up to a multiple of this many steps, so that it divides into equal
# chunks. A saved ring is restored in blocks of this size, which bounds the temporary copy.
_BLOCK = 1024
GONE = -(2**30)  # first step of a window without stored rows, which `update` skips
_ADVICE = "resume with the configuration of the checkpoint or start in another run folder"


@dataclasses.dataclass(eq=False)
class Replay:
    """Rings and counters; only the functions of this module make and change them."""

    rings: dict[tree.Path, np.ndarray]  # [N, S, ...] each
    num_envs: int
    slots: int  # S, steps that a ring holds
    length: int  # L
    online: bool
    steps: int = 0  # added so far, per environment
    oldest: int = 0  # absolute step of the oldest stored row
    served: int = 0  # windows of the online queue that were sampled or lost, see `_pop_queue`

    @property
    def queueable(self) -> int:
        """Windows of the online queue that are complete, including those that were served."""
        return self.steps // self.length * self.num_envs


def init(
    spec: Mapping[str, Any],
    capacity: int,
    num_envs: int,
    length: int,
    online: bool = True,
    folder: Path | None = None,
    check: bool = True,
) -> Replay:
    """Returns an empty replay.

    Args:
        spec: Nested dict of (shape, dtype) of one step of one environment, with `is_first`,
            `is_last` and a group `latent`. Any numpy dtype, ml_dtypes.bfloat16 included.
        capacity: Steps over all environments; the oldest are dropped.
        num_envs: N, environments that add together.
        length: L, steps per sampled window, the context step included.
        online: Serve every new window once before sampling uniformly.
        folder: On whose disk the rings are stored, in unnamed files that end with the process;
            None is in memory.
        check: Whether to check that the memory suffices.

    Raises:
        UserError: The capacity does not fit into memory, or onto the disk.
        ValueError: It is less than one window per environment.
    """
    if capacity < length * num_envs:
        raise ValueError(f"{capacity=} holds no window of {length} steps in {num_envs} rings")
    slots = capacity // num_envs
    shapes = {
        path: ((num_envs, slots, *shape), np.dtype(dtype))
        for path, (shape, dtype) in tree.flatten(spec).items()
    }
    if folder is None:
        if check:
            memory.check_fits(spec, capacity)
        rings = {path: np.zeros(shape, dtype) for path, (shape, dtype) in shapes.items()}
    else:
        memory.check_disk(spec, capacity, folder)
        rings = {path: memory.on_disk(folder, *ring) for path, ring in shapes.items()}
    return Replay(rings, num_envs, slots, length, online)


def add(replay: Replay, transition: Mapping[str, Any]) -> Replay:
    """Appends one step of every environment and drops the oldest when full; in place.

    Args:
        transition: Nested dict like the spec, leaves [N, ...] with exactly the dtypes of the spec.

    Raises:
        ValueError: A key, shape or dtype is not the spec's.
    """
    rows = tree.flatten(transition)
    _check(rows, replay.rings, (replay.num_envs,))
    slot = replay.steps % replay.slots
    for path, ring in replay.rings.items():
        ring[:, slot] = rows[path]
    replay.steps += 1
    replay.oldest = max(replay.oldest, replay.steps - replay.slots)
    return replay


def num_items(replay: Replay) -> int:
    """Returns the number of complete windows stored, over all environments."""
    return replay.num_envs * max(0, replay.steps - replay.oldest - replay.length + 1)


def nbytes(replay: Replay) -> int:
    """Returns the bytes of the steps stored."""
    filled = min(replay.steps, replay.slots) / replay.slots
    return int(filled * sum(ring.nbytes for ring in replay.rings.values()))


def sample(
    replay: Replay, seed: Sequence[int], batch_size: int, online: bool = True
) -> tuple[Replay, dict[str, Any], np.ndarray]:
    """Samples windows from the online queue, then uniformly with replacement from all stored.

    A window is L consecutive steps of one environment and may span episodes. Where an episode was
    abandoned, the step before the next `is_first` becomes `is_last` inside the window. `is_first`
    of the first row stays as stored: that row is only the context whose latent starts the sequence,
    so no reset happens there.

    Args:
        seed: Integers in [0, 2**32) such as (run seed, update); trailing zeros have no effect. The
            batch depends on the content of the replay and on these alone.
        batch_size: B.
        online: Take from the queue; reports do not.

    Returns:
        The replay; nested dict of new arrays [B, L, ...], of the latents only the context row
        [B, 1, ...]; int64 [B, 2] of environment and absolute first step of each window, for
        `update`.

    Raises:
        ValueError: No complete window is stored.
    """
    if not num_items(replay):
        raise ValueError("cannot sample: the replay holds no complete window yet")
    queued = _pop_queue(replay, batch_size if online else 0)
    index = np.concatenate([queued, _draw_uniform(replay, seed, batch_size - len(queued))])
    rows = _rows(replay, index, np.arange(replay.length))
    batch = {
        path: np.take(_by_row(ring), rows[:, :1] if path[0] == "latent" else rows, axis=0)
        for path, ring in replay.rings.items()
    }
    batch["is_last",][:, :-1] |= batch["is_first",][:, 1:]
    return replay, tree.unflatten(batch), index


def update(replay: Replay, index: np.ndarray, latent: Mapping[str, Any]) -> Replay:
    """Writes new latents to the trained rows of sampled windows; in place.

    Rows that were overwritten since the windows were sampled are skipped. A row of several windows
    of the batch gets the latent of the last of them.

    Args:
        index: int64 [B, 2] as returned by `sample`.
        latent: Leaves [B, L - 1, ...] for the steps first + 1 to first + L - 1, with the dtypes of
            the spec.

    Raises:
        ValueError: A key, shape or dtype is not the spec's.
    """
    index = np.asarray(index)
    values = tree.flatten({"latent": latent})
    rings = {path: ring for path, ring in replay.rings.items() if path[0] == "latent"}
    _check(values, rings, (len(index), replay.length - 1))
    offsets = np.arange(1, replay.length)
    stored = np.flatnonzero(index[:, 1:] + offsets >= replay.oldest)
    # numpy guarantees no order of assignment for repeated rows: keep the last occurrence of each.
    rows = _rows(replay, index, offsets).ravel()[stored]
    rows, reversed_last = np.unique(rows[::-1], return_index=True)
    source = stored[len(stored) - 1 - reversed_last]
    for path, ring in rings.items():
        value = np.asarray(values[path])
        _by_row(ring)[rows] = value.reshape(-1, *value.shape[2:])[source]
    return replay


def get_state(replay: Replay, copy: bool = True) -> dict[str, Any]:
    """Returns the filled part of the replay, rounded up, and its counters: nested dict of arrays.

    Args:
        copy: Return contiguous copies, so that the replay may change while they are saved. False
            returns read-only views that cost no memory, to be saved before the next `add` or
            `update`.
    """
    blocks = max(1, -(-replay.steps // _BLOCK))
    filled = min(blocks * _BLOCK, replay.slots)
    counters = {name: getattr(replay, name) for name in ("steps", "oldest", "served", "length")}
    parts = {path: ring[:, :filled] for path, ring in replay.rings.items()}
    if copy:
        parts = {path: part.copy() for path, part in parts.items()}
    else:
        for part in parts.values():
            part.flags.writeable = False
    return {
        "rings": tree.unflatten(parts),
        "counters": {name: np.array([value], np.int64) for name, value in counters.items()},
    }


def set_state(replay: Replay, state: dict[str, Any]) -> Replay:
    """Restores `get_state`, so that every later sample is the same. In place.

    It empties `state` and frees each array once restored: two replays might not fit into memory.
    The capacity may differ, the newest steps that fit are kept. Float latents are cast to the
    precision of this run. A queue of windows of another length is dropped.

    Raises:
        UserError: The state was saved with another spec or number of environments.
    """
    parts = tree.flatten(state["rings"])
    _check_saved(parts, replay)
    counters = counters_of(state)
    state.clear()
    replay.steps = counters["steps"]
    replay.oldest = max(counters["oldest"], replay.steps - replay.slots)
    for path in list(parts):
        ring = replay.rings[path]
        part = parts.pop(path).astype(ring.dtype, copy=False)
        replay.rings[path] = _restored(ring, part, replay.oldest, replay.steps)
        del part
    allocator.release()
    same_windows = counters["length"] == replay.length
    replay.served = counters["served"] if same_windows else replay.queueable
    return replay


def counters_of(state: Mapping[str, Any]) -> dict[str, int]:
    """Returns the counters of a saved replay.

    Raises:
        UserError: They do not fit its rings.
    """
    saved, rings = state["counters"], tree.flatten(state["rings"])
    sizes = {np.shape(part)[:2] for part in rings.values()}
    filled = {size[1] if len(size) == 2 else 0 for size in sizes}
    found = {
        name: int(saved[name][0])
        for name in ("steps", "oldest", "served", "length")
        if np.shape(saved.get(name)) == (1,) and np.issubdtype(saved[name].dtype, np.integer)
    }
    whole = len(found) == 4 and len(sizes) == 1 and min(found.values()) >= 0
    if not whole or not found["steps"] - min(filled) <= found["oldest"] <= found["steps"] < 2**62:
        text = ", ".join(f"{name}={value}" for name, value in found.items())
        raise UserError(
            f"cannot restore the replay: its counters ({text}) do not fit rings of "
            f"{', '.join(map(str, sorted(filled)))} steps; choose another checkpoint"
        )
    return found


def check_windows(replay: Replay, what: str, saved: Mapping[str, Any]) -> None:
    """Refuses saved windows that do not fit this replay.

    Args:
        what: Their name in messages.
        saved: Integers `index` [K, B, 2], see `sample`; and `latent`, leaves [K, B, L - 1, ...], or
            `data`, leaves [K, B, L, ...] and of the latents only [K, B, 1, ...].

    Raises:
        UserError: Describing the difference.
    """
    index = saved.get("index")
    if not isinstance(index, np.ndarray) or index.ndim != 3 or index.shape[2] != 2:
        raise UserError(f"{what}.index is not an array [calls, windows, 2]")
    env, first = index[..., 0], index[..., 1]
    inside = (env >= 0) & (env < replay.num_envs) & (first + replay.length <= replay.steps)
    if index.dtype != np.int64 or not inside.all():
        raise UserError(f"{what}.index has windows that the replay lacks")
    part, expected = ("latent" if "latent" in saved else "data"), {}
    for path, ring in replay.rings.items():
        if part == "data":
            length, place = 1 if path[0] == "latent" else replay.length, (part, *path)
        elif path[0] == part:
            length, place = replay.length - 1, path
        else:
            continue
        shape = *index.shape[:2], length, *ring.shape[2:]
        expected[place] = np.broadcast_to(np.zeros((), ring.dtype), shape)
    tree.refuse_others(what, {part: saved.get(part)}, tree.unflatten(expected))


def _pop_queue(replay: Replay, most: int) -> np.ndarray:
    """Takes up to `most` windows [K, 2] from the online queue, oldest first, environments in turn.

    The queue has every L-th window of every environment: its entry q starts at step q // N * L of
    environment q % N. So `served` and the number of steps define it.
    """
    end = replay.queueable
    # Windows that lost their first step, rounded up.
    lost = -(-replay.oldest // replay.length) * replay.num_envs
    start = min(max(replay.served, lost), end) if replay.online else end
    replay.served = min(start + most, end)
    entry = np.arange(start, replay.served, dtype=np.int64)
    return np.stack([entry % replay.num_envs, entry // replay.num_envs * replay.length], axis=1)


def _draw_uniform(replay: Replay, seed: Sequence[int], count: int) -> np.ndarray:
    """Draws `count` windows [K, 2] uniformly, with replacement."""
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed)))
    item = generator.integers(num_items(replay), size=count)
    return np.stack([item % replay.num_envs, replay.oldest + item // replay.num_envs], axis=1)


def _rows(replay: Replay, index: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Returns the rows [B, K] of steps [K] of windows [B, 2] in a ring viewed as [N * S, ...]."""
    return index[:, :1] * replay.slots + (index[:, 1:] + offsets) % replay.slots


def _by_row(ring: np.ndarray) -> np.ndarray:
    """Returns the view [N * S, ...] of a ring [N, S, ...]."""
    return ring.reshape(-1, *ring.shape[2:])


def _restored(ring: np.ndarray, part: np.ndarray, oldest: int, steps: int) -> np.ndarray:
    """Returns the ring [N, S, ...] with steps oldest to steps - 1 of `part` in their slots."""
    whole = part.shape == ring.shape and part.flags.writeable and part.flags.c_contiguous
    if whole and not isinstance(ring, np.memmap):
        return part  # a full ring of the same size: a second copy might not fit into memory
    for start in range(oldest, steps, _BLOCK):
        step = np.arange(start, min(start + _BLOCK, steps))
        ring[:, step % ring.shape[1]] = part[:, step % part.shape[1]]
    return ring


def _check(
    values: Mapping[tree.Path, Any], rings: Mapping[tree.Path, np.ndarray], leading: tuple[int, ...]
) -> None:
    """Refuses keys, shapes or dtypes other than the spec's: numpy would broadcast and cast."""
    if values.keys() != rings.keys():
        names = sorted(tree.name(path) for path in values.keys() ^ rings.keys())
        raise ValueError(f"keys that are not both in the spec and in the data: {', '.join(names)}")
    for path, ring in rings.items():
        shape, dtype = np.shape(values[path]), values[path].dtype
        expected = (*leading, *ring.shape[2:])
        if shape != expected or dtype != ring.dtype:
            raise ValueError(
                f"{tree.name(path)} is {dtype} {list(shape)}, "
                f"the spec says {ring.dtype} {list(expected)}"
            )


def _check_saved(parts: Mapping[tree.Path, np.ndarray], replay: Replay) -> None:
    """Refuses another spec or number of environments, naming the first difference."""
    cannot = "cannot restore the replay:"
    for path in sorted(parts.keys() ^ replay.rings.keys()):
        where = "saved replay" if path in parts else "run"
        raise UserError(f"{cannot} only the {where} has the key {tree.name(path)}; {_ADVICE}")
    for path, ring in replay.rings.items():
        part = parts[path]
        if not isinstance(part, np.ndarray) or part.ndim < 2:
            raise UserError(f"{cannot} {tree.name(path)} is not a ring; {_ADVICE}")
        saved, expected = [(x.dtype, x.shape[2:]) for x in (part, ring)]
        # Float latents are cast: another device may compute them in another precision.
        cast = path[0] == "latent" and np.uint8 not in (part.dtype, ring.dtype)
        if saved[1] != expected[1] or (saved[0] != expected[0] and not cast):
            raise UserError(
                f"{cannot} {tree.name(path)} was saved as {saved[0]} "
                f"{list(saved[1])} but the run needs {expected[0]} {list(expected[1])}; {_ADVICE}"
            )
        if len(part) != replay.num_envs:
            raise UserError(
                f"{cannot} saved with env.num_envs={len(part)} but the run has "
                f"env.num_envs={replay.num_envs}; {_ADVICE}"
            )
