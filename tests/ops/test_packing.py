"""Trees as rows of one array."""

import jax.numpy as jnp
import numpy as np
import pytest

from dreamer.ops.packing import WIDTH, Packing

TREE = {
    "vector": np.arange(3, dtype=np.float32),
    "scalar": np.float32(7),
    "inner": {
        "one row": np.ones(WIDTH, np.float32),
        "two rows": np.full((2, WIDTH - 1), np.float32(2)),
    },
}


@pytest.fixture
def packing() -> Packing:
    return Packing.of(TREE)


def test_unpacking_gives_back_what_was_packed(packing: Packing) -> None:
    packed = packing.pack(TREE)
    assert packed.shape == (1 + 2 + 1 + 1, WIDTH)
    back = packing.unpack(packed)
    np.testing.assert_array_equal(back["vector"], TREE["vector"])
    np.testing.assert_array_equal(back["inner"]["two rows"], TREE["inner"]["two rows"])
    assert back["scalar"].shape == ()
    assert back["scalar"] == 7


def test_what_is_added_between_tensors_is_zero(packing: Packing) -> None:
    packed = np.asarray(packing.pack(TREE))
    assert np.square(packed).sum() == sum(
        np.square(x).sum() for x in (TREE["vector"], 7.0, *TREE["inner"].values())
    )


def test_norms_are_those_of_each_tensor(packing: Packing) -> None:
    expected = [WIDTH**0.5, (2 * (WIDTH - 1) * 4) ** 0.5, 7, 5**0.5]
    np.testing.assert_allclose(packing.norms(packing.pack(TREE)), expected, rtol=1e-6)


def test_a_value_per_tensor_reaches_all_its_rows(packing: Packing) -> None:
    spread = packing.spread(jnp.array([1.0, 2.0, 3.0, 4.0]))
    assert spread[:, 0].tolist() == [1.0, 2.0, 2.0, 3.0, 4.0]


def test_a_constant_per_tensor_reaches_all_its_rows(packing: Packing) -> None:
    rows = packing.rows_of(np.array([True, False, True, False]))
    assert rows.tolist() == [[True], [False], [False], [True], [False]]


def test_the_layout_follows_from_shapes_alone(packing: Packing) -> None:
    assert Packing.of(packing.unpack(jnp.zeros((5, WIDTH)))) == packing
