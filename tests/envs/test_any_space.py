"""Random nested spaces: observations are encoded and actions decoded."""

import gymnasium
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from gymnasium.vector.utils import batch_space
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamer.envs import masks
from dreamer.envs.faults import checker
from dreamer.envs.spaces import action_codec, channels_first, observation_codec
from dreamer.nets import spaces as nets

N = 3
sides, counts, starts = st.integers(1, 5), st.integers(1, 6), st.integers(-3, 3)
numbers = st.sampled_from([-1e3, -0.5, 0.0, 2.0, 255.0])


@st.composite
def boxes(draw: st.DrawFn, ranks: tuple[int, int]) -> spaces.Box:
    shape = tuple(draw(st.lists(sides, min_size=ranks[0], max_size=ranks[1])))
    low, high = sorted([draw(numbers), draw(numbers) + 1])
    dtype = draw(st.sampled_from([np.float32, np.float64, np.int32, np.int8, np.bool_]))
    if np.dtype(dtype).kind != "f":
        limits = (0, 1) if dtype is np.bool_ else (-128, 127)
        low, high = (int(number) for number in np.clip((low, high), *limits))
    return spaces.Box(low, high, shape, dtype)


@st.composite
def images(draw: st.DrawFn) -> spaces.Box:
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    shape = (height, width, draw(st.integers(1, 5)))
    shape = shape[:2] if draw(st.booleans()) else shape
    return spaces.Box(0, 255, (8, 8, 3) if channels_first(shape) else shape, np.uint8)


def classes() -> st.SearchStrategy[gymnasium.Space]:
    several = st.lists(counts, min_size=1, max_size=3).map(np.array)
    return st.one_of(
        st.builds(lambda n, start: spaces.Discrete(n, start=start), counts, starts),
        several.map(spaces.MultiDiscrete),
        st.tuples(counts, counts).map(lambda n: spaces.MultiDiscrete(np.full(n, 3))),
        sides.map(spaces.MultiBinary),
        st.lists(sides, min_size=2, max_size=4).map(spaces.MultiBinary),
    )


def nested(leaves: st.SearchStrategy) -> st.SearchStrategy[gymnasium.Space]:
    return st.recursive(
        leaves,
        lambda parts: (
            st.dictionaries(st.sampled_from("abcd"), parts, min_size=1).map(spaces.Dict)
            | st.lists(parts, min_size=1, max_size=3).map(spaces.Tuple)
        ),
        max_leaves=5,
    )


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(nested(st.one_of(boxes((0, 2)), images(), classes())))
def test_any_observation(space: gymnasium.Space) -> None:
    codec = observation_codec(space)
    nets.check_observations(codec.specs)
    batched = batch_space(space, N)
    batched.seed(0)
    native = batched.sample()
    assert checker(batched)(native) == ""
    seen = codec.convert(native)
    assert seen.keys() == codec.specs.keys()
    for key, value in seen.items():
        spec = codec.specs[key]
        assert value.dtype == spec.dtype
        for row in value:
            spec.validate(row)
        if nets.kind(spec) == "image":
            used, sizes = nets.stages(spec.shape[:2], (2, 3, 4, 4))
            assert len(sizes) == len(used) + 1 >= 2
        else:
            flat = nets.flat(jnp.asarray(value), spec, jnp.float32)
            each = nets.classes(spec) if nets.kind(spec) == "discrete" else 1
            assert flat.shape == (N, int(np.prod(spec.shape)) * each)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(nested(st.one_of(boxes((0, 3)), classes())))
def test_any_action(space: gymnasium.Space) -> None:
    codec = action_codec(space)
    rng = np.random.default_rng(0)
    action = {}
    for key, spec in codec.specs.items():
        unit = rng.uniform(-1, 1, (N, *spec.shape)).astype(np.float32)
        discrete = nets.kind(spec) == "discrete"
        whole = rng.integers(0, nets.classes(spec), unit.shape) if discrete else unit
        action[key] = whole.astype(spec.dtype)
    assert batch_space(space, N).contains(codec.convert(action))
    embedded = nets.embed_action(action, codec.specs, jnp.float32)
    assert embedded.shape[0] == N
    found = masks._reader(space)[0]
    specs = observation_codec(spaces.Dict(found)).specs if found else {}
    discrete = {key for key, spec in codec.specs.items() if nets.kind(spec) == "discrete"}
    assert nets.masked(specs, codec.specs).keys() == discrete
