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
from dreamer.envs.faults import attempt
from dreamer.errors import EnvironmentFault, UserError, nearest
from dreamer.system import importing

Made = gymnasium.Env | gymnasium.vector.VectorEnv
ALLOWED = "a gymnasium.Env, a gymnasium.vector.VectorEnv or a dm_env.Environment"
NOTABLE = ("reset", "step", "possible_agents", "agent_iter", "step_async", "step_wait")


@dataclass(frozen=True)
class EntryPoint:
    """A function and its arguments that are configured."""

    function: Callable[..., Any]
    kwargs: Mapping[str, Any]
    takes: tuple[str, ...]  # names of arguments, ** if it takes any
    needs: tuple[str, ...]  # those without a default value

    def wants(self, name: str) -> bool:
        """Whether it takes an argument that is not configured."""
        return name in self.takes and name not in self.kwargs

    def make(self, **arguments: Any) -> Made:
        """What the function makes; of `arguments` it gets those that it `wants`.

        A dm_env environment is adapted. One that takes a seed is recreated for every episode, by
        which it repeats.

        Raises:
          UserError: it needs an argument that is not configured, fails, or makes something else.
        """
        given = {name: value for name, value in arguments.items() if self.wants(name)}
        given = {"render_mode": None} | given if "render_mode" in self.needs else given
        given |= self.kwargs
        missing = [name for name in self.needs if name not in given]
        if missing:
            raise UserError(
                f"{_name(self.function)} needs the argument {missing[0]}; give it in quotes as "
                f"'env.kwargs={{{missing[0]}: VALUE}}', or give it a default value"
            )
        made = attempt("cannot be made:", self.function, **given)
        if isinstance(made, dm_env.Environment):
            return self._adapt(made, given)
        if not isinstance(made, Made):
            raise UserError(f"{_name(self.function)} makes {_described(made)}")
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
    found = import_module(module)
    function = getattr(found, name, None)
    if function is None:
        callables = [key for key, value in vars(found).items() if callable(value)]
        raise UserError(f"{module} has no function {name}{nearest(name, callables)}")
    if not callable(function):
        raise UserError(
            f"{module} has no function {name}, but {_a(function)} of that name; name the class or "
            "a function that makes the environment"
        )
    return of(function, kwargs)


def of(function: Callable[..., Any], kwargs: Mapping[str, Any]) -> EntryPoint:
    """A function with arguments.

    Raises:
      UserError: it does not take them.
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (ValueError, TypeError):  # one that is not written in Python
        return EntryPoint(function, kwargs, ("**",), ())
    named = [x for x in parameters if x.kind in (x.POSITIONAL_OR_KEYWORD, x.KEYWORD_ONLY)]
    takes = [x.name for x in named]
    unknown = sorted(kwargs.keys() - set(takes))
    if any(x.kind is x.VAR_KEYWORD for x in parameters):
        takes.append("**")
    elif unknown:
        raise UserError(
            f"env.kwargs has {unknown[0]}, but {_name(function)} takes "
            f"{', '.join(takes) or 'no arguments'}{nearest(unknown[0], takes)}"
        )
    required = [x.name for x in named if x.default is x.empty]
    required += [x.name for x in parameters if x.kind is x.POSITIONAL_ONLY and x.default is x.empty]
    return EntryPoint(function, kwargs, tuple(takes), tuple(required))


def import_module(name: str) -> Any:
    """Imports a module of the user's.

    Raises:
      UserError: there is none, or it fails.
    """
    try:
        return attempt(f"{name} cannot be imported:", importlib.import_module, name)
    except EnvironmentFault as error:
        missing = error.__cause__
        lacks = isinstance(missing, ModuleNotFoundError) and missing.name
        if lacks and f"{name}.".startswith(f"{lacks}."):
            here, places = os.getcwd(), "among installed packages"
            if importing.leaves_out(here):
                places += (
                    f", and modules of {here} are not imported, for it holds saved files or is "
                    "inside of a folder that does: start in a folder of your own"
                )
            else:
                places = f"in {here} or {places}"
            raise UserError(
                f"there is no module {lacks} {places}; if it is of a package, pip install {lacks}"
            ) from None
        raise


def _described(made: Any) -> str:
    """What a function made that is no environment, and what to do about it."""
    packages = {kind.__module__.split(".")[0] for kind in type(made).__mro__}
    has = {name for name in NOTABLE if hasattr(made, name)}
    if made is None:
        advice = "it may lack its `return`"
    elif isinstance(made, type):
        advice = f"return {made.__name__}(), one that is made"
    elif inspect.isgenerator(made) or inspect.iscoroutine(made) or inspect.isasyncgen(made):
        advice = "return the environment from a function without `yield` and `async`"
        getattr(made, "close", lambda: None)()
    elif "pettingzoo" in packages or "possible_agents" in has or "agent_iter" in has:
        advice = (
            "environments of PettingZoo have several agents, and one is trained here: wrap it as a "
            "gymnasium.Env that sees and acts for one of them"
        )
    elif "stable_baselines3" in packages or {"step_async", "step_wait"} <= has:
        advice = (
            "a VecEnv of Stable-Baselines3 is stepped otherwise: make one gymnasium.Env, of which "
            "env.num_envs are stepped together"
        )
    elif packages & {"gym", "gym_notices"}:
        advice = (
            "environments of the package gym, which gymnasium replaced, have another interface: "
            "derive it from gymnasium.Env, or convert it with gymnasium.make('GymV26Environment-v0'"
            ", env=...) of the package shimmy"
        )
    elif {"reset", "step"} <= has:
        advice = f"derive {type(made).__name__} from gymnasium.Env"
    elif callable(made):
        advice = "call it, and return what it makes"
    else:
        advice = "return the environment alone"
    return f"{_a(made)}, which must be {ALLOWED}; {advice}"


def _a(value: Any) -> str:
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    kind = type(value)
    name = kind.__qualname__
    return f"a {name}" if kind.__module__ == "builtins" else f"a {kind.__module__}.{name}"


def _name(function: Any) -> str:
    return getattr(function, "__name__", type(function).__name__)
