"""Images of environments: resizing, and rendered frames."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

CHANNELS = (1, 2, 3, 4)  # of a picture: gray or RGB, with or without transparency
PIXELS = (list, tuple, int, float)  # elements of a list that is one picture, not several


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes uint8 (H, W, C) to `size` = (height, width) with Pillow's bilinear filter.

    Unlike an interpolation of four neighbours, that filter averages all pixels when it shrinks.
    """
    if image.shape[:2] == tuple(size):
        return image
    if image.shape[-1] != 3:
        channels = [_resize(image[..., i], size) for i in range(image.shape[-1])]
        return np.stack(channels, -1)
    return _resize(image, size)


def _resize(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    height, width = size
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


def picture(rendered: Any) -> np.ndarray | None:
    """Converts a rendering to uint8 [H, W, 3]; None if nothing is rendered.

    Gray, RGB and RGBA are accepted, with their channels last or first, of any number type: 0 to
    255, or floats or booleans from 0 to 1. NaN is black. Of several frames it takes the newest.

    Raises:
      ValueError: It is no picture.
    """
    frames = isinstance(rendered, list | tuple) and not isinstance(next(iter(rendered), 0), PIXELS)
    if frames:
        rendered = next((frame for frame in reversed(rendered) if frame is not None), None)
    if rendered is None:
        return None
    array = np.asarray(rendered)
    if array.ndim == 4 and len(array):
        array = array[-1]
    if not array.size:
        return None
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim == 3 and array.shape[-1] not in CHANNELS and array.shape[0] in CHANNELS:
        array = np.moveaxis(array, 0, -1)
    if array.ndim != 3 or array.dtype.kind not in "biuf":
        raise ValueError(
            f"rendered shape {array.shape} and type {array.dtype}, which is no picture; expected "
            "numbers of shape (height, width, 3), or without colours (height, width)"
        )
    array = _bytes(array[..., : 3 if array.shape[-1] >= 3 else 1])
    return np.ascontiguousarray(np.broadcast_to(array, (*array.shape[:2], 3)))


def stack(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Returns pictures [H, W, 3] as [N, H, W, 3]; black pads smaller ones."""
    height, width = np.max([one.shape[:2] for one in pictures], axis=0)
    stacked = np.zeros((len(pictures), height, width, 3), np.uint8)
    for row, one in zip(stacked, pictures, strict=True):
        row[: one.shape[0], : one.shape[1]] = one
    return stacked


def _bytes(array: np.ndarray) -> np.ndarray:
    """Converts numbers from 0 to 255, or floats and booleans from 0 to 1, to uint8."""
    if array.dtype.kind in "bf":
        whole = array.astype(np.float32)
        finite = whole[np.isfinite(whole)]
        scale = 255 if not finite.size or np.max(finite) <= 1 else 1
        array = np.rint(scale * np.nan_to_num(whole, nan=0, posinf=255, neginf=0))
    return np.clip(array, 0, 255).astype(np.uint8)
