"""Metrics and videos of a run, as files in the run folder: JSON lines, TensorBoard events, mp4."""

import contextlib
import json
import math
import os
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self, SupportsFloat

import numpy as np
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import masked_crc32c

from dreamer.errors import UserError, warn
from dreamer.rollout.video import to_gif, write_mp4
from dreamer.system import files

METRICS = "metrics.jsonl"
VIDEOS = "videos"
RGB = 3  # TensorBoard's number for the colour space


class Logger:
    """Writes metrics.jsonl, videos/NAME-STEP.mp4 and TensorBoard events into the run folder.

    A line of metrics.jsonl is {"step": environment steps, "time": seconds since 1970, name: value,
    ...}. A value that is NaN or infinite is null there, because JSON has no such numbers;
    TensorBoard keeps it.

    Once created, the logger never raises for a disk that is full or missing, or a folder that was
    removed: it warns once, drops what it cannot write and tries again at the next call, so that
    training continues.

    Raises:
        UserError: the folder cannot be written.
    """

    def __init__(self, folder: str | Path, tensorboard: bool = True) -> None:
        self._folder = Path(folder)
        self._warned = False
        self._metrics = AppendFile(self._folder / METRICS)
        version = _record(Event(wall_time=time.time(), file_version="brain.Event:2"))
        events = self._folder / f"events.out.tfevents.{time.time_ns()}"
        self._events = AppendFile(events, header=version) if tensorboard else None
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._metrics.open()
            if self._events:
                self._events.open()
        except OSError as error:
            self.close()
            raise UserError(
                f"cannot write metrics in {self._folder}: {error.strerror or error}; "
                "make room or give it write permission, or choose another folder with run.dir=PATH"
            ) from error

    def truncate(self, step: int) -> None:
        """Drops what was logged beyond `step`, where the run resumes, and a line cut by a crash.

        Call it before the first write, in a fresh run too (-1 drops everything): steps then never
        decrease in the file, and TensorBoard shows no stale points. Videos stay until the run
        overwrites them at the same step.

        Raises:
            UserError: the file cannot be rewritten.
        """
        path = self._folder / METRICS
        try:
            files.write_atomic(path, "".join(_lines_until(path, step)))
        except OSError as error:
            raise UserError(
                f"cannot rewrite {path}: {error.strerror or error}; make room or make it writable"
            ) from error
        self._event(step + 1, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, scalars: Mapping[str, SupportsFloat]) -> None:
        """Logs scalars at an environment step, which must not be less than the last one.

        Raises:
            ValueError: a scalar named step or time.
        """
        if taken := {"step", "time"} & scalars.keys():
            raise ValueError(
                f"{sorted(taken)} are columns of every line, and cannot be names of scalars"
            )
        now = time.time()
        values: dict[str, float] = {
            name: value if type(value) is int else float(value) for name, value in scalars.items()
        }
        line: dict[str, float | None] = {"step": int(step), "time": round(now, 3)}
        line |= {name: value if math.isfinite(value) else None for name, value in values.items()}
        with self._surviving():
            self._metrics.append(json.dumps(line, allow_nan=False).encode() + b"\n")
        points = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._event(step, summary=Summary(value=points))

    def video(self, step: int, name: str, frames: np.ndarray, fps: float) -> None:
        """Writes videos/NAME-STEP.mp4 (slashes in names become dashes) and an image in TensorBoard.

        Args:
            frames: uint8 [T, H, W, 3], or [T, H, W, 1] for gray.
            fps: frames per second.
        """
        file = f"{name.replace('/', '-')}-{int(step)}.mp4"
        with self._surviving():
            write_mp4(self._folder / VIDEOS / file, frames, fps)
        if self._events:
            height, width = frames.shape[1:3]
            image = Summary.Image(
                height=height,
                width=width,
                colorspace=RGB,
                encoded_image_string=to_gif(frames, fps),
            )
            self._event(step, summary=Summary(value=[Summary.Value(tag=name, image=image)]))

    def close(self) -> None:
        """Closes the files; everything written is already on disk."""
        self._metrics.close()
        if self._events:
            self._events.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _event(self, step: int, **content: Any) -> None:
        if self._events:
            event = Event(wall_time=time.time(), step=int(step), **content)
            with self._surviving():
                self._events.append(_record(event))

    @contextlib.contextmanager
    def _surviving(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._warned:
                self._warned = True
                warn(
                    f"cannot write logs in {self._folder}: {error.strerror or error}; "
                    "training continues, metrics and videos are lost until it is fixed"
                )


class Silent(Logger):
    """Writes nothing; for all hosts except the first."""

    def __init__(self) -> None:
        pass

    def truncate(self, step: int) -> None:
        pass

    def write(self, step: int, scalars: Mapping[str, SupportsFloat]) -> None:
        pass

    def video(self, step: int, name: str, frames: np.ndarray, fps: float) -> None:
        pass

    def close(self) -> None:
        pass


class AppendFile:
    """A file to which data is appended whole or not at all, and reaches the system at once.

    It is never written through a link, and recreated if it was removed.

    Args:
        path: the file.
        header: its first bytes.

    Raises:
        OSError: when opened or appended to, if it cannot be written.
    """

    def __init__(self, path: Path, header: bytes = b"") -> None:
        self._path, self._header = path, header
        self._descriptor = -1

    def open(self) -> None:
        self.close()
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        self._descriptor = files.open_regular(self._path, flags)
        size = os.fstat(self._descriptor).st_size
        self._write(b"\n")  # opening alone succeeds on a full disk
        os.ftruncate(self._descriptor, size)

    def append(self, data: bytes) -> None:
        if not self._is_open():
            self.open()
        self._write(data)

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _is_open(self) -> bool:
        """Whether the file that is open is still the one at the path."""
        with contextlib.suppress(OSError):
            return os.path.samestat(os.stat(self._path), os.fstat(self._descriptor))
        return False

    def _write(self, data: bytes) -> None:
        size = os.fstat(self._descriptor).st_size
        rest = data if size else self._header + data
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError:
            os.ftruncate(self._descriptor, size)
            raise


def _record(event: Event) -> bytes:
    """An event framed as a TFRecord: length, its checksum, data, its checksum.

    tensorboardX's own writers do not fit: they write through links, leave half of a record on a
    full disk, after which TensorBoard reads no more, and their thread ends there, after which
    training waits forever for room in the queue.
    """
    data = event.SerializeToString()
    length = struct.pack("<Q", len(data))
    checksums = [struct.pack("<I", masked_crc32c(part)) for part in (length, data)]
    return length + checksums[0] + data + checksums[1]


def _lines_until(path: Path, step: int) -> Iterator[str]:
    """Complete lines of a metrics file up to a step."""
    with open(files.open_regular(path), encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                if line.endswith("\n") and json.loads(line)["step"] <= step:
                    yield line
            except (ValueError, TypeError, KeyError, RecursionError):
                continue
