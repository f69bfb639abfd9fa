"""Metrics and videos of a run, as files in the run folder: JSON lines, TensorBoard events, mp4."""

import contextlib
import json
import math
import os
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, Self, SupportsFloat

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


class Writer(Protocol):
    """A backend of `Logger`, which opens it, and survives any OSError after that."""

    def open(self) -> None: ...

    def truncate(self, step: int) -> None:
        """Drops what was logged beyond a step, before the first write."""
        ...

    def write(self, step: int, now: float, scalars: Mapping[str, float]) -> None: ...

    def video(self, step: int, name: str, frames: np.ndarray, fps: float) -> None: ...

    def close(self) -> None: ...


class Logger:
    """Writes metrics and videos into the run folder, by its writers.

    Once created, the logger never raises for a disk that is full or missing, or a folder that was
    removed: it warns once, drops what it cannot write and tries again at the next call, so that
    training continues.

    Args:
        folder: of the run.
        tensorboard: whether to write TensorBoard events too.

    Raises:
        UserError: the folder cannot be written.
    """

    def __init__(self, folder: str | Path, tensorboard: bool = True) -> None:
        self._folder = Path(folder)
        self._warned = False
        # Another backend goes here.
        events = (TensorBoard(self._folder),) if tensorboard else ()
        self._writers: tuple[Writer, ...] = (JsonLines(self._folder), Mp4(self._folder), *events)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for writer in self._writers:
                writer.open()
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
            UserError: a file cannot be rewritten.
        """
        for writer in self._writers:
            try:
                writer.truncate(step)
            except OSError as error:
                path = error.filename or self._folder
                raise UserError(
                    f"cannot rewrite {path}: {error.strerror or error}; make room or make it "
                    "writable"
                ) from error

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
        for writer in self._writers:
            with self._surviving():
                writer.write(int(step), now, values)

    def video(self, step: int, name: str, frames: np.ndarray, fps: float) -> None:
        """Logs a video.

        Args:
            frames: uint8 [T, H, W, 3], or [T, H, W, 1] for gray.
            fps: frames per second.
        """
        for writer in self._writers:
            with self._surviving():
                writer.video(int(step), name, frames, fps)

    def close(self) -> None:
        """Closes the files; everything written is already on disk."""
        for writer in self._writers:
            writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

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
        self._writers = ()


class JsonLines:
    """metrics.jsonl, of lines {"step": environment steps, "time": seconds since 1970, name: value,
    ...}. A value that is NaN or infinite is null, because JSON has no such numbers."""

    def __init__(self, folder: Path) -> None:
        self._file = AppendFile(folder / METRICS)
        self.open, self.close = self._file.open, self._file.close

    def truncate(self, step: int) -> None:
        files.write_atomic(self._file.path, "".join(_lines_until(self._file.path, step)))

    def write(self, step: int, now: float, scalars: Mapping[str, float]) -> None:
        line: dict[str, float | None] = {"step": step, "time": round(now, 3)}
        line |= {name: value if math.isfinite(value) else None for name, value in scalars.items()}
        self._file.append(json.dumps(line, allow_nan=False).encode() + b"\n")

    def video(self, step: int, name: str, frames: np.ndarray, fps: float) -> None:
        """Has no place for one."""


class Mp4:
    """videos/NAME-STEP.mp4; slashes in names become dashes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / VIDEOS

    def open(self) -> None:
        """Each video is a file."""

    def truncate(self, step: int) -> None:
        """Keeps all."""

    def write(self, step: int, now: float, scalars: Mapping[str, float]) -> None:
        """Has no place for them."""

    def video(self, step: int, name: str, frames: np.ndarray, fps: float) -> None:
        write_mp4(self._folder / f"{name.replace('/', '-')}-{step}.mp4", frames, fps)

    def close(self) -> None:
        """Nothing is open."""


class TensorBoard:
    """An events file, with videos as animated images."""

    def __init__(self, folder: Path) -> None:
        version = _record(Event(wall_time=time.time(), file_version="brain.Event:2"))
        name = f"events.out.tfevents.{time.time_ns()}"
        self._file = AppendFile(folder / name, header=version)
        self.open, self.close = self._file.open, self._file.close
        self._start: int | None = None  # step of a mark that is still to be written

    def truncate(self, step: int) -> None:
        self._start = step + 1

    def write(self, step: int, now: float, scalars: Mapping[str, float]) -> None:
        points = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        self._append(step, now, summary=Summary(value=points))

    def video(self, step: int, name: str, frames: np.ndarray, fps: float) -> None:
        height, width = frames.shape[1:3]
        gif = to_gif(frames, fps)
        image = Summary.Image(height=height, width=width, colorspace=RGB, encoded_image_string=gif)
        self._append(step, summary=Summary(value=[Summary.Value(tag=name, image=image)]))

    def _append(self, step: int, now: float | None = None, **content: Any) -> None:
        now = now or time.time()
        if self._start is not None:  # TensorBoard drops what earlier files have from there on
            start = SessionLog(status=SessionLog.START)
            self._file.append(_record(Event(wall_time=now, step=self._start, session_log=start)))
            self._start = None
        self._file.append(_record(Event(wall_time=now, step=step, **content)))


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
        self.path, self._header = path, header
        self._descriptor = -1

    def open(self) -> None:
        self.close()
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        self._descriptor = files.open_regular(self.path, flags)
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
            return os.path.samestat(os.stat(self.path), os.fstat(self._descriptor))
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
