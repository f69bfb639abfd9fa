"""Files of the logger, read back by TensorBoard's own reader, and disks that are full."""

import io
import json
import math
import resource
import shutil
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageSequence
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dreamer.errors import UserError
from dreamer.logs.writers import Logger, Silent

FRAMES = np.linspace(0, 255, 5 * 16 * 20 * 3).reshape(5, 16, 20, 3).astype(np.uint8)


def lines(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "metrics.jsonl").read_text()
    return [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]


def events(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0}).Reload()


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """Writing beyond fails part of the way, as on a full disk, for root too."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_every_line_is_on_disk_at_once(tmp_path: Path) -> None:
    with closing(Logger(tmp_path)) as logger:
        logger.write(10, {"loss/image": 0.25, "updates": 3})
        logger.write(20, {"loss/image": np.float32(0.5)})
        first, second = lines(tmp_path)
        assert first.pop("time") <= second.pop("time")
        assert list(first.items()) == [("step", 10), ("loss/image", 0.25), ("updates", 3)]
        assert second == {"step": 20, "loss/image": 0.5}
        assert '"updates": 3}' in (tmp_path / "metrics.jsonl").read_text()
        points = [(point.step, point.value) for point in events(tmp_path).Scalars("loss/image")]
        assert points == [(10, 0.25), (20, 0.5)]


def test_numbers_that_json_does_not_have_are_null(tmp_path: Path) -> None:
    with closing(Logger(tmp_path)) as logger:
        logger.write(1, {"a": math.nan, "b": -math.inf, "c": 1.0})
    assert [lines(tmp_path)[0][name] for name in "abc"] == [None, None, 1.0]
    assert math.isnan(events(tmp_path).Scalars("a")[0].value)


def test_names_of_columns_are_refused(tmp_path: Path) -> None:
    with closing(Logger(tmp_path)) as logger, pytest.raises(ValueError, match="time"):
        logger.write(1, {"time": 1.0})


def test_resuming_drops_later_lines(tmp_path: Path) -> None:
    with closing(Logger(tmp_path)) as logger:
        logger.truncate(-1)
        for step in (10, 20, 30, 40):
            logger.write(step, {"a": float(step)})
    with closing(Logger(tmp_path)) as logger:
        logger.truncate(20)
        assert [line["step"] for line in lines(tmp_path)] == [10, 20]
        logger.write(35, {"a": -1.0})
    assert [(line["step"], line["a"]) for line in lines(tmp_path)] == [(10, 10), (20, 20), (35, -1)]
    points = [(point.step, point.value) for point in events(tmp_path).Scalars("a")]
    assert points == [(10, 10), (20, 20), (35, -1)]


@pytest.mark.parametrize("last", [b'{"step": 1, "time": 5', b'{"step": 1, "time": 5}', b"\xff"])
def test_resuming_drops_a_line_cut_by_a_crash(tmp_path: Path, last: bytes) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1, "a": 2}\n\xff\n[]\n' + last)
    with closing(Logger(tmp_path, tensorboard=False)) as logger:
        logger.truncate(9)
        logger.write(5, {})
    assert [line["step"] for line in lines(tmp_path)] == [1, 5]


def test_without_tensorboard_there_are_no_event_files(tmp_path: Path) -> None:
    with closing(Logger(tmp_path, tensorboard=False)) as logger:
        logger.truncate(0)
        logger.write(1, {"a": 1.0})
        logger.video(1, "v", FRAMES, 10)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["metrics.jsonl", "videos"]


@pytest.mark.parametrize("channels", [1, 3])
def test_video_is_a_file_and_an_image_of_tensorboard(tmp_path: Path, channels: int) -> None:
    with closing(Logger(tmp_path)) as logger:
        logger.video(70, "report/openloop", FRAMES[..., :channels], 10)
    assert [item.name for item in (tmp_path / "videos").iterdir()] == ["report-openloop-70.mp4"]
    (image,) = events(tmp_path).Images("report/openloop")
    assert (image.step, image.width, image.height) == (70, 20, 16)
    gif = Image.open(io.BytesIO(image.encoded_image_string))
    assert (gif.format, len(list(ImageSequence.Iterator(gif))), gif.size) == ("GIF", 5, (20, 16))


def test_unwritable_folder_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write metrics"):
        Logger(tmp_path / "file" / "run")


@pytest.mark.parametrize("tensorboard", [False, True])
def test_full_disk_is_a_user_error_at_the_start(tmp_path: Path, tensorboard: bool) -> None:
    with no_file_larger_than(0), pytest.raises(UserError, match="cannot write metrics"):
        Logger(tmp_path, tensorboard)


def test_full_disk_later_warns_once_and_loses_only_what_did_not_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(Logger(tmp_path)) as logger:
        logger.write(1, {"a": 1.0})
        with no_file_larger_than((tmp_path / "metrics.jsonl").stat().st_size + 9):
            for step in (2, 3):
                logger.write(step, {"a": 1.0, "a" * 200: 2.0})
                logger.video(step, "v", FRAMES, 10)
        logger.write(4, {"a": 4.0})
    assert [line["step"] for line in lines(tmp_path)] == [1, 4]
    assert [point.step for point in events(tmp_path).Scalars("a")] == [1, 4]
    assert list((tmp_path / "videos").iterdir()) == []
    warning = capsys.readouterr().err
    assert warning.startswith("warning: cannot write logs")
    assert warning.count("\n") == 1


def test_a_warning_that_cannot_be_written_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Standard error may be a file on the disk that is full."""
    with (
        open(tmp_path / "output.txt", "w", buffering=1) as output,
        closing(Logger(tmp_path)) as logger,
    ):
        monkeypatch.setattr("sys.stderr", output)
        with no_file_larger_than(0):
            logger.write(1, {"a": 1.0})
        logger.write(2, {"a": 2.0})
    assert [line["step"] for line in lines(tmp_path)] == [2]


