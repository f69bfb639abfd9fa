"""ONNX by jax2onnx, for onnxruntime. Noise is an input, because ONNX lacks jax's random numbers."""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import numpy as np

from dreamer.errors import UserError
from dreamer.exporting.function import Exported, PolicyFunction, batched
from dreamer.replay import tree

CALL = (
    "inputs by name: memory/KEY, observation/KEY, is_first and noise/KEY, arrays [N, *shape]; "
    "outputs by name: next/KEY, the memory for the next call, and action/KEY; is_first is bool "
    "[N]; noise is drawn for every call from the distribution under noise"
)


def convert(function: PolicyFunction, num_envs: int) -> Exported:
    """The function as an ONNX model of N environments; jax2onnx needs a fixed number.

    Raises:
      UserError: the extra onnx is not installed.
    """
    inputs = {
        **_named(memory=function.memory, observation=function.observation),
        **_named(noise=function.noise_form),
        "is_first": jax.ShapeDtypeStruct((), np.dtype(bool)),
    }
    outputs = list(_named(next=function.memory, action=function.action))
    with _quiet():
        try:
            import onnxruntime
            from jax2onnx import to_onnx
        except ImportError as error:
            raise UserError(
                f"format=onnx needs the package {error.name}, which is not installed; "
                "pip install 'dreamer[onnx]'"
            ) from None
        forms: Any = list(batched(inputs, num_envs).values())
        names = {"input_names": list(inputs), "output_names": outputs}
        flat = partial(_flat, function, list(inputs))
        model: Any = to_onnx(flat, inputs=forms, model_name="policy", **names)
    data = bytes(model.SerializeToString())
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    draw = jax.jit(partial(function.noise, num_envs))

    def act(memory: Any, observation: Any, is_first: Any, seed: Any) -> tuple:
        noise = jax.device_get(draw(seed))
        given = _named(memory=memory, observation=observation, noise=noise)
        found = session.run(outputs, given | {"is_first": is_first})
        out = _nested(dict(zip(outputs, found, strict=True)))
        return out["next"], out["action"]

    def draws(steps: int) -> dict[str, np.ndarray]:
        noise = [jax.device_get(draw(np.uint32(step))) for step in range(steps)]
        return {f"noise/{key}": np.stack([x[key] for x in noise]) for key in function.noise_form}

    return Exported(
        file="policy.onnx",
        loader="load_policy_onnx.py",
        call=CALL,
        data=data,
        num_envs=num_envs,
        act=act,
        more={"noise": function.noise_described()},
        draws=draws,
    )


def _named(**parts: dict[str, Any]) -> dict[str, Any]:
    """Leaves of parts of the inputs or outputs, by name."""
    return {f"{part}/{key}": x for part, leaves in parts.items() for key, x in leaves.items()}


def _nested(named: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `_named`."""
    return tree.unflatten({tuple(name.split("/", 1)): x for name, x in named.items()})


def _flat(function: PolicyFunction, names: list[str], *arrays: Any) -> tuple:
    """The function from arrays in the order of their names to those of memory and action."""
    given = _nested(dict(zip(names, arrays, strict=True)))
    memory, action = function.with_noise(
        given["memory"], given["observation"], given["is_first"], given["noise"]
    )
    return (
        *(memory[key] for key in function.memory),
        *(action[key] for key in function.action),
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences jax2onnx, which warns of names that jax will remove and logs missing plugins."""
    before = logging.root.manager.disable
    with warnings.catch_warnings(action="ignore"):
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(before)
