"""A recurrence over time in plain form; `batched_recurrence` has another gradient.

Legend: T steps.
"""

from collections.abc import Callable
from typing import Any

import jax

Tree = Any
Step = Callable[[Tree, Tree, Tree], Tree]  # (params, state, input) to the next state


def scan(step: Step, params: Tree, start: Tree, inputs: Tree) -> Tree:
    """All states of state[t] = step(params, state[t - 1], inputs[t]), differentiated by JAX.

    Args:
      step: a pure function.
      params: shared by all steps.
      start: the state before the first step.
      inputs: leaves [T, ...].

    Returns:
      The states, leaves [T, ...].
    """

    def body(state: Tree, now: Tree) -> tuple[Tree, Tree]:
        state = step(params, state, now)
        return state, state

    return jax.lax.scan(body, start, inputs)[1]
