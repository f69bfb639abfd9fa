"""A recurrence over time whose gradient keeps as little as possible inside the loop.

Differentiating `jax.lax.scan` stores every intermediate result at every step, and adds the gradient
of every weight up step by step. But once all states are known, intermediate results and weight
gradients can be computed for all steps at once; only the gradient of the state is propagated
backwards in time. The loops are short, and weight gradients are large matrix products.

Legend: T steps.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
from jax import Array

from dreamer.ops.recurrence import Step, Tree


def recurrence(step: Step, params: Tree, start: Tree, inputs: Tree) -> Tree:
    """`recurrence.scan` with a gradient of its own."""
    late, weights = _hoist(step, params, start, _row(inputs, 0))
    return _recurrence(late, weights, start, inputs)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _recurrence(step: Step, params: Tree, start: Tree, inputs: Tree) -> Tree:
    return _forward(step, params, start, inputs)[0]


# Both loops carry only the array of all steps, of which each step reads and writes its rows, so a
# result is not copied for the next step. Two steps per iteration halve the loop overhead.


def _forward(step: Step, params: Tree, start: Tree, inputs: Tree) -> tuple[Tree, tuple]:
    times = jnp.arange(len(jax.tree.leaves(inputs)[0]), dtype=jnp.uint32)

    def body(states: Tree, now: tuple[Array, Tree]) -> tuple[Tree, None]:
        t, now = now
        return _put(states, t + 1, step(params, _row(states, t), now)), None

    states = jax.tree.map(lambda x: jnp.zeros((len(times) + 1, *x.shape), x.dtype), start)
    states, _ = jax.lax.scan(body, _put(states, 0, start), (times, inputs), unroll=2)
    return jax.tree.map(lambda x: x[1:], states), (params, states, inputs)


def _backward(step: Step, saved: tuple, gradients: Tree) -> tuple[Tree, Tree, Tree]:
    params, states, inputs = saved
    before = jax.tree.map(lambda x: x[:-1], states)
    times = jnp.arange(len(jax.tree.leaves(inputs)[0]), dtype=jnp.uint32)
    pull_at, residuals = _pullbacks(lambda state, now: step(params, state, now), before, inputs)

    def body(totals: Tree, now: tuple[Array, Tree]) -> tuple[Tree, None]:
        t, residual = now
        (earlier,) = pull_at(residual)(_row(totals, t + 1))
        return _put(totals, t, jax.tree.map(jnp.add, _row(totals, t), earlier)), None

    totals = jax.tree.map(lambda x: jnp.concatenate([jnp.zeros_like(x[:1]), x]), gradients)
    totals, _ = jax.lax.scan(body, totals, (times, residuals), reverse=True, unroll=2)
    _, pull = jax.vjp(jax.vmap(step, (None, 0, 0)), params, before, inputs)
    to_params, _, to_inputs = pull(jax.tree.map(lambda x: x[1:], totals))
    return to_params, _row(totals, 0), to_inputs


def _row(tree: Tree, t: Array | int) -> Tree:
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, t, keepdims=False), tree)


def _put(tree: Tree, t: Array | int, row: Tree) -> Tree:
    return jax.tree.map(lambda x, y: jax.lax.dynamic_update_index_in_dim(x, y, t, 0), tree, row)


_recurrence.defvjp(_forward, _backward)


def _pullbacks(
    function: Callable[[Tree, Tree], Tree], states: Tree, inputs: Tree
) -> tuple[Callable[[list], Callable], list]:
    """The gradients of `function` with respect to the state, at every step, computed at once.

    Returns:
      A function from the residuals of one step to its pullback, and the residuals of all steps:
      leaves [T, ...]. What does not depend on the step, such as weights, is not repeated.
    """
    structure = None

    def residuals(state: Tree, now: Tree) -> list:
        nonlocal structure
        _, pull = jax.vjp(lambda state: function(state, now), state)
        leaves, structure = jax.tree.flatten(pull)
        return leaves

    first = jax.tree.map(lambda x: x[0], (states, inputs))
    jaxpr = jax.make_jaxpr(residuals)(*first).jaxpr
    found = _computed_from(jaxpr.invars, jaxpr)
    varies = [isinstance(x, jax.extend.core.Var) and x in found for x in jaxpr.outvars]
    leaves = jax.vmap(residuals, out_axes=[0 if v else None for v in varies])(states, inputs)
    shared = [None if v else leaf for v, leaf in zip(varies, leaves, strict=True)]

    def pull_at(varying: list) -> Callable:
        own = iter(varying)
        leaves = [next(own) if leaf is None else leaf for leaf in shared]
        return jax.tree.unflatten(structure, leaves)

    return pull_at, [leaf for v, leaf in zip(varies, leaves, strict=True) if v]


def _hoist(step: Step, params: Tree, state: Tree, now: Tree) -> tuple[Step, list]:
    """Hoists what depends on the weights alone out of the step.

    Returns:
      The remaining step and the weights it takes. XLA would leave slices and transposes of weights
      in the loop, one kernel each.
    """
    program, shape = jax.make_jaxpr(step, return_shape=True)(params, state, now)
    jaxpr, structure = program.jaxpr, jax.tree.structure(shape)
    evaluate = jax.extend.core.jaxpr_as_fun
    weights, inputs = jax.tree.leaves(params), jaxpr.invars[len(jax.tree.leaves(params)) :]
    varies = _computed_from(inputs, jaxpr)
    late = [e for e in jaxpr.eqns if varies.intersection(e.outvars)]
    early = [e for e in jaxpr.eqns if not varies.intersection(e.outvars)]
    read = [x for equation in late for x in equation.invars] + jaxpr.outvars
    passed = [x for x in _variables(read) if x not in varies]
    before = jaxpr.replace(eqns=early, invars=jaxpr.invars[: len(weights)], outvars=passed)
    after = jaxpr.replace(eqns=late, constvars=[], invars=passed + inputs)
    remaining = evaluate(program.replace(jaxpr=after, consts=[]))

    def step_with(weights: list, state: Tree, now: Tree) -> Tree:
        leaves = remaining(*weights, *jax.tree.leaves((state, now)))
        return jax.tree.unflatten(structure, leaves)

    return step_with, evaluate(program.replace(jaxpr=before))(*weights)


def _computed_from(inputs: Iterable, jaxpr: Any) -> set:
    """The variables computed from these inputs, including the inputs."""
    found = set(inputs)
    for equation in jaxpr.eqns:
        if found.intersection(_variables(equation.invars)):
            found.update(equation.outvars)
    return found


def _variables(atoms: Iterable) -> list:
    """The variables among them, without literals or duplicates."""
    return list(dict.fromkeys(x for x in atoms if isinstance(x, jax.extend.core.Var)))
