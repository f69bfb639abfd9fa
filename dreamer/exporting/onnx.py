"""ONNX by jax2onnx, for onnxruntime. Noise is an input: ONNX has none of the draws of jax."""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import numpy as np

from dreamer.errors import UserError
from dreamer.exporting.function import Exported, Form, PolicyFunction, batched

CALL = (
    "inputs by name: memory/KEY, observation/KEY, is_first and noise/KEY, arrays [N, *shape]; "
    "outputs by name: next/KEY, the memory for the next call, and action/KEY; is_first is bool "
    "[N]; noise is drawn anew for every call, from the distribution told under noise"
)


def convert(function: PolicyFunction, num_envs: int) -> Exported:
    """The function as an ONNX model of N environments; jax2onnx cannot leave their number open.

    Raises:
      UserError: the extra onnx is not installed.
    """
    inputs = _inputs(function)
    flat = partial(_flat, function, list(inputs))
    outputs = [f"next/{key}" for key in function.memory]
    outputs += [f"action/{key}" for key in function.action]
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
        model: Any = to_onnx(flat, inputs=forms, model_name="policy", **names)
    data = bytes(model.SerializeToString())
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    draw = jax.jit(partial(function.noise, num_envs))

    def act(memory: Any, observation: Any, is_first: Any, seed: Any) -> tuple:
        parts = {"memory": memory, "observation": observation, "noise": jax.device_get(draw(seed))}
        given = {f"{part}/{key}": x for part, keys in parts.items() for key, x in keys.items()}
        found = session.run(outputs, given | {"is_first": is_first})
        count = len(function.memory)
        memory = dict(zip(function.memory, found[:count], strict=True))
        return memory, dict(zip(function.action, found[count:], strict=True))

    def draws(steps: int, num_envs: int) -> dict[str, np.ndarray]:
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


def _inputs(function: PolicyFunction) -> Form:
    """What one environment gives to a call, by the name of the input."""
    parts = {
        "memory": function.memory,
        "observation": function.observation,
        "noise": function.noise_form,
    }
    named = {f"{part}/{key}": x for part, form in parts.items() for key, x in form.items()}
    return named | {"is_first": jax.ShapeDtypeStruct((), np.dtype(bool))}


def _flat(function: PolicyFunction, names: list[str], *arrays: Any) -> tuple:
    """The function from arrays in the order of their names to those of memory and action."""
    given: dict[str, Any] = {"": {}}
    for name, array in zip(names, arrays, strict=True):
        part, _, key = name.rpartition("/")
        given.setdefault(part, {})[key] = array
    first = given[""]["is_first"]
    memory, action = function.with_noise(
        given["memory"], given["observation"], first, given["noise"]
    )
    return (
        *(memory[key] for key in function.memory),
        *(action[key] for key in function.action),
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """jax2onnx warns of names that jax will remove, and logs the plugins that it cannot load."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = logging.root.manager.disable
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(before)
