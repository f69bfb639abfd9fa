"""Open-loop predictions: observations predicted from actions alone."""

from collections.abc import Mapping

import chex
import jax
import jax.numpy as jnp
from jax import Array

from dreamer.agents.dreamer import learning
from dreamer.agents.dreamer import world_model as models
from dreamer.agents.dreamer.parts import Parts
from dreamer.agents.dreamer.world_model import Params
from dreamer.nets.rssm import Latent


def open_loop(
    agent: Parts, params: Params, batch: Mapping, context: int, key: Array
) -> dict[str, Array]:
    """Reconstructs the first `context` steps of replayed sequences and predicts the rest from the
    true actions.

    Args:
      agent: networks.
      params: their parameters.
      batch: from replay, leaves [B, T + 1, ...].
      context: observed steps, 1 to T - 1.
      key: random key.

    Returns:
      The decoder's prediction of every observation key for all T steps, [B, T, ...].
    """
    chex.assert_shape(key, ())
    model = agent.model
    start, previous, steps = learning.split_batch(agent, batch)
    size, length = steps["is_first"].shape
    seen_key, imagined_key = jax.random.split(key)
    seen = jax.tree.map(
        lambda x: x[:, :context], (steps["observation"], previous, steps["is_first"])
    )
    tokens = model.encoder.apply(params["encoder"], seen[0])
    noise = model.rssm.noise(seen_key, (size, context))
    observed, _ = models.observe(model, params, start, tokens, seen[1], seen[2], noise)

    def step(carry: Latent, inputs: tuple[Array, Array]) -> tuple[Latent, Latent]:
        latent = models.imagine_step(model, params, carry, *inputs)
        return latent, latent

    last = jax.tree.map(lambda x: x[:, -1], observed)
    future = model.rssm.noise(imagined_key, (length - context, size))
    _, imagined = jax.lax.scan(step, last, (models.swap(previous[:, context:]), future))
    latents = jax.tree.map(lambda a, b: jnp.concatenate([a, b], 1), observed, models.swap(imagined))
    return model.decoder.apply(params["decoder"], latents)
