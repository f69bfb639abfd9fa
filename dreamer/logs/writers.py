"""Metrics and videos of a run, as files in the run folder: JSON lines, TensorBoard events, mp4."""

import contextlib
import io
import json
import math
import os
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, SupportsFloat

import numpy as np
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import masked_crc32c

from dreamer.errors import warn
from dreamer.logs.video import to_gif, write_mp4
from dreamer.system import files

METRICS = "metrics.jsonl"
VIDEOS = "videos"
RGB = 3  # TensorBoard's number for the colour space


class Writer:
    """A backend of `Logger`; after `open`, an OSError of it loses what it was to write. What a
    backend does not support it leaves out."""

    def open(self) -> None:
        """Prepares for writing; an OSError means that nothing can be written."""

    def truncate(self, step: int) -> None:
        """Drops what was logged beyond a step, before the first write."""

    def write(self, step: int, now: float, scalars: Mapping[str, float]) -> None:
        """Writes scalars by name."""

    def video(self, step: int, name: str, frames: np.ndarray, fps: float) -> None:
        """Writes a video, uint8 [T, H, W, C] with C of 1 or 3."""

    def close(self) -> None:
        """Releases what is open."""


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
        self._writers: list[Writer] = [JsonLines(self._folder), Mp4(self._folder)]
        if tensorboard:
            self._writers.append(TensorBoard(self._folder))
        # Another backend goes here.
        with self._explaining_refusal(), contextlib.ExitStack() as stack:
            self._folder.mkdir(parents=True, exist_ok=True)
            files.probe(self._folder)
            for writer in self._writers:
                stack.callback(writer.close)
                writer.open()
            stack.pop_all()

    def truncate(self, step: int) -> None:
        """Drops what was logged beyond `step`, where the run resumes, and a line cut by a crash.

        Call it before the first write, in a fresh run too (-1 drops everything): steps then never
        decrease in the file, and TensorBoard shows no stale points. Videos stay until the run
        overwrites them at the same step.

        Raises:
            UserError: a file cannot be rewritten.
        """
        for writer in self._writers:
            with self._explaining_refusal():
                writer.truncate(step)

    def write(self, step: int, scalars: Mapping[str, SupportsFloat]) -> None:
        """Logs scalars at an environment step, which must not be less than the last one.

        Raises:
            ValueError: a scalar named step or time.
        """
        if taken := {"step", "time"} & scalars.keys():
            raise ValueError(f"{sorted(taken)} are columns of every line; rename these scalars")
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
        """Closes the writers; everything written is already on disk."""
        for writer in self._writers:
            writer.close()

    def _explaining_refusal(self) -> contextlib.AbstractContextManager[None]:
        return files.explaining_refusal(
            f"metrics in {self._folder}",
            "make room or give write permission, or choose another folder with run.dir=PATH",
        )

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
        self._writers = []


class AppendedFile(Writer):
    """A backend with one file, to which data is appended whole or not at all, without a buffer.

    The file is never written through a link, and recreated after it was removed.

    Args:
        path: the file.
        header: its first bytes.
    """

    def __init__(self, path: Path, header: bytes = b"") -> None:
        self._path, self._header = path, header
        self._file: io.FileIO | io.BytesIO = io.BytesIO()  # until `open`

    def open(self) -> None:
        self.close()
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        self._file = io.FileIO(files.open_regular(self._path, flags), "a")

    def close(self) -> None:
        self._file.close()

    def _append(self, data: bytes) -> None:
        if not self._is_open():
            self.open()
        size = os.fstat(self._file.fileno()).st_size
        rest = data if size else self._header + data
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            self._file.truncate(size)
            raise

    def _is_open(self) -> bool:
        """Whether the open file is still the one at the path."""
        with contextlib.suppress(OSError, ValueError):
            return os.path.samestat(os.stat(self._path), os.fstat(self._file.fileno()))
        return False


class JsonLines(AppendedFile):
    """metrics.jsonl, of lines {"step": environment steps, "time": seconds since 1970, name: value,
    ...}. A value that is NaN or infinite is null, because JSON has no such numbers."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / METRICS)

    def truncate(self, step: int) -> None:
        files.write_atomic(self._path, "".join(_lines_until(self._path, step)))

    def write(self, step: int, now: float, scalars: Mapping[str, float]) -> None:
        line: dict[str, float | None] = {"step": step, "time": round(now, 3)}
        line |= {name: value if math.isfinite(value) else None for name, value in scalars.items()}
        self._append(json.dumps(line, allow_nan=False).encode() + b"\n")


class Mp4(Writer):
    """videos/NAME-STEP.mp4; slashes in names become dashes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / VIDEOS

    def video(self, step: int, name: str, frames: np.ndarray, fps: float) -> None:
        write_mp4(self._folder / f"{name.replace('/', '-')}-{step}.mp4", frames, fps)


class TensorBoard(AppendedFile):
    """An events file, with videos as animated images."""

    def __init__(self, folder: Path) -> None:
        version = _record(Event(wall_time=time.time(), file_version="brain.Event:2"))
        super().__init__(folder / f"events.out.tfevents.{time.time_ns()}", version)
        self._start: int | None = None  # the step of a start mark still to be written

    def truncate(self, step: int) -> None:
        self._start = step + 1

    def write(self, step: int, now: float, scalars: Mapping[str, float]) -> None:
        points = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        self._add(points, step, now)

    def video(self, step: int, name: str, frames: np.ndarray, fps: float) -> None:
        height, width = frames.shape[1:3]
        gif = to_gif(frames, fps)
        image = Summary.Image(height=height, width=width, colorspace=RGB, encoded_image_string=gif)
        self._add([Summary.Value(tag=name, image=image)], step, time.time())

    def _add(self, values: list[Any], step: int, now: float) -> None:
        if self._start is not None:  # TensorBoard drops what earlier files have from there on
            start = SessionLog(status=SessionLog.START)
            self._append(_record(Event(wall_time=now, step=self._start, session_log=start)))
            self._start = None
        self._append(_record(Event(wall_time=now, step=step, summary=Summary(value=values))))


def _record(event: Event) -> bytes:
    """An event framed as a TFRecord: length, its checksum, data, its checksum.

    tensorboardX's writers follow links and leave half a record on a full disk, after which
    TensorBoard reads no further; their thread dies there, and training then blocks on its queue.
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