def test_a_removed_folder_is_written_to_again_once_it_exists(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    with closing(Logger(folder)) as logger:
        logger.write(1, {"a": 1.0})
        shutil.rmtree(folder)
        for step in (2, 3):
            logger.write(step, {"a": 2.0})
            logger.video(step, "v", FRAMES, 10)
        folder.mkdir()
        logger.write(4, {"a": 4.0})
        logger.video(4, "v", FRAMES, 10)
    assert [line["step"] for line in lines(folder)] == [4]
    assert [point.step for point in events(folder).Scalars("a")] == [4]
    assert [image.step for image in events(folder).Images("v")] == [4]
    assert events(folder).file_version == 2.0  # as in its first record
    warning = capsys.readouterr().err
    assert warning.startswith(f"warning: cannot write logs in {folder}: No such file")
    assert warning.count("\n") == 1


@pytest.mark.parametrize("name", ["metrics.jsonl", "events.out.tfevents.123"])
def test_nothing_is_written_through_a_link(
    tmp_path: Path,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("time.time_ns", lambda: 123)
    other, folder = tmp_path / "other.txt", tmp_path / "run"
    other.write_text("precious")
    with closing(Logger(folder)) as logger:
        (folder / name).unlink()
        (folder / name).symlink_to(other)
        logger.write(1, {"a": 1.0})
    assert "it is a link" in capsys.readouterr().err
    with pytest.raises(UserError, match="it is a link"):
        Logger(folder)
    assert other.read_text() == "precious"


def test_a_logger_has_no_threads(tmp_path: Path) -> None:
    """They would outlive it, or fail where nobody notices."""
    before = threading.enumerate()
    with closing(Logger(tmp_path)) as logger:
        logger.write(1, {"a": 1.0})
        logger.video(1, "v", FRAMES, 10)
        assert threading.enumerate() == before


def test_hosts_without_logs_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    logger = Silent()
    logger.truncate(3)
    logger.write(4, {"a": 1.0})
    logger.video(4, "v", FRAMES, 10)
    logger.close()
    assert list(tmp_path.iterdir()) == []
