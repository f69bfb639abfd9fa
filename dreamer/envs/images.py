"""Resizing of uint8 images."""

import numpy as np
from PIL import Image


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
