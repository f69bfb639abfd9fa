"""Metrics and videos of a run, as files in the run folder: JSON lines, TensorBoard events, mp4."""

import json
import math
import os
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self, SupportsFloat

import numpy as np
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import masked_crc32c

from dreamer import files
from dreamer.errors import UserError, warn
from dreamer.files import write_atomic
from dreamer.run.video import to_gif, write_mp4

METRICS = "metrics.jsonl"
VIDEOS = "videos"
RGB = 3  # TensorBoard's number for the colour space


class Logger:
    """Writes metrics.jsonl, videos/NAME-STEP.mp4 and TensorBoard events into the run folder.

    A line of metrics.jsonl is {"step": environment steps, "time": seconds since 1970, name: value,
    ...}. A value that is NaN or infinite is null there, because JSON has no such numbers;
    TensorBoard keeps it.

    Once made, the logger never raises for a disk that is full or gone, or a folder that somebody
    removed: it warns once, drops what it cannot write and tries again at the next call, so that
    training goes on.

    Raises:
        UserError: the folder cannot be written.
    """

    def __init__(self, folder: str | Path, tensorboard: bool = True) -> None:
        self._folder = Path(folder)
        self._warned = False
        self._events: AppendFile | None = None
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if tensorboard:
                version = _record(Event(wall_time=time.time(), file_version="brain.Event:2"))
                name = f"events.out.tfevents.{time.time_ns()}"
                self._events = AppendFile(self._folder / name, version)
            self._metrics = AppendFile(self._folder / METRICS)
        except OSError as error:
            if self._events is not None:
                self._events.close()
            raise UserError(
                f"cannot write metrics in {self._folder}: {error.strerror or error}; "
                "make room or give it write permission, or choose another folder with run.dir=PATH"
            ) from error

    def truncate(self, step: int) -> None:
        """Drops what was logged beyond `step`, where the run resumes, and a line cut by a crash.

        To be called before the first write, in a fresh run too (-1 drops everything). Steps then
        never go backwards in the file, and TensorBoard shows no stale points. Videos stay; they are
        written over when their step comes again.

        Raises:
            UserError: the file cannot be rewritten.
        """
        path = self._folder / METRICS
        try:
            self._metrics.close()
            write_atomic(path, "".join(_lines_until(path, step)))
            self._metrics = AppendFile(path)
        except OSError as error:
            raise UserError(
                f"cannot rewrite {path}: {error.strerror or error}; make room or make it writable"
            ) from error
        start = SessionLog(status=SessionLog.START)
        self._append(
            self._events, _record(Event(wall_time=time.time(), step=step + 1, session_log=start))
        )

    def write(self, step: int, scalars: Mapping[str, SupportsFloat]) -> None:
        """Logs scalars at an environment step, which must not lie before the last one.

        Raises:
            ValueError: a scalar named step or time.
        """
        if taken := {"step", "time"} & scalars.keys():
            raise ValueError(
                f"{sorted(taken)} are the columns of every line and no names of scalars"
            )
        now = time.time()
        values: dict[str, float] = {
            name: value if type(value) is int else float(value) for name, value in scalars.items()
        }
        line: dict[str, float | None] = {"step": int(step), "time": round(now, 3)}
        line |= {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._append(self._metrics, json.dumps(line, allow_nan=False).encode() + b"\n")
        summary = Summary(
            value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        )
        self._append(self._events, _record(Event(wall_time=now, step=int(step), summary=summary)))

    def video(self, step: int, name: str, frames: np.ndarray, fps: float) -> None:
        """Writes videos/NAME-STEP.mp4 (slashes in names become dashes) and to TensorBoard's images.

        Args:
            frames: uint8 [T, H, W, 3], or [T, H, W, 1] for gray.
            fps: frames per second.
        """
        try:
            write_mp4(
                self._folder / VIDEOS / f"{name.replace('/', '-')}-{int(step)}.mp4", frames, fps
            )
        except OSError as error:
            self._warn(error)
        if self._events is not None:
            height, width = frames.shape[1:3]
            gif = to_gif(frames, fps)
            image = Summary.Image(
                height=height, width=width, colorspace=RGB, encoded_image_string=gif
            )
            summary = Summary(value=[Summary.Value(tag=name, image=image)])
            self._append(
                self._events, _record(Event(wall_time=time.time(), step=int(step), summary=summary))
            )

    def close(self) -> None:
        """Closes the files; what was written is already on disk."""
        self._metrics.close()
        if self._events is not None:
            self._events.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _append(self, file: "AppendFile | None", data: bytes) -> None:
        try:
            if file is not None:
                file.append(data)
        except OSError as error:
            self._warn(error)

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            warn(
                f"cannot write logs in {self._folder}: {error.strerror or error}; "
                "training goes on, metrics and videos are lost until it is mended"
            )


class Silent(Logger):
    """Writes nothing: of several hosts one logs."""

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
    """A file to which records are added whole or not at all, each reaching the system at once. When
    somebody removed it, a new one is begun.

    Args:
        path: the file.
        header: what it begins with.

    Raises:
        OSError: when made or appended to, if it cannot be written.
    """

    def __init__(self, path: Path, header: bytes = b"") -> None:
        self._path, self._header = path, header
        self._open()

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        self._file = open(files.open_regular(self._path, flags), "ab", buffering=0)  # noqa: SIM115
        size = self._file.seek(0, os.SEEK_END)
        try:
            self._write(b"\n")  # opening alone succeeds on a full disk
            self._file.truncate(size)
            if size == 0:
                self._write(self._header)
        except OSError:
            self.close()
            raise

    def append(self, data: bytes) -> None:
        if self._file.closed or not self._is_there():
            self.close()
            self._open()
        self._write(data)

    def _is_there(self) -> bool:
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            return False

    def _write(self, data: bytes) -> None:
        size = self._file.seek(0, os.SEEK_END)
        try:
            written = 0
            while written < len(data):
                written += self._file.write(data[written:])
        except OSError:
            self._file.truncate(size)
            raise

    def close(self) -> None:
        self._file.close()


def _record(event: Event) -> bytes:
    """An event framed as a TFRecord: length, its checksum, data, its checksum."""
    data = event.SerializeToString()
    length = struct.pack("<Q", len(data))
    return (
        length
        + struct.pack("<I", masked_crc32c(length))
        + data
        + struct.pack("<I", masked_crc32c(data))
    )


def _lines_until(path: Path, step: int) -> Iterator[str]:
    """The whole lines of a metrics file up to a step."""
    with open(files.open_regular(path), encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                if line.endswith("\n") and json.loads(line)["step"] <= step:
                    yield line
            except (ValueError, TypeError, KeyError, RecursionError):
                continue
