"""Suite `gymnasium`: any id of an installed gymnasium package, or whatever a function makes.

An id of another package is written `package:id`, which imports the package first, for example
`ale_py:ALE/Pong-v5`. A function is named by `entry_point`, see `entry_point.py`.
"""

import contextlib
import functools
import importlib
from collections.abc import Iterator

import gymnasium
from gymnasium.envs.registration import EnvSpec, load_env_creator
from gymnasium.wrappers import TimeLimit

from dreamer.config.env import WORKERS, GymnasiumEnv
from dreamer.envs import entry_point, headless
from dreamer.envs.base import BatchedEnv
from dreamer.envs.entry_point import EntryPoint
from dreamer.envs.faults import story
from dreamer.envs.masks import with_masks
from dreamer.envs.vector import VectorEnv
from dreamer.envs.vectorized import Vectorized
from dreamer.envs.wrappers import Pixels, Repeat, ResizeImages, Unbounded
from dreamer.errors import EnvironmentFault, UserError, nearest

RENDERED = (64, 64)  # height and width of renderings without `image_size`
EXTRAS = {  # gymnasium's own folders and the extra of gymnasium each needs
    "gymnasium.envs.box2d": "box2d",
    "gymnasium.envs.classic_control": "classic-control",
    "gymnasium.envs.mujoco": "mujoco",
    "gymnasium.envs.toy_text": "toy-text",
}
TASKS = gymnasium.registry  # the ids, those included that are registered later


def make(config: GymnasiumEnv, num_envs: int, seed: int, render: bool = False) -> BatchedEnv:
    """Makes `num_envs` environments of one gymnasium id, or of what a function makes.

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
    seen = (config.pixels or render) and _can_render(spec, config.pixels)
    render_mode = "rgb_array" if seen else None
    options = {"render_mode": render_mode} if render_mode else {}
    with _failing():
        env = gymnasium.make(
            spec,
            max_episode_steps=-1 if config.time_limit else None,
            disable_env_checker=True,
            **options | config.kwargs,
        )
        return _wrapped(headless.OwnContext(env) if render_mode else env, config)


def _make_own(config: GymnasiumEnv, render: bool, seed: int | None = None) -> gymnasium.Env:
    """Makes one environment of a function, which is found anew in every process."""
    with _failing():
        function = entry_point.find(config.entry_point, config.kwargs)
        seen = {"render_mode": "rgb_array"} if config.pixels or render else {}
        env = function.make(seed=seed, **seen)
        if not isinstance(env, gymnasium.Env):
            raise UserError("makes several environments; let it take their number as num_envs")
        return _wrapped(env, config)


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
    with _failing():
        mode = {"render_mode": "rgb_array"} if render else {}
        vector = function.make(num_envs=num_envs, seed=seed, **mode)
        if not isinstance(vector, gymnasium.vector.VectorEnv):
            raise UserError(
                "takes num_envs, so it must make a gymnasium.vector.VectorEnv of as many members"
            )
        return Vectorized(vector, num_envs, seed, render)


def _wrapped(env: gymnasium.Env, config: GymnasiumEnv) -> gymnasium.Env:
    """With all that is configured; `time_limit`, in agent steps, replaces its own unless 0."""
    if config.repeat > 1:
        env = Repeat(env, config.repeat)
    if config.time_limit:
        env = TimeLimit(env, config.time_limit)
    if not config.check_bounds:
        env = Unbounded(env)
    masked = with_masks(env)
    if masked is not env and config.repeat > 1:
        raise UserError("env.repeat repeats actions that a mask may then forbid; leave it at 1")
    env = masked
    if config.pixels:
        return Pixels(env, config.image_size or RENDERED)
    return ResizeImages(env, config.image_size) if config.image_size else env


def _can_render(spec: EnvSpec, pixels: bool) -> bool:
    entry = spec.entry_point
    if str(entry).startswith("gymnasium.envs.mujoco"):
        headless.choose()
        if pixels:
            headless.require("env.pixels=true")
        return headless.can_draw()
    creator = load_env_creator(entry) if isinstance(entry, str) else entry
    metadata = getattr(creator, "metadata", None)
    return not isinstance(metadata, dict) or "rgb_array" in metadata.get("render_modes", ())


def _find(task: str) -> EnvSpec:
    """Returns the registered spec, which also serves processes that have not registered the id."""
    package, _, name = task.rpartition(":")
    try:
        if package:
            importlib.import_module(package)
        return gymnasium.spec(name)
    except ModuleNotFoundError as error:
        raise UserError(
            f"env.task={task} needs the package {error.name}, which is not installed; "
            f"pip install {error.name}"
        ) from error
    except (ImportError, TypeError, ValueError) as error:  # also for names such as `.a` and `:a`
        raise UserError(f"env.task={task}: {package} cannot be imported: {error}") from error
    except gymnasium.error.Error as error:
        raise UserError(
            f"env.task={task} is no registered gymnasium id{nearest(name, gymnasium.registry)}; "
            "an id of another package is written package:id, as in ale_py:ALE/Pong-v5"
        ) from error


@contextlib.contextmanager
def _failing() -> Iterator[None]:
    """Turns what the user's own code raises into a UserError that says where."""
    try:
        yield
    except (UserError, ImportError, gymnasium.error.Error):
        raise
    except Exception as error:
        raise UserError(f"cannot be made: {story(error)}") from error


@contextlib.contextmanager
def _errors(option: str, entry: object = "") -> Iterator[None]:
    """Turns a missing package into a UserError with the pip command; adds the option to others."""
    try:
        yield
    except (gymnasium.error.DependencyNotInstalled, ImportError) as error:
        folders = EXTRAS.items() if isinstance(entry, str) else ()
        extra = next((extra for folder, extra in folders if str(entry).startswith(folder)), None)
        command = f'pip install "gymnasium[{extra}]"' if extra else str(error)
        raise UserError(f"{option} needs a package that is not installed; {command}") from error
    except gymnasium.error.Error as error:
        raise UserError(f"{option} cannot be made: {error}") from error
    except EnvironmentFault as error:
        raise UserError(f"{option} {error}") from error
    except UserError as error:
        raise UserError(f"{option}: {error}") from error
