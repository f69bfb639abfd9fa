import numpy as np
from PIL import Image

from dreamer.envs.images import resize


def test_shape_is_height_then_width():
    assert resize(np.zeros((20, 40, 3), np.uint8), (10, 16)).shape == (10, 16, 3)


def test_values_are_those_of_pillow():
    image = np.random.default_rng(0).integers(0, 256, (21, 34, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(image).resize((8, 12), Image.BILINEAR))
    np.testing.assert_array_equal(resize(image, (12, 8)), expected)
    for channels in (1, 2, 4, 5):  # each channel by itself gives the same
        stack = np.concatenate([image, image], -1)[..., :channels]
        many = np.concatenate([expected, expected], -1)[..., :channels]
        np.testing.assert_array_equal(resize(stack, (12, 8)), many)


def test_an_image_of_the_size_is_left_alone():
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    np.testing.assert_array_equal(resize(image, (8, 8)), image)
