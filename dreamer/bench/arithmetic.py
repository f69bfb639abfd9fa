"""The arithmetic of a function, counted in its traced program without running it."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax


def flops(function: Callable, *args: Any) -> float:
    """Multiplications and additions in the matrix products and convolutions of one call.

    Bodies of scans count once per trip, which XLA's own cost analysis does not do; the rest of the
    arithmetic is small and left out.

    Args:
      function: anything that jax can trace.
      *args: arrays or their shapes.
    """
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def _count(jaxpr: Any) -> float:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: Any) -> float:
    name, params = equation.primitive.name, equation.params
    outputs = math.prod(equation.outvars[0].aval.shape) if equation.outvars else 0
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2 * outputs * math.prod(shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        return 2 * outputs * math.prod(kernel) / kernel[params["dimension_numbers"].rhs_spec[0]]
    trips = params["length"] if name == "scan" else 1
    return trips * sum(_count(inner) for inner in _inner(params))


def _inner(params: dict[str, Any]) -> Iterator[Any]:
    """The programs that an equation calls; all branches of a choice."""
    for value in jax.tree.leaves(list(params.values())):
        program = getattr(value, "jaxpr", value)
        if hasattr(program, "eqns"):
            yield program
