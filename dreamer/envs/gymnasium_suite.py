"""Suite `gymnasium`: any id of an installed gymnasium package, or the result of a function.

An id of another package is written `package:id`, which imports the package first, for example
`ale_py:ALE/Pong-v5`. A function is named by `entry_point`, see `entry_point.py`.
"""

import contextlib
import copy
import functools
import multiprocessing
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import gymnasium
from gymnasium.envs.registration import EnvSpec, load_env_creator
from gymnasium.wrappers import TimeLimit

from dreamer.config.env import WORKERS, GymnasiumEnv
from dreamer.envs import entry_point, headless
from dreamer.envs.base import BatchedEnv
from dreamer.envs.entry_point import EntryPoint
from dreamer.envs.faults import attempt, story
from dreamer.envs.masks import Masked, with_masks
from dreamer.envs.vector import VectorEnv
from dreamer.envs.vectorized import Vectorized
from dreamer.envs.wrappers import Checked, finish, unbounded
from dreamer.errors import UserError, nearest

EXTRAS = {  # the extra of gymnasium that each of its folders needs
    "gymnasium.envs.box2d": "box2d",
    "gymnasium.envs.classic_control": "classic-control",
    "gymnasium.envs.mujoco": "mujoco",
    "gymnasium.envs.toy_text": "toy-text",
}
MISSING = (gymnasium.error.DependencyNotInstalled, ModuleNotFoundError)
TASKS = gymnasium.registry  # the ids, including later ones


def make(config: GymnasiumEnv, num_envs: int, seed: int, render: bool = False) -> BatchedEnv:
    """Makes `num_envs` environments of one gymnasium id or function.

    Raises:
      UserError: The id or function is unknown, fails, needs a package that is not installed, has
        spaces that are not supported, or cannot render although `pixels` is set.
    """
    if not config.entry_point:
        spec = _find(config.task)
        with _errors(f"env.task={spec.id}", spec.entry_point):
            maker = functools.partial(_make_registered, spec, config, render)
            return VectorEnv(maker, config, num_envs, seed, render)
    with _errors(f"env.entry_point={config.entry_point}"):
        function = entry_point.find(config.entry_point, config.kwargs)
        if "num_envs" in function.takes:
            return _make_vectorized(function, config, num_envs, seed, render)
        maker = functools.partial(_make_own, config, render)
        return VectorEnv(maker, config, num_envs, seed, render, function.wants("seed"))


def _make_registered(spec: EnvSpec, config: GymnasiumEnv, render: bool) -> gymnasium.Env:
    """Makes one environment of an id."""
    creator: Any = spec.entry_point
    if isinstance(creator, str):
        creator = attempt(f"its {creator} cannot be found:", load_env_creator, creator)
    drawn = (config.pixels or render) and _can_render(spec, creator, config.pixels)
    function = entry_point.of(creator, spec.kwargs | config.kwargs)
    if drawn and {"render_mode", "**"} & set(function.takes):
        function = replace(function, kwargs={"render_mode": "rgb_array", **function.kwargs})
    made = copy.copy(spec)
    made.entry_point, made.kwargs = cast(Any, function.make), {}
    env = gymnasium.make(made, max_episode_steps=-1, disable_env_checker=True)
    env = Checked(headless.OwnContext(env) if drawn else env)
    if spec.max_episode_steps and not config.time_limit:
        env = TimeLimit(env, spec.max_episode_steps)
    return _wrapped(env, config)


def _make_own(config: GymnasiumEnv, render: bool, seed: int | None = None) -> gymnasium.Env:
    """Makes one environment of a function; every process finds the function again."""
    function = entry_point.find(config.entry_point, config.kwargs)
    mode = {"render_mode": "rgb_array"} if config.pixels or render else {}
    env = function.make(seed=seed, **mode)
    if not isinstance(env, gymnasium.Env):
        raise UserError("makes several environments; let it take their number as num_envs")
    return _wrapped(Checked(env), config)


def _make_vectorized(
    function: EntryPoint, config: GymnasiumEnv, num_envs: int, seed: int, render: bool
) -> BatchedEnv:
    """Makes several environments at once."""
    base = type(config)()
    for key in (*WORKERS, "repeat", "time_limit", "image_size", "pixels", "check_bounds"):
        if getattr(config, key) != getattr(base, key):
            raise UserError(
                f"env.{key} is for single environments, but this makes several; leave it out"
            )
    mode = {"render_mode": "rgb_array"} if render else {}
    before = multiprocessing.active_children()
    vector = function.make(num_envs=num_envs, seed=seed, **mode)
    if not isinstance(vector, gymnasium.vector.VectorEnv):
        raise UserError(
            "takes num_envs, so it must make a gymnasium.vector.VectorEnv of as many members"
        )
    started = [one for one in multiprocessing.active_children() if one not in before]
    return Vectorized(vector, num_envs, seed, render, config.name, started)


def _wrapped(env: gymnasium.Env, config: GymnasiumEnv) -> gymnasium.Env:
    """Adds the configured wrappers; `time_limit`, in agent steps, replaces its own unless 0."""
    env = with_masks(env if config.check_bounds else unbounded(env))
    if isinstance(env, Masked) and config.repeat > 1:
        raise UserError("env.repeat repeats actions that a mask may then forbid; leave it at 1")
    return finish(env, config, config.pixels)


def _can_render(spec: EnvSpec, creator: Any, pixels: bool) -> bool:
    if str(spec.entry_point).startswith("gymnasium.envs.mujoco"):
        headless.choose()
        if pixels:
            headless.require("env.pixels=true")
        return headless.can_draw()
    metadata = getattr(creator, "metadata", None)
    return not isinstance(metadata, dict) or "rgb_array" in metadata.get("render_modes", ())


def _find(task: str) -> EnvSpec:
    """Returns the registered spec; it also works in processes without the id."""
    package, _, name = task.rpartition(":")
    if package:
        with _errors(f"env.task={task}"):
            entry_point.import_module(package)
    try:
        return gymnasium.spec(name)
    except gymnasium.error.Error as error:
        raise UserError(
            f"env.task={task} is no registered gymnasium id{nearest(name, gymnasium.registry)}; "
            "an id of another package is written package:id, as in ale_py:ALE/Pong-v5"
        ) from error


@contextlib.contextmanager
def _errors(option: str, entry: object = "") -> Iterator[None]:
    """Adds the option to errors, and the pip command to those of a missing package."""
    try:
        yield
    except UserError as error:
        cause = error.__cause__
        if not isinstance(cause, MISSING):
            raise UserError(f"{option}: {error}") from error
        extras = (extra for folder, extra in EXTRAS.items() if str(entry).startswith(folder))
        extra = next(extras, None)
        reason = story(cause).removeprefix(f"{type(cause).__name__}: ")
        command = f'pip install "gymnasium[{extra}]"' if extra else reason
        raise UserError(f"{option} needs a package that is not installed; {command}") from error
    except Exception as error:
        raise UserError(f"{option} cannot be made: {story(error)}") from error
