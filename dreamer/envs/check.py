"""A check that any environment must pass: `python -m dreamer.envs check`, before training on one.

Legend: N environments.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import dm_env
import numpy as np
from dm_env import specs

from dreamer.envs.base import FIRST, LAST, MID, BatchedEnv, Specs, mask_key, random_action
from dreamer.envs.faults import AGAIN
from dreamer.errors import EnvironmentFault, UserError

Path = list[tuple[dm_env.TimeStep, dict[str, np.ndarray]]]  # time steps, and what was done there
LIMIT = 5  # steps of the time limit that is tried
SAME = 50  # steps that two environments of one seed are compared for
FIX = "an environment must not fail: fix it, and check again"


class CheckError(UserError):
    """What is wrong with an environment: where, what was expected and what was got."""


@dataclass(frozen=True)
class Endings:
    """How many episodes were seen to end, and how; what could be tried of the promises."""

    terminated: int
    truncated: int
    repeats: bool = True  # whether the environment can repeat its episodes
    limited: bool = False  # whether one ended by the time limit that was tried


def check_all(make: Callable[..., BatchedEnv], steps: int = 300, seed: int = 0) -> Endings:
    """Everything that is promised of an environment, and of others made like it.

    Args:
      make: N environments, always of one seed; `make(time_limit=5)` with another limit.
      steps, seed: as in `check`.

    Raises:
      CheckError: A promise is broken; the message says which.
    """
    path: Path = []
    with _checked(make()) as env:
        endings = check(env, steps, seed, path)
    with _checked(make()) as env:
        _check_same(env, path)
    if not endings.repeats:  # nor is there a time limit for several environments made at once
        return endings
    with _checked(make(time_limit=LIMIT)) as env:
        return replace(endings, limited=_check_limit(env, path))


@contextlib.contextmanager
def _checked(env: BatchedEnv) -> Iterator[BatchedEnv]:
    """Closes it in the end; what fails is a broken promise."""
    try:
        with contextlib.closing(env):
            yield env
    except EnvironmentFault as fault:
        raise CheckError(f"{str(fault).removesuffix(AGAIN)}; {FIX}") from fault


def check(env: BatchedEnv, steps: int = 100, seed: int = 0, path: Path | None = None) -> Endings:
    """Steps `env` with random actions and checks every promise of `BatchedEnv`.

    Args:
      env: N environments; it is reset, and left in the middle of an episode.
      steps: Steps to take; enough for some episodes to end, so that endings are checked too.
      seed: Of the actions.
      path: gets the first time steps and what was done there.

    Raises:
      CheckError: A promise is broken; the message says which.
    """
    rng = np.random.default_rng(seed)
    terminated = truncated = 0
    _check_actions(env.action_spec())
    _check_masks(env.observation_spec(), env.action_spec())
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
        first = following.step_type == FIRST
        as_due = first == (time_step.step_type == LAST)
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


# ----------------------------------------------------------------------------------------- specs


def _check_actions(spec: Specs) -> None:
    _require(bool(spec), "there is no action")
    for key, leaf in spec.items():
        _require(isinstance(leaf, specs.BoundedArray), f"action '{key}' has no bounds")
        if np.issubdtype(leaf.dtype, np.floating):
            unit = (leaf.minimum == -1).all() and (leaf.maximum == 1).all()
            _require(unit, f"action '{key}' is continuous and must be in [-1, 1]")


def _check_masks(observations: Specs, actions: Specs) -> None:
    """Every observation of booleans must be the mask of a discrete action."""
    expected = {
        mask_key(key): (*leaf.shape, int(np.max(leaf.maximum)) + 1)
        for key, leaf in actions.items()
        if isinstance(leaf, specs.BoundedArray) and np.issubdtype(leaf.dtype, np.integer)
    }
    for key, leaf in observations.items():
        if leaf.dtype == np.bool_:
            allowed = ", ".join(f"{name} {shape}" for name, shape in expected.items()) or "none"
            _require(
                expected.get(key) == leaf.shape,
                f"observation '{key}' of booleans {leaf.shape} is the mask of no action; expected "
                f"{allowed}",
            )


# ------------------------------------------------------------------------------------ time steps


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
    known = np.isin(time_step.step_type, (FIRST, MID, LAST))
    _require_all(known, "unknown step_type", where, time_step.step_type)
    finite = np.isfinite(time_step.reward)
    _require_all(finite, "reward is not finite", where, time_step.reward)
    no_reward = ~first | (time_step.reward == 0)
    _require_all(no_reward, "reward must be 0 at FIRST", where, time_step.reward)
    binary = np.isin(time_step.discount, (0, 1))
    _require_all(binary, "discount must be 0 or 1", where, time_step.discount)
    alive = ~first | (time_step.discount == 1)
    _require_all(alive, "discount must be 1 at FIRST", where, time_step.discount)
    spec = env.observation_spec()
    keys = time_step.observation.keys()
    _require(
        keys == spec.keys(), f"{where}: observation has keys {sorted(keys)}, spec {sorted(spec)}"
    )
    for key, leaf in spec.items():
        value, name = time_step.observation[key], f"observation '{key}'"
        _check_value(value, leaf, env.num_envs, name, where)
        if leaf.dtype == np.bool_:
            some = value.reshape(env.num_envs, -1).any(-1)  # one part of it may have none
            over = time_step.step_type == LAST
            _require_all(some | over, f"{name} allows no class of an action", where)


def _check_value(
    value: np.ndarray, leaf: specs.Array, num_envs: int, name: str, where: str
) -> None:
    shape = (num_envs, *leaf.shape)
    right = value.dtype == leaf.dtype and value.shape == shape
    got, expected = f"{value.dtype} {value.shape}", f"{leaf.dtype} {shape}"
    _require(right, f"{where}: {name} is {got}, spec says {expected}")
    each = value.reshape(num_envs, -1)
    _require_all(np.isfinite(each).all(-1), f"{name} is not finite", where)
    if isinstance(leaf, specs.BoundedArray):
        inside = ((value >= leaf.minimum) & (value <= leaf.maximum)).reshape(num_envs, -1).all(-1)
        bounds = f"expected [{np.min(leaf.minimum)}, {np.max(leaf.maximum)}]"
        got = f"has values in [{value.min()}, {value.max()}], outside its spec"
        _require_all(inside, f"{name} {got}, {bounds}", where)


# ------------------------------------------------------------------------------------- repetition


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
    """Another environment of the same seed goes the same way."""
    found = env.reset()
    for number, (expected, action) in enumerate(path):
        _require_whole(env, f"step {number} of another environment")
        differing = _differing(expected, found)
        what = f"{differing} of step {number} differs between two environments of one seed"
        _require(not differing, what)
        found = env.step(action)


def _check_limit(env: BatchedEnv, path: Path) -> bool:
    """One with a time limit of `LIMIT` steps goes the same way up to it, and is truncated there.

    Returns whether that was seen, which it is not where an episode ends before.
    """
    where = f"with a time limit of {LIMIT} steps"
    found = env.reset()
    for number, (expected, action) in enumerate(path[: LIMIT + 1]):
        _require_whole(env, where)
        if number == LIMIT:
            _require_all(found.step_type == LAST, "the episode goes on", where)
            alike = found.discount == expected.discount
            what = f"the discount must be {expected.discount}, as without: it is no termination"
            _require_all(alike, what, where, found.discount)
            found = found._replace(step_type=expected.step_type)
        differing = _differing(expected, found)
        _require(not differing, f"{where}: {differing} of step {number} differs from without")
        if number == LIMIT or (expected.step_type == LAST).any():
            return number == LIMIT
        found = env.step(action)
    return False


def _differing(left: dm_env.TimeStep, right: dm_env.TimeStep) -> str:
    """What is not the same in two time steps, bit for bit; empty if all is."""
    fields = [
        name
        for name in ("step_type", "reward", "discount")
        if not np.array_equal(getattr(left, name), getattr(right, name))
    ]
    keys = [
        f"observation '{key}'"
        for key in left.observation
        if not np.array_equal(left.observation[key], right.observation[key])
    ]
    return ", ".join(fields + keys)


# ---------------------------------------------------------------------------------------- errors


def _require(condition: bool | np.bool_, message: str) -> None:
    if not condition:
        raise CheckError(message)


def _require_whole(env: BatchedEnv, where: str) -> None:
    """Refuses one that failed, although a run would restart it."""
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
