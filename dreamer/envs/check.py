"""A check that any environment must pass: run it on your own before training on it.

Legend: N environments.
"""

import dm_env
import numpy as np
from dm_env import specs

from dreamer.envs.base import FIRST, LAST, MID, BatchedEnv, Specs, random_action


class CheckError(AssertionError):
    """What is wrong with an environment, and where."""


def check(env: BatchedEnv, steps: int = 100, seed: int = 0) -> None:
    """Steps `env` with random actions and checks every promise of `BatchedEnv`.

    Args:
      env: N environments; it is reset, and left in the middle of an episode.
      steps: Steps to take; enough for some episodes to end, so that endings are checked too.
      seed: Of the actions.

    Raises:
      CheckError: A promise is broken; the message says which.
    """
    rng = np.random.default_rng(seed)
    _check_actions(env.action_spec())
    time_step = env.reset()
    _require((time_step.step_type == FIRST).all(), "reset must give FIRST everywhere")
    _check_time_step(env, time_step, "reset")
    for number in range(steps):
        where = f"step {number}"
        before = {key: value.copy() for key, value in time_step.observation.items()}
        following = env.step(random_action(env.action_spec(), env.num_envs, rng))
        for key, value in before.items():
            unchanged = np.array_equal(value, time_step.observation[key], equal_nan=True)
            _require(unchanged, f"{where}: observation '{key}' of the step before was overwritten")
        _check_time_step(env, following, where)
        first = following.step_type == FIRST
        _require(
            (first == (time_step.step_type == LAST)).all(),
            f"{where}: FIRST must follow LAST, and only LAST",
        )
        time_step = following
    _check_restores(env, time_step)


def _check_actions(spec: Specs) -> None:
    _require(bool(spec), "there is no action")
    for key, leaf in spec.items():
        _require(isinstance(leaf, specs.BoundedArray), f"action '{key}' has no bounds")
        if np.issubdtype(leaf.dtype, np.floating):
            unit = (leaf.minimum == -1).all() and (leaf.maximum == 1).all()
            _require(unit, f"action '{key}' is continuous and must be in [-1, 1]")


def _check_time_step(env: BatchedEnv, time_step: dm_env.TimeStep, where: str) -> None:
    shape = (env.num_envs,)
    for name, dtype in (("step_type", np.int32), ("reward", np.float32), ("discount", np.float32)):
        value = getattr(time_step, name)
        right = value.dtype == dtype and value.shape == shape
        _require(
            right,
            f"{where}: {name} is {value.dtype} {value.shape}, must be {np.dtype(dtype)} {shape}",
        )
    first = time_step.step_type == FIRST
    _require(np.isin(time_step.step_type, (FIRST, MID, LAST)).all(), f"{where}: unknown step_type")
    _require(np.isfinite(time_step.reward).all(), f"{where}: reward is not finite")
    _require((time_step.reward[first] == 0).all(), f"{where}: reward must be 0 at FIRST")
    _require(np.isin(time_step.discount, (0, 1)).all(), f"{where}: discount must be 0 or 1")
    _require((time_step.discount[first] == 1).all(), f"{where}: discount must be 1 at FIRST")
    spec = env.observation_spec()
    keys = time_step.observation.keys()
    _require(
        keys == spec.keys(), f"{where}: observation has keys {sorted(keys)}, spec {sorted(spec)}"
    )
    for key, leaf in spec.items():
        _check_value(
            time_step.observation[key], leaf, env.num_envs, f"{where}: observation '{key}'"
        )


def _check_value(value: np.ndarray, leaf: specs.Array, num_envs: int, where: str) -> None:
    shape = (num_envs, *leaf.shape)
    right = value.dtype == leaf.dtype and value.shape == shape
    _require(right, f"{where} is {value.dtype} {value.shape}, spec says {leaf.dtype} {shape}")
    _require(np.isfinite(value).all(), f"{where} is not finite")
    if isinstance(leaf, specs.BoundedArray):
        inside = (value >= leaf.minimum).all() and (value <= leaf.maximum).all()
        _require(inside, f"{where} has values in [{value.min()}, {value.max()}], outside its spec")


def _check_restores(env: BatchedEnv, time_step: dm_env.TimeStep) -> None:
    """The same seed and actions must give the same state, and the same next step."""
    state = env.get_state()
    action = random_action(env.action_spec(), env.num_envs, np.random.default_rng(0))
    following = env.step(action)
    restored, again = env.set_state(state)
    _require(
        restored.all(),
        f"the same seed and actions gave another observation in environments {~restored}",
    )
    _require(_equal(time_step, again), "set_state did not give the saved time step")
    _require(
        _equal(following, env.step(action)),
        "the step after set_state differs from the original one",
    )


def _equal(left: dm_env.TimeStep, right: dm_env.TimeStep) -> bool:
    fields = all(np.array_equal(left[i], right[i]) for i in range(3))
    return fields and all(
        np.array_equal(left.observation[key], right.observation[key]) for key in left.observation
    )


def _require(condition: bool | np.bool_, message: str) -> None:
    if not condition:
        raise CheckError(message)
