"""StableHLO by `jax.export`, which only jax loads."""

from collections.abc import Sequence

import jax
import numpy as np
from jax import export

from dreamer.errors import UserError
from dreamer.exporting.function import Exported, PolicyFunction, batched

CALL = (
    "memory, action = policy(memory, observation, is_first, seed): memory, observation and action "
    "are dicts of arrays [N, *shape], is_first is bool [N], seed is uint32 and differs every step"
)
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def convert(function: PolicyFunction, num_envs: int, platforms: Sequence[str]) -> Exported:
    """The function as serialised by `jax.export`.

    Args:
      function: the policy.
      num_envs: N; 0 is any number.
      platforms: on which it may run, of `PLATFORMS`.

    Raises:
      UserError: a platform is unknown, or the package flatbuffers is not installed.
    """
    unknown = [name for name in platforms if name not in PLATFORMS]
    if unknown:
        raise UserError(
            f"platforms={','.join(platforms)}: {unknown[0]!r} is not one of {', '.join(PLATFORMS)}"
        )
    count = num_envs or export.symbolic_shape("n")[0]
    memory, observation = (batched(form, count) for form in (function.memory, function.observation))
    first, seed = jax.ShapeDtypeStruct((count,), bool), jax.ShapeDtypeStruct((), np.uint32)
    made = export.export(jax.jit(function), platforms=platforms)(memory, observation, first, seed)
    try:
        data = bytes(made.serialize())
    except ImportError:
        raise UserError(
            "an export needs the package flatbuffers, which is not installed; "
            "pip install flatbuffers"
        ) from None
    return Exported(
        file="policy.stablehlo",
        loader="load_policy.py",
        call=CALL,
        data=data,
        num_envs=num_envs,
        act=jax.jit(export.deserialize(bytearray(data)).call),
        more={"platforms": list(platforms)},
    )
