"""Suite `gymnasium`: any id of an installed gymnasium package.

An id of another package is written `package:id`, which imports the package first, for example
`ale_py:ALE/Pong-v5`. Every image in the observation is resized to `image_size`.
"""

import contextlib
import functools
import importlib
from collections.abc import Iterator

import gymnasium
from gymnasium.envs.registration import EnvSpec, load_env_creator
from gymnasium.wrappers import TimeLimit

from dreamer.config.env import GymnasiumEnv
from dreamer.envs.base import BatchedEnv
from dreamer.envs.vector import VectorEnv
from dreamer.envs.wrappers import Pixels, Repeat, ResizeImages, Size
from dreamer.errors import UserError, nearest

EXTRAS = {  # gymnasium's own folders and the extra of gymnasium each needs
    "gymnasium.envs.box2d": "box2d",
    "gymnasium.envs.classic_control": "classic-control",
    "gymnasium.envs.mujoco": "mujoco",
    "gymnasium.envs.toy_text": "toy-text",
}


def make(config: GymnasiumEnv, num_envs: int, seed: int, render: bool = False) -> BatchedEnv:
    """Makes `num_envs` environments of one gymnasium id.

    Raises:
      UserError: The id is unknown, needs a package that is not installed, has spaces that are not
        supported, or cannot render although `pixels` is set.
    """
    spec = _find(config.task)
    maker = functools.partial(
        _make_one, spec, config.repeat, config.time_limit, config.image_size, config.pixels, render
    )
    with _errors(spec):
        return VectorEnv(maker, num_envs, seed, config.workers, render)


def _make_one(
    spec: EnvSpec, repeat: int, time_limit: int, size: Size, pixels: bool, render: bool
) -> gymnasium.Env:
    """Makes one environment; `time_limit`, in agent steps, replaces its own unless it is 0."""
    render_mode = "rgb_array" if (pixels or render) and _renders(spec) else None
    env = gymnasium.make(
        spec,
        max_episode_steps=-1 if time_limit else None,
        disable_env_checker=True,
        **({"render_mode": render_mode} if render_mode else {}),
    )
    if repeat > 1:
        env = Repeat(env, repeat)
    if time_limit:
        env = TimeLimit(env, time_limit)
    return Pixels(env, size) if pixels else ResizeImages(env, size)


def _renders(spec: EnvSpec) -> bool:
    entry = spec.entry_point
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
def _errors(spec: EnvSpec) -> Iterator[None]:
    """Turns a missing package into a UserError with the pip command; adds the task to others."""
    try:
        yield
    except (gymnasium.error.DependencyNotInstalled, ImportError) as error:
        entry = spec.entry_point if isinstance(spec.entry_point, str) else ""
        extra = next((extra for folder, extra in EXTRAS.items() if entry.startswith(folder)), None)
        command = f'pip install "gymnasium[{extra}]"' if extra else str(error)
        raise UserError(
            f"env.task={spec.id} needs a package that is not installed; {command}"
        ) from error
    except gymnasium.error.Error as error:
        raise UserError(f"env.task={spec.id} cannot be made: {error}") from error
    except TypeError as error:
        if "required" not in str(error):  # else an argument that only `kwargs` of the id could give
            raise
        raise UserError(
            f"env.task={spec.id} cannot be made: {error}; register an id that has all arguments"
        ) from error
    except UserError as error:
        raise UserError(f"env.task={spec.id}: {error}") from error
