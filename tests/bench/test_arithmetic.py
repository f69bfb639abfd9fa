"""Counted arithmetic against counts by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest

from dreamer.agents.dreamer import learning, parts
from dreamer.bench import subject
from dreamer.bench.arithmetic import flops
from dreamer.cli import compose

A, B = jnp.ones((2, 3)), jnp.ones((3, 5))


def test_a_product_is_two_operations_per_factor() -> None:
    assert flops(jnp.matmul, A, B) == 2 * 2 * 3 * 5


def test_a_batched_product_counts_for_every_member() -> None:
    assert flops(jax.vmap(jnp.matmul, (0, None)), jnp.ones((7, 2, 3)), B) == 7 * 60


def test_a_gradient_is_two_more_products() -> None:
    assert flops(jax.grad(lambda a, b: (a @ b).sum(), (0, 1)), A, B) == 3 * 60


def test_a_loop_counts_once_per_trip() -> None:
    def looped(x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda x, _: (x @ x, None), x, length=11)[0]

    assert flops(jax.jit(looped), jnp.ones((4, 4))) == 11 * 2 * 4**3


def test_a_convolution_reads_its_kernel_for_every_output() -> None:
    def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)

    outputs, per_output = 2 * 8 * 8 * 4, 5 * 5 * 3
    image, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((5, 5, 3, 4))
    assert flops(convolve, image, kernel) == 2 * outputs * per_output


@pytest.mark.parametrize(("observation", "giga"), [("vector", 29), ("image", 79)])
def test_an_update_at_1m_does_what_the_formula_says(observation: str, giga: float) -> None:
    """The formula: three passes of the world model over 16 x 64 steps, 15 imagined steps from each,
    two passes of the heads over those; it leaves out the smallest layers. It is for
    convolutions that compute no zeros, which those of few channels do on CPU to save time."""
    options = ["size=1m", "agent=dreamerv3", "devices=1", "agent.kernels=accelerator"]
    one = subject.make(compose.compose(options), observation)
    rows = one.rows(16, 65)
    batch = rows | {"latent": jax.tree.map(lambda x: x[:, :1], rows["latent"])}
    state = jax.eval_shape(partial(parts.init, one.agent), one.key)
    step = partial(learning.train_step, one.agent)
    assert flops(step, state, batch, one.key) == pytest.approx(giga * 1e9, rel=0.1)
