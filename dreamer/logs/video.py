"""Videos: mp4 files, animated GIFs, and the grid that compares predictions with the truth."""

import io
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dreamer.agents.interface import Agent
from dreamer.system import files

FPS = 15  # frames per second of videos
GREEN, RED = (0, 255, 0), (255, 0, 0)


def write_mp4(path: str | Path, frames: np.ndarray, fps: float) -> None:
    """Writes an H.264 mp4 file atomically.

    The last row or column is repeated if height or width is odd, which the pixel format does not
    allow.

    Args:
        frames: uint8 [T, H, W, 3], or [T, H, W, 1] for gray.
        fps: frames per second.

    Raises:
        OSError: the file cannot be written.
        ValueError: other frames.
    """
    import av  # slow, and only videos need it

    frames = _rgb(frames)
    height, width = frames.shape[1:3]
    frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    encoded = io.BytesIO()  # on a full disk, writing then fails as usual, without half a video
    with av.open(encoded, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "18"}  # small images show artefacts of the default
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    path = Path(path)
    path.parent.mkdir(exist_ok=True)  # not its parents: a run folder that was removed stays so
    with files.replacing(path) as file:
        file.write(encoded.getvalue())


def to_gif(frames: np.ndarray, fps: float) -> bytes:
    """An animated GIF that repeats forever.

    GIF has a resolution of 10 ms, and browsers slow down videos above 50 frames per second, so the
    rate is rounded, to 50 at most. Consecutive equal frames are stored as one longer frame.

    Args:
        frames: uint8 [T, H, W, 3], or [T, H, W, 1] for gray.
        fps: frames per second.

    Raises:
        ValueError: other frames.
    """
    images = [Image.fromarray(frame) for frame in _rgb(frames)]
    milliseconds = max(2, round(100 / fps)) * 10
    file = io.BytesIO()
    images[0].save(
        file, "GIF", save_all=True, append_images=images[1:], duration=milliseconds, loop=0
    )
    return file.getvalue()


def open_loop_grid(
    truth: np.ndarray, prediction: np.ndarray, context: int, smallest: int = 64
) -> np.ndarray:
    """Compares predicted with true images: rows truth, prediction, error; sequences side by side.

    The error is (prediction - truth + 1) / 2, so gray is correct. A border of 2 pixels around each
    sequence is green while the model observes (t < context) and red while it imagines. Layout:
    Hafner et al. 2025.

    Args:
        truth: [B, T, H, W, C], uint8 or float in [0, 1]. If C is not 3, the mean over channels is
            shown in gray.
        prediction: the same shape, uint8 or float in [0, 1]; clipped to that range.
        context: observed steps.
        smallest: pixels of the longer side, to which smaller images are enlarged by an integer
            factor.

    Returns:
        frames: uint8 [T, 3 * h + 4, B * (w + 4), 3], with h and w the enlarged H and W.

    Raises:
        ValueError: the shapes differ or have another rank.
    """
    if truth.shape != prediction.shape or truth.ndim != 5:
        raise ValueError(
            f"expected two equal shapes [B, T, H, W, C], got {truth.shape} and {prediction.shape}"
        )
    true, predicted = _unit(truth), _unit(prediction)
    rows = np.concatenate([true, predicted, (predicted - true + 1) / 2], axis=2)  # [B, T, 3H, W, C]
    rows = np.rint(rows * 255).astype(np.uint8)
    if rows.shape[-1] != 3:
        rows = np.repeat(rows.mean(-1, keepdims=True).astype(np.uint8), 3, axis=-1)
    factor = -(-smallest // max(truth.shape[2:4]))
    rows = rows.repeat(factor, axis=2).repeat(factor, axis=3)
    batch, steps, height, width, _ = rows.shape
    border = np.where(np.arange(steps)[:, None] < context, GREEN, RED).astype(np.uint8)  # [T, 3]
    grid = np.empty((batch, steps, height + 4, width + 4, 3), np.uint8)
    grid[:] = border[None, :, None, None, :]
    grid[:, :, 2:-2, 2:-2] = rows
    return grid.transpose(1, 2, 0, 3, 4).reshape(steps, height + 4, batch * (width + 4), 3)


def _unit(images: np.ndarray) -> np.ndarray:
    """Images as float32 in [0, 1]; NaN, which an untrained model may predict, is black."""
    if images.dtype == np.uint8:
        return images.astype(np.float32) / 255
    return np.clip(np.nan_to_num(np.asarray(images, np.float32)), 0, 1)


def _rgb(frames: np.ndarray) -> np.ndarray:
    if (
        frames.dtype != np.uint8
        or frames.ndim != 4
        or frames.shape[-1] not in (1, 3)
        or not frames.size
    ):
        raise ValueError(
            f"frames must be uint8 [T, H, W, 3] or [T, H, W, 1], got {frames.dtype} {frames.shape}"
        )
    return np.ascontiguousarray(np.broadcast_to(frames, (*frames.shape[:-1], 3)))


def open_loop_grids(
    agent: Agent, batch: Mapping[str, Any], predictions: Mapping[str, Any], context: int
) -> dict[str, np.ndarray]:
    """Videos uint8 [T, H, W, 3] that compare every image with its prediction, see
    `open_loop_grid`.

    Args:
      agent: networks.
      batch: from replay, leaves [B, T + 1, ...].
      predictions: of `open_loop`.
      context: observed steps.
    """
    return {
        name: open_loop_grid(
            np.asarray(batch["observation"][name])[:, 1:],
            np.asarray(predictions[name], np.float32),
            context,
        )
        for name in agent.images
    }
