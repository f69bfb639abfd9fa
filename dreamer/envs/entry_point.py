"""Environments that a function of the user's makes: `env.entry_point=package.module:function`."""

import importlib
import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import dm_env
import gymnasium

from dreamer.envs.dm_adapter import FromDMEnv
from dreamer.envs.faults import story
from dreamer.errors import UserError, nearest

Made = gymnasium.Env | gymnasium.vector.VectorEnv
ALLOWED = "a gymnasium.Env, a gymnasium.vector.VectorEnv or a dm_env.Environment"


@dataclass(frozen=True)
class EntryPoint:
    """A function, its arguments that are configured, and the names of those it takes."""

    function: Callable[..., Any]
    kwargs: Mapping[str, Any]
    takes: tuple[str, ...]

    def wants(self, name: str) -> bool:
        """Whether it takes an argument that is not configured."""
        return name in self.takes and name not in self.kwargs

    def make(self, **arguments: Any) -> Made:
        """What the function makes; of `arguments` it gets those that it `wants`.

        A dm_env environment is adapted. One that takes a seed is made anew for every episode, by
        which it repeats.

        Raises:
          UserError: it makes something else.
        """
        given = dict(self.kwargs)
        given |= {name: value for name, value in arguments.items() if self.wants(name)}
        made = self.function(**given)
        if isinstance(made, dm_env.Environment):
            return self._adapt(made, given)
        if not isinstance(made, Made):
            raise UserError(f"makes a {_type_name(made)}, which must be {ALLOWED}")
        return made

    def _adapt(self, made: dm_env.Environment, given: dict[str, Any]) -> FromDMEnv:
        if not self.wants("seed"):
            return FromDMEnv(lambda seed: made, reseed=lambda env, seed: None)
        made.close()
        return FromDMEnv(lambda seed: self.function(**given | {"seed": seed}))


def find(entry_point: str, kwargs: Mapping[str, Any]) -> EntryPoint:
    """Finds `module:function`; modules of the working directory can be imported too.

    Raises:
      UserError: there is no such function, or it does not take the arguments.
    """
    module, colon, name = entry_point.partition(":")
    if not (module and colon and name):
        raise UserError("expected module:function, such as my_module:make")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if f"{module}.".startswith(f"{error.name}."):
            raise UserError(
                f"there is no module {error.name} in {os.getcwd()} or among installed packages"
            ) from error
        raise
    except Exception as error:
        raise UserError(f"{module} cannot be imported: {story(error)}") from error
    function = getattr(found, name, None)
    if not callable(function):
        callables = [key for key, value in vars(found).items() if callable(value)]
        raise UserError(f"{module} has no function {name}{nearest(name, callables)}")
    takes = _arguments(function)
    unknown = sorted(kwargs.keys() - set(takes))
    if unknown and "**" not in takes:
        raise UserError(
            f"env.kwargs has {unknown[0]}, but {name} takes {', '.join(takes) or 'no arguments'}"
            f"{nearest(unknown[0], takes)}"
        )
    return EntryPoint(function, kwargs, takes)


def _arguments(function: Callable[..., Any]) -> tuple[str, ...]:
    """The names of the arguments of a function, and ** if it takes any."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # one that is not written in Python
        return ("**",)
    return tuple(
        "**" if parameter.kind is parameter.VAR_KEYWORD else parameter.name
        for parameter in parameters
        if parameter.kind not in (parameter.POSITIONAL_ONLY, parameter.VAR_POSITIONAL)
    )


def _type_name(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
