"""The published sizes have exactly the published numbers of parameters, by tracing shapes."""

from functools import partial

import jax
import numpy as np
import pytest
from dm_env import specs

from dreamer.agents.dreamer import parts
from dreamer.cli import compose

# Columns: 1m 12m 25m 50m 100m 200m 400m; traced once from the reference implementation.
PUBLISHED = {
    "atari": (769_762, 11_808_850, 26_444_402, 46_900_882, 105_276_626, 186_936_082, 420_106_130),
    "atari100k": (
        686_456,
        10_492_616,
        23_487_016,
        41_646_984,
        93_463_624,
        165_942_536,
        372_887_176,
    ),
    "crafter": (687_875, 10_498_259, 23_495_475, 41_658_259, 93_480_531, 165_965_075, 372_920_979),
    "dmc_vision": (
        686_846,
        10_494_158,
        23_489_326,
        41_650_062,
        93_468_238,
        165_948_686,
        372_896_398,
    ),
    "dmc_proprio": (
        640_867,
        9_738_019,
        21_782_947,
        38_612_003,
        86_622_499,
        153_769_507,
        345_473_059,
    ),
}
SIZES = ("1m", "12m", "25m", "50m", "100m", "200m", "400m")
MODULES = {
    ("atari", "200m"): {
        "encoder": 3_486_464,
        "rssm": 100_739_072,
        "decoder": 36_014_593,
        "reward": 10_749_183,
        "cont": 10_488_833,
        "actor": 12_607_506,
        "critic": 12_850_431,
    },
    ("dmc_proprio", "1m"): {
        "encoder": 10_112,
        "rssm": 364_416,
        "decoder": 51_096,
        "reward": 57_663,
        "cont": 41_153,
        "actor": 50_316,
        "critic": 66_111,
    },
}


def image(*shape):
    return {"image": specs.BoundedArray(shape, np.uint8, 0, 255, "image")}


def discrete(count):
    return {"action": specs.DiscreteArray(count, np.int32, "action")}


CONTINUOUS = {"action": specs.BoundedArray((6,), np.float32, -1, 1, "action")}
WALKER = {
    "orientations": specs.Array((14,), np.float32, "orientations"),
    "height": specs.Array((), np.float32, "height"),
    "velocity": specs.Array((9,), np.float32, "velocity"),
}
SPACES = {
    "atari": (image(96, 96, 1), discrete(18)),
    "atari100k": (image(64, 64, 3), discrete(6)),
    "crafter": (image(64, 64, 3), discrete(17)),
    "dmc_vision": (image(64, 64, 3), CONTINUOUS),
    "dmc_proprio": (WALKER, CONTINUOUS),
}


def counts(suite, size):
    agent = parts.build(compose.compose([f"size={size}"]).agent, *SPACES[suite])
    shapes = jax.eval_shape(partial(parts.init_params, agent), jax.random.key(0))
    return {name: sum(x.size for x in jax.tree.leaves(part)) for name, part in shapes.items()}


@pytest.mark.parametrize("suite", PUBLISHED)
def test_totals(suite):
    ours = tuple(sum(counts(suite, size).values()) for size in SIZES)
    assert ours == PUBLISHED[suite]


@pytest.mark.parametrize("case", MODULES)
def test_modules(case):
    assert counts(*case) == MODULES[case]
