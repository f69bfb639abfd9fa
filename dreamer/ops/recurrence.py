"""A recurrence over time whose gradient does in its loop only what must be in a loop.

Differentiating `jax.lax.scan` stores every intermediate result at every step, and adds the gradient
of every weight up step by step. But once all states are known, every step's intermediate results
and weight gradients can be computed for all steps at once; only the gradient of the state has to
travel backwards in time. So the loops are short, and the weights meet large matrix products.

Legend: T steps.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp

Tree = Any
Step = Callable[[Tree, Tree, Tree], Tree]  # (params, state, input) to the next state


def scan(step: Step, params: Tree, start: Tree, inputs: Tree) -> Tree:
    """The plain form: differentiated by jax as it stands."""

    def body(state: Tree, now: Tree) -> tuple[Tree, Tree]:
        state = step(params, state, now)
        return state, state

    return jax.lax.scan(body, start, inputs)[1]


def choose(backward: str) -> Callable[[Step, Tree, Tree, Tree], Tree]:
    """`scan` or `recurrence` by the name of its gradient: scan or batched.

    auto is scan on CPU, where computing everything again costs more than it saves (measured), and
    batched elsewhere, where the number of operations in the loop decides.
    """
    if backward == "auto":
        backward = "scan" if jax.default_backend() == "cpu" else "batched"
    return recurrence if backward == "batched" else scan


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def recurrence(step: Step, params: Tree, start: Tree, inputs: Tree) -> Tree:
    """All states of state[t] = step(params, state[t - 1], inputs[t]).

    Args:
      step: a function of its arguments alone.
      params: what all steps share.
      start: the state before the first step.
      inputs: leaves [T, ...].

    Returns:
      The states, leaves [T, ...].
    """
    return scan(step, params, start, inputs)


def _forward(step: Step, params: Tree, start: Tree, inputs: Tree) -> tuple[Tree, tuple]:
    states = scan(step, params, start, inputs)
    return states, (params, start, inputs, states)


def _backward(step: Step, saved: tuple, gradients: Tree) -> tuple[Tree, Tree, Tree]:
    params, start, inputs, states = saved
    before = jax.tree.map(lambda x, y: jnp.concatenate([x[None], y[:-1]]), start, states)
    pull_at, residuals = _pullbacks(lambda state, now: step(params, state, now), before, inputs)

    def body(later: Tree, now: tuple[Tree, Tree]) -> tuple[Tree, Tree]:
        residual, gradient = now
        total = jax.tree.map(jnp.add, gradient, later)
        return pull_at(residual)(total)[0], total

    nothing = jax.tree.map(jnp.zeros_like, start)
    to_start, totals = jax.lax.scan(body, nothing, (residuals, gradients), reverse=True)
    _, pull = jax.vjp(jax.vmap(step, (None, 0, 0)), params, before, inputs)
    to_params, _, to_inputs = pull(totals)
    return to_params, to_start, to_inputs


recurrence.defvjp(_forward, _backward)


def _pullbacks(
    function: Callable[[Tree, Tree], Tree], states: Tree, inputs: Tree
) -> tuple[Callable[[list], Callable], list]:
    """The gradients of `function` with respect to the state, at every step, computed at once.

    Returns:
      A function from the residuals of one step to its pullback, and the residuals of all steps:
      leaves [T, ...]. What does not depend on the step, weights above all, is not repeated.
    """
    structure = None

    def residuals(state: Tree, now: Tree) -> list:
        nonlocal structure
        _, pull = jax.vjp(lambda state: function(state, now), state)
        leaves, structure = jax.tree.flatten(pull)
        return leaves

    first = jax.tree.map(lambda x: x[0], (states, inputs))
    varies = _depend_on_inputs(jax.make_jaxpr(residuals)(*first).jaxpr)
    leaves = jax.vmap(residuals, out_axes=[0 if v else None for v in varies])(states, inputs)
    shared = [None if v else leaf for v, leaf in zip(varies, leaves, strict=True)]

    def pull_at(varying: list) -> Callable:
        own = iter(varying)
        leaves = [next(own) if leaf is None else leaf for leaf in shared]
        return jax.tree.unflatten(structure, leaves)

    return pull_at, [leaf for v, leaf in zip(varies, leaves, strict=True) if v]


def _depend_on_inputs(jaxpr: Any) -> list[bool]:
    """For every output whether it is computed from the inputs, rather than from constants alone."""
    reached = set(jaxpr.invars)
    for equation in jaxpr.eqns:
        if any(isinstance(x, jax.extend.core.Var) and x in reached for x in equation.invars):
            reached.update(equation.outvars)
    return [isinstance(x, jax.extend.core.Var) and x in reached for x in jaxpr.outvars]
