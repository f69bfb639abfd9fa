"""Learning in bfloat16 keeps what the two-hot heads rest on."""

import jax
import numpy as np

from dreamer.agent import agent as agents
from tests import tiny


def test_bins_that_no_target_has_reached_stay_mirror_images() -> None:
    """The outermost are at 5e8 and count for nothing only because they cancel exactly. Gradients of
    logits rounded to bfloat16 part them, and predictions are off by thousands."""
    agent = tiny.agent(
        *(tiny.VECTOR, tiny.DISCRETE),
        **{"compute_dtype": "bfloat16", "optimizer": {"warmup": 0, "learning_rate": 1e-3}},
    )
    state, batch = tiny.state(agent), tiny.batch(agent, 4, 16)
    update = jax.jit(lambda *args: agents.train_step(agent, *args))
    for number in range(4):
        state, _, metrics = update(state, batch, jax.random.key(number))
    for head in ("reward", "critic"):
        kernel = np.asarray(state.params[head]["params"]["out"]["kernel"])
        assert np.abs(kernel).max() > 1e-4
        np.testing.assert_array_equal(kernel[:, :40], kernel[:, :-41:-1])
    assert abs(float(metrics["return"])) < 1
