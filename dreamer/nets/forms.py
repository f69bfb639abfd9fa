"""Forms of layers and steps: plain, or optimised for a kind of device; equal up to rounding."""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax

from dreamer.nets.fast_conv import CPUPooledConv, CPUSubPixelConv, SubPixelConv
from dreamer.nets.fast_rssm import CPURSSM, AcceleratorRSSM
from dreamer.nets.layers import PooledConv, UpsampleConv
from dreamer.nets.rssm import RSSM
from dreamer.ops.batched_recurrence import recurrence
from dreamer.ops.recurrence import Step, Tree, scan


class Forms(NamedTuple):
    """Modules of one form."""

    pooled_conv: type[nn.Module]
    upsample_conv: type[nn.Module]
    rssm: type[RSSM]


FORMS = {
    "plain": Forms(PooledConv, UpsampleConv, RSSM),
    "cpu": Forms(CPUPooledConv, CPUSubPixelConv, CPURSSM),
    "accelerator": Forms(PooledConv, SubPixelConv, AcceleratorRSSM),
}
UNROLLS = {"scan": scan, "batched": recurrence}


def choose(name: str) -> Forms:
    """The form with this name; auto depends on the platform of JAX."""
    if name == "auto":
        name = "cpu" if jax.default_backend() == "cpu" else "accelerator"
    return FORMS[name]


def choose_unroll(name: str) -> Callable[[Step, Tree, Tree, Tree], Tree]:
    """A recurrence over time, by the name of its gradient.

    auto is scan on CPU, where recomputation costs more than it saves (measured), and batched
    elsewhere, where the number of operations in the loop dominates.
    """
    if name == "auto":
        name = "scan" if jax.default_backend() == "cpu" else "batched"
    return UNROLLS[name]
