"""The contract test of environments: `python -m dreamer.envs check`, before training on one.

Legend: N environments.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import dm_env
import numpy as np
from dm_env import specs

from dreamer.envs.base import FIRST, LAST, MID, BatchedEnv, mask_key, random_action
from dreamer.envs.faults import AGAIN
from dreamer.errors import EnvironmentFault, UserError

Path = list[tuple[dm_env.TimeStep, dict[str, np.ndarray]]]  # time steps and the actions there
LIMIT = 5  # steps of the time limit that is tried
SAME = 50  # steps for which two environments of one seed are compared
FIX = "an environment must not fail: fix it, and check again"


class CheckError(UserError):
    """What is wrong with an environment: where, what was expected and what it returned."""


@dataclass(frozen=True)
class Endings:
    """Number of episodes that ended, by kind, and which checks were possible."""

    terminated: int
    truncated: int
    repeats: bool = True  # whether the environment can repeat its episodes
    limited: bool = False  # whether an episode ended by the time limit that was tried


def check_all(make: Callable[..., BatchedEnv], steps: int = 300, seed: int = 0) -> Endings:
    """Checks an environment, and that others of the same seed behave alike.

    Args:
      make: Makes N environments, always of one seed; `make(time_limit=5)` with another limit.
      steps, seed: As in `check`.

    Raises:
      CheckError: The contract is broken; the message says where.
    """
    path: Path = []
    with _checked(make()) as env:
        endings = check(env, steps, seed, path)
    with _checked(make()) as env:
        _check_same(env, path)
    if not endings.repeats:  # user-made vector environments have no time limit either
        return endings
    with _checked(make(time_limit=LIMIT)) as env:
        return replace(endings, limited=_check_limit(env, path))


@contextlib.contextmanager
def _checked(env: BatchedEnv) -> Iterator[BatchedEnv]:
    """Closes it in the end; a failure breaks the contract."""
    try:
        with contextlib.closing(env):
            yield env
    except EnvironmentFault as fault:
        raise CheckError(f"{str(fault).removesuffix(AGAIN)}; {FIX}") from fault


def check(env: BatchedEnv, steps: int = 100, seed: int = 0, path: Path | None = None) -> Endings:
    """Steps `env` with random actions and checks the contract of `BatchedEnv`.

    Args:
      env: N environments; it is reset, and left in the middle of an episode.
      steps: Steps to take; enough for some episodes to end, so that endings are checked too.
      seed: Of the actions.
      path: Collects the first time steps and their actions.

    Raises:
      CheckError: The contract is broken; the message says where.
    """
    rng = np.random.default_rng(seed)
    terminated = truncated = 0
    _check_specs(env)
    time_step = env.reset()
    _require_whole(env, "reset")
    _require_all(time_step.step_type == FIRST, "reset must give FIRST everywhere", "reset")
    _check_time_step(env, time_step, "reset")
    for number in range(steps):
        where = f"step {number}"
        before = {key: value.copy() for key, value in time_step.observation.items()}
        action = _random(env, time_step, rng)
        if path is not None and number < SAME:
            path.append((time_step, action))
        following = env.step(action)
        _require_whole(env, where)
        for key, value in before.items():
            unchanged = np.array_equal(value, time_step.observation[key], equal_nan=True)
            _require(unchanged, f"{where}: observation '{key}' of the step before was overwritten")
        _check_time_step(env, following, where)
        as_due = (following.step_type == FIRST) == (time_step.step_type == LAST)
        _require_all(as_due, "FIRST must follow LAST, and only LAST", where)
        last = following.step_type == LAST
        terminated += int((last & (following.discount == 0)).sum())
        truncated += int((last & (following.discount == 1)).sum())
        time_step = following
    repeats = getattr(env, "repeats", True)
    if repeats:
        _check_restores(env, time_step)
    return Endings(terminated, truncated, repeats)


def _random(
    env: BatchedEnv, time_step: dm_env.TimeStep, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    return random_action(env.action_spec(), env.num_envs, rng, time_step.observation)


def _check_specs(env: BatchedEnv) -> None:
    """Actions must be bounded, and boolean observations masks of discrete actions."""
    actions, masks = env.action_spec(), {}
    _require(bool(actions), "there is no action")
    for key, leaf in actions.items():
        if not isinstance(leaf, specs.BoundedArray):
            raise CheckError(f"action '{key}' has no bounds")
        if np.issubdtype(leaf.dtype, np.floating):
            unit = (leaf.minimum == -1).all() and (leaf.maximum == 1).all()
            _require(unit, f"action '{key}' is continuous and must be in [-1, 1]")
        else:
            masks[mask_key(key)] = (*leaf.shape, int(np.max(leaf.maximum)) + 1)
    allowed = ", ".join(f"{name} {shape}" for name, shape in masks.items()) or "none"
    for key, leaf in env.observation_spec().items():
        if leaf.dtype == np.bool_ and masks.get(key) != leaf.shape:
            raise CheckError(
                f"observation '{key}' of booleans {leaf.shape} is the mask of no action; expected "
                f"{allowed}"
            )


def _check_time_step(env: BatchedEnv, time_step: dm_env.TimeStep, where: str) -> None:
    step_type, reward, discount, observation = time_step
    dtypes = {"step_type": np.int32, "reward": np.float32, "discount": np.float32}
    for name, dtype in dtypes.items():
        _check_form(getattr(time_step, name), dtype, (env.num_envs,), f"{where}: {name}")
    first = step_type == FIRST
    for fine, rule, value in (
        (np.isin(step_type, (FIRST, MID, LAST)), "unknown step_type", step_type),
        (np.isfinite(reward), "reward is not finite", reward),
        (~first | (reward == 0), "reward must be 0 at FIRST", reward),
        (np.isin(discount, (0, 1)), "discount must be 0 or 1", discount),
        (~first | (discount == 1), "discount must be 1 at FIRST", discount),
    ):
        _require_all(fine, rule, where, value)
    spec = env.observation_spec()
    keys = f"{where}: observation has keys {sorted(observation)}, spec {sorted(spec)}"
    _require(observation.keys() == spec.keys(), keys)
    for key, leaf in spec.items():
        value, name = observation[key], f"observation '{key}'"
        _check_form(value, leaf.dtype, (env.num_envs, *leaf.shape), f"{where}: {name}")
        each = value.reshape(env.num_envs, -1)
        _require_all(np.isfinite(each).all(-1), f"{name} is not finite", where)
        if isinstance(leaf, specs.BoundedArray):
            inside = (value >= leaf.minimum) & (value <= leaf.maximum)
            bounds = f"[{np.min(leaf.minimum)}, {np.max(leaf.maximum)}]"
            got = f"has values in [{value.min()}, {value.max()}], outside its spec"
            rule = f"{name} {got}, expected {bounds}"
            _require_all(inside.reshape(env.num_envs, -1).all(-1), rule, where)
        if leaf.dtype == np.bool_:  # a single entry of it may allow none
            valid = each.any(-1) | (step_type == LAST)
            _require_all(valid, f"{name} allows no class of an action", where)


def _check_form(value: np.ndarray, dtype: Any, shape: tuple[int, ...], name: str) -> None:
    right = value.dtype == dtype and value.shape == shape
    _require(right, f"{name} is {value.dtype} {value.shape}, must be {np.dtype(dtype)} {shape}")


def _check_restores(env: BatchedEnv, time_step: dm_env.TimeStep) -> None:
    """The same seed and actions must give the same state, and the same next step."""
    state = env.get_state()
    action = _random(env, time_step, np.random.default_rng(0))
    following = env.step(action)
    restored, again = env.set_state(state)
    _require_all(restored, "the same seed and actions gave another observation", "set_state")
    _require(not _differing(time_step, again), "set_state did not give the saved time step")
    differing = _differing(following, env.step(action))
    _require(not differing, f"the step after set_state differs from the original one: {differing}")


def _check_same(env: BatchedEnv, path: Path) -> None:
    """Another environment of the same seed must repeat the path."""
    found = env.reset()
    for number, (expected, action) in enumerate(path):
        _require_whole(env, f"step {number} of another environment")
        differing = _differing(expected, found)
        what = f"{differing} of step {number} differs between two environments of one seed"
        _require(not differing, what)
        found = env.step(action)


def _check_limit(env: BatchedEnv, path: Path) -> bool:
    """An environment with a time limit must repeat the path up to it, and truncate there.

    Returns:
      Whether the limit was reached: an episode may end before.
    """
    where = f"with a time limit of {LIMIT} steps"
    found = env.reset()
    for number, (expected, action) in enumerate(path[: LIMIT + 1]):
        _require_whole(env, where)
        if number == LIMIT:
            _require_all(found.step_type == LAST, "the episode continues", where)
            what = f"the discount must be {expected.discount}, as without: it is no termination"
            _require_all(found.discount == expected.discount, what, where, found.discount)
            found = found._replace(step_type=expected.step_type)
        differing = _differing(expected, found)
        _require(not differing, f"{where}: {differing} of step {number} differs from without")
        if number == LIMIT or (expected.step_type == LAST).any():
            return number == LIMIT
        found = env.step(action)
    return False


def _differing(left: dm_env.TimeStep, right: dm_env.TimeStep) -> str:
    """Names what is not the same in two time steps, bit for bit; empty if all is."""
    parts = [
        {"step_type": one.step_type, "reward": one.reward, "discount": one.discount}
        | {f"observation '{key}'": value for key, value in one.observation.items()}
        for one in (left, right)
    ]
    return ", ".join(
        name for name, value in parts[0].items() if not np.array_equal(value, parts[1][name])
    )


def _require(condition: bool | np.bool_, message: str) -> None:
    if not condition:
        raise CheckError(message)


def _require_whole(env: BatchedEnv, where: str) -> None:
    """Refuses an environment that failed, although a run would restart it."""
    for restart in env.restarts:
        raise CheckError(f"{where}: {restart.cause}; {FIX}")


def _require_all(
    conditions: np.ndarray, message: str, where: str, got: np.ndarray | None = None
) -> None:
    """Refuses the first of N environments for which the condition does not hold."""
    if not conditions.all():
        number = int(np.argmin(conditions))
        value = "" if got is None else f", got {got[number]}"
        raise CheckError(f"{where}, environment {number}: {message}{value}")
