"""Videos: read back what was written; every pixel of a small grid."""

import io
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageSequence

from dreamer.logs.video import open_loop_grid, to_gif, write_mp4

SOME = np.random.default_rng(0)


def flat(levels: list[int], height: int, width: int, channels: int) -> np.ndarray:
    frames = np.asarray(levels, np.uint8)[:, None, None, None]
    return np.broadcast_to(frames, (len(levels), height, width, channels)).copy()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(16, 16), (17, 33), (1, 2)])
def test_mp4_reads_back(tmp_path: Path, height: int, width: int, channels: int) -> None:
    levels = [0, 60, 120, 180, 240]
    path = tmp_path / "videos" / "a.mp4"
    write_mp4(path, flat(levels, height, width, channels), fps=10)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.average_rate) == ("h264", 10)
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(frames) == len(levels)
    for frame, level in zip(frames, levels, strict=True):
        assert frame.shape == (height + height % 2, width + width % 2, 3)
        assert np.abs(frame.astype(int) - level).max() <= 6
    assert [item.name for item in path.parent.iterdir()] == ["a.mp4"]


def test_mp4_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write_mp4(path, flat([1, 2], 16, 16, 3), fps=10)
    (tmp_path / "reader.mp4").hardlink_to(path)
    write_mp4(path, flat([200, 2], 16, 16, 3), fps=10)
    before = path.read_bytes()
    assert (tmp_path / "reader.mp4").read_bytes() != before
    (tmp_path / "reader.mp4").unlink()
    with pytest.raises(ValueError, match="frames must be"):
        write_mp4(path, np.zeros((2, 16, 16, 2), np.uint8), fps=10)
    assert path.read_bytes() == before
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(OSError, match="folder"):
        write_mp4(tmp_path / "folder.mp4", flat([1, 2], 16, 16, 3), fps=10)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["a.mp4", "folder.mp4"]


def test_gif_keeps_frames_speed_and_repeats() -> None:
    data = to_gif(flat([0, 100, 200], 8, 10, 1), fps=20)
    image = Image.open(io.BytesIO(data))
    assert (image.size, len(list(ImageSequence.Iterator(image))), image.info["loop"]) == (
        (10, 8),
        3,
        0,
    )
    for index, level in enumerate([0, 100, 200]):
        image.seek(index)
        assert image.info["duration"] == 50
        assert (np.asarray(image.convert("RGB")) == level).all()


@pytest.mark.parametrize(("fps", "milliseconds"), [(100, 20), (30, 30), (15, 70), (1, 1000)])
def test_gif_speed_is_rounded_to_what_browsers_show(fps: float, milliseconds: int) -> None:
    image = Image.open(io.BytesIO(to_gif(flat([0, 200], 4, 4, 3), fps)))
    assert image.info["duration"] == milliseconds


@pytest.mark.parametrize("shape", [(0, 4, 4, 3), (4, 4, 3), (2, 4, 4, 4)])
def test_frames_of_another_kind_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="frames must be"):
        to_gif(np.zeros(shape, np.uint8), 10)


def test_grid_pixel_by_pixel() -> None:
    truth = np.zeros((2, 3, 64, 65, 3), np.float32)
    truth[0], truth[1] = 0.2, 1.0
    prediction = np.full_like(truth, 0.6)
    grid = open_loop_grid(truth, prediction, context=2)
    assert (grid.shape, grid.dtype) == ((3, 3 * 64 + 4, 2 * (65 + 4), 3), np.uint8)
    for time, color in enumerate([(0, 255, 0), (0, 255, 0), (255, 0, 0)]):
        for column, levels in enumerate([(51, 153, 178), (255, 153, 76)]):
            tile = grid[time, :, 69 * column : 69 * (column + 1)]
            for row, level in enumerate(levels):
                assert (
                    np.abs(tile[2 + 64 * row : 66 + 64 * row, 2:-2].astype(int) - level) <= 1
                ).all()
            for edge in (tile[:2], tile[-2:], tile[:, :2], tile[:, -2:]):
                assert (edge == color).all()


def test_grid_takes_uint8_as_it_takes_floats() -> None:
    truth = SOME.integers(0, 256, (1, 2, 64, 64, 3)).astype(np.uint8)
    prediction = SOME.integers(0, 256, truth.shape).astype(np.uint8)
    expected = open_loop_grid(truth / 255.0, prediction / 255.0, context=1)
    np.testing.assert_array_equal(open_loop_grid(truth, prediction, context=1), expected)
    np.testing.assert_array_equal(expected[0, 2:66, 2:-2], truth[0, 0])
    np.testing.assert_array_equal(expected[1, 66:130, 2:-2], prediction[0, 1])


def test_grid_enlarges_small_images_by_a_whole_factor() -> None:
    truth = SOME.integers(0, 256, (1, 1, 20, 30, 3)).astype(np.uint8)
    grid = open_loop_grid(truth, truth, context=0)
    assert grid.shape == (1, 3 * 60 + 4, 90 + 4, 3)
    np.testing.assert_array_equal(grid[0, 2:62:3, 2:-2:3], truth[0, 0])
    np.testing.assert_array_equal(grid[0, 4:62:3, 4:-2:3], truth[0, 0])


@pytest.mark.parametrize("channels", [1, 4])
def test_grid_shows_other_channels_gray(channels: int) -> None:
    truth = SOME.integers(0, 256, (1, 1, 64, 64, channels)).astype(np.uint8)
    inner = open_loop_grid(truth, truth, context=0)[0, 2:66, 2:-2]
    assert (inner == inner[..., :1]).all()
    assert (np.abs(inner[..., 0].astype(float) - truth[0, 0].mean(-1)) <= 1).all()


def test_grid_survives_wild_predictions() -> None:
    truth = np.zeros((1, 1, 64, 64, 1), np.float32)
    prediction = np.full_like(truth, np.nan)
    prediction[..., :32, :] = 7.0
    with np.errstate(all="raise"):
        grid = open_loop_grid(truth, prediction, context=0)
    assert (grid[0, 66:130, 2:34] == 255).all()
    assert (grid[0, 66:130, 34:-2] == 0).all()


def test_grid_refuses_shapes_that_differ() -> None:
    with pytest.raises(ValueError, match="equal shapes"):
        open_loop_grid(np.zeros((1, 2, 8, 8, 3)), np.zeros((1, 3, 8, 8, 3)), 1)
