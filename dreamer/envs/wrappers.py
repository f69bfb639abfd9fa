"""Gymnasium wrappers around one environment: action repeat, image size, the rendering as input."""

import functools
from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit, TransformObservation

from dreamer.config.env import EnvBase
from dreamer.envs.faults import OLD, attempt, check_space, five, flags, numbers, two
from dreamer.envs.images import resize
from dreamer.envs.spaces import Mask, children, image_shape
from dreamer.errors import EnvironmentFault, UserError

Size = tuple[int, int]  # height, width
RENDERED = (64, 64)  # size of renderings without `image_size`
NO_FRAMES = (
    "env.pixels=true needs an environment that renders rgb_array frames, which this one does not; "
    "use env.pixels=false or another environment"
)


def finish(env: gymnasium.Env, config: EnvBase, pixels: bool = False) -> gymnasium.Env:
    """Adds action repeat, the time limit in agent steps, and the size of images.

    Args:
      pixels: Observe the rendered frame instead.
    """
    if config.repeat > 1:
        env = Repeat(env, config.repeat)
    if config.time_limit:
        env = TimeLimit(env, config.time_limit)
    if pixels:
        return Pixels(env, config.image_size or RENDERED)
    return resize_images(env, config.image_size) if config.image_size else env


class Checked(gymnasium.Wrapper):
    """Checks gymnasium's interface, before another wrapper relies on it.

    Raises:
      UserError: A space is not one of gymnasium.
      EnvironmentFault: Later, reset or step return something else, or render is not implemented.
    """

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        for name in ("observation_space", "action_space"):
            check_space(getattr(env, name, None), name)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, Any]:
        try:
            return two(self.env.reset(seed=seed))
        except TypeError as error:
            if "reset() got an unexpected keyword argument" in str(error):
                raise EnvironmentFault(
                    f"takes no seed in its reset; write `def reset(self, *, seed=None, "
                    f"options=None)`, {OLD}"
                ) from error
            raise

    def step(self, action: Any) -> tuple[Any, float, bool, bool, Any]:
        observation, reward, terminated, truncated, info = five(self.env.step(action))
        return (
            observation,
            float(numbers(reward)),
            bool(flags(terminated, "terminated")),
            bool(flags(truncated, "truncated")),
            info,
        )

    def render(self) -> Any:
        try:
            return self.env.render()
        except NotImplementedError as error:
            raise EnvironmentFault(
                "has no render that works, although it was made with render_mode=rgb_array; write "
                "one that returns uint8 (height, width, 3), or do without frames (env.pixels=false)"
            ) from error


class Repeat(gymnasium.Wrapper):
    """Applies every action `times` times and sums the rewards, up to the end of the episode."""

    def __init__(self, env: gymnasium.Env, times: int) -> None:
        super().__init__(env)
        self._times = times

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        total = 0.0
        for _ in range(self._times):
            observation, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            if terminated or truncated:
                break
        return observation, total, terminated, truncated, info


def resize_images(env: gymnasium.Env, size: Size) -> gymnasium.Env:
    """Resizes every image of the observation to `size`, and nothing else."""
    space = env.observation_space
    resize_all = functools.partial(_resize_images, space, size=size)
    return TransformObservation(env, resize_all, _resized(space, size))


def unbounded(env: gymnasium.Env) -> gymnasium.Env:
    """Removes the bounds of the vectors of the observation, which then are not checked."""
    return TransformObservation(env, lambda same: same, _unbounded(env.observation_space))


class Pixels(gymnasium.ObservationWrapper):
    """Replaces the observation, except masks, by the rendered frame, resized to `size`.

    Raises:
      UserError: The environment does not render itself.
    """

    def __init__(self, env: gymnasium.Env, size: Size) -> None:
        super().__init__(env)
        parts = children(env.observation_space) or []
        self._masks = {key: part for key, part in parts if isinstance(part, Mask)}
        image = _image_space(size, 3)
        self.observation_space = spaces.Dict({"image": image, **self._masks})
        self._size = size
        # Fails now, before anything starts, if the environment cannot render.
        if env.render_mode != "rgb_array":
            raise UserError(f"{NO_FRAMES}; its render_mode is {env.render_mode}")
        attempt("failed in its reset with", env.reset, seed=0)
        try:
            attempt("failed in its render with", self._draw)
        except EnvironmentFault as error:
            raise UserError(f"its frames are to be learned from, but it {error}") from error

    def observation(self, observation: Any) -> dict[str, np.ndarray]:
        image = resize(self._draw(), self._size)
        return {"image": image, **{key: observation[key] for key in self._masks}}

    def _draw(self) -> np.ndarray:
        frame: Any = self.env.render()
        array = isinstance(frame, np.ndarray)
        if not (array and frame.dtype == np.uint8 and frame.shape[2:] == (3,) and frame.size):
            got = f"{frame.dtype} {frame.shape}" if array else type(frame).__name__
            raise EnvironmentFault(f"gave the frame {got}, expected uint8 (height, width, 3)")
        return frame


def _image_space(size: Size, channels: int) -> spaces.Box:
    shape = (*size, channels)
    return spaces.Box(np.zeros(shape, np.uint8), np.full(shape, 255, np.uint8), dtype=np.uint8)


def _resized(space: gymnasium.Space, size: Size) -> gymnasium.Space:
    """Returns the space with all its images of `size`."""
    image = image_shape(space)
    if image:
        return _image_space(size, image[-1])
    parts = {name: _resized(part, size) for name, part in children(space) or ()}
    if isinstance(space, spaces.Dict):
        return spaces.Dict(parts)
    return spaces.Tuple(list(parts.values())) if isinstance(space, spaces.Tuple) else space


def _unbounded(space: gymnasium.Space) -> gymnasium.Space:
    """Returns the space with all its floats from -inf to inf."""
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        return spaces.Box(-np.inf, np.inf, space.shape, cast(Any, space.dtype))
    parts = {name: _unbounded(part) for name, part in children(space) or ()}
    if isinstance(space, spaces.Dict):
        return spaces.Dict(parts)
    return spaces.Tuple(list(parts.values())) if isinstance(space, spaces.Tuple) else space


def _resize_images(space: gymnasium.Space, value: Any, size: Size) -> Any:
    """Returns `value`, an element of `space`, with all its images resized."""
    image = image_shape(space)
    if image:
        return resize(value.reshape(image), size)
    parts = {name: _resize_images(part, value[name], size) for name, part in children(space) or ()}
    if isinstance(space, spaces.Dict):
        return parts
    return tuple(parts.values()) if isinstance(space, spaces.Tuple) else value
