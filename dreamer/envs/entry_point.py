"""Environments that a function of the user makes: `env.entry_point=package.module:function`."""

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


@dataclass(frozen=True)
class EntryPoint:
    """A function and its configured arguments."""

    function: Callable[..., Any]
    kwargs: Mapping[str, Any]
    takes: tuple[str, ...]  # names of arguments, ** if it takes any
    needs: tuple[str, ...]  # those without a default value

    def wants(self, name: str) -> bool:
        """Whether it takes an argument that is not configured."""
        return name in self.takes and name not in self.kwargs

    def make(self, **arguments: Any) -> Made:
        """Calls the function with those of `arguments` that it `wants`.

        A dm_env environment is adapted. If the function takes a seed, every episode recreates the
        environment, so that it repeats.

        Raises:
          UserError: The function needs an argument that is not configured, fails, or returns
            something else.
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
            if not self.wants("seed"):
                return FromDMEnv(lambda seed: made, reseed=lambda env, seed: None)
            made.close()
            return FromDMEnv(lambda seed: self.function(**given | {"seed": seed}))
        if not isinstance(made, Made):
            raise UserError(
                f"{_name(self.function)} makes {_kind(made)}, which must be {ALLOWED}; "
                f"{_advice(made)}"
            )
        return made


def find(entry_point: str, kwargs: Mapping[str, Any]) -> EntryPoint:
    """Finds `module:function`; modules of the working directory can be imported too.

    Raises:
      UserError: There is no such function, or it does not take the arguments.
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
            f"{module} has no function {name}, but {_kind(function)} of that name; name the class "
            "or a function that makes the environment"
        )
    return of(function, kwargs)


def of(function: Callable[..., Any], kwargs: Mapping[str, Any]) -> EntryPoint:
    """Checks the arguments of a function.

    Raises:
      UserError: It does not take them.
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (ValueError, TypeError):  # a function that is not written in Python
        return EntryPoint(function, kwargs, ("**",), ())
    takes = [x.name for x in parameters if x.kind in (x.POSITIONAL_OR_KEYWORD, x.KEYWORD_ONLY)]
    unknown = sorted(kwargs.keys() - set(takes))
    if any(x.kind is x.VAR_KEYWORD for x in parameters):
        takes.append("**")
    elif unknown:
        raise UserError(
            f"env.kwargs has {unknown[0]}, but {_name(function)} takes "
            f"{', '.join(takes) or 'no arguments'}{nearest(unknown[0], takes)}"
        )
    variable = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    needs = [x.name for x in parameters if x.default is x.empty and x.kind not in variable]
    return EntryPoint(function, kwargs, tuple(takes), tuple(needs))


def import_module(name: str) -> Any:
    """Imports a module of the user.

    Raises:
      UserError: There is none, or it fails.
    """
    try:
        return attempt(f"{name} cannot be imported:", importlib.import_module, name)
    except EnvironmentFault as error:
        cause = error.__cause__
        missing = isinstance(cause, ModuleNotFoundError) and cause.name
        if not (missing and f"{name}.".startswith(f"{missing}.")):
            raise
        here = os.getcwd()
        places = f"in {here} or among installed packages"
        if importing.leaves_out(here):
            places = (
                f"among installed packages, and modules of {here} are not imported, for it holds "
                "saved files or is inside of a folder that does: start in a folder of your own"
            )
        raise UserError(
            f"there is no module {missing} {places}; if it is of a package, pip install {missing}"
        ) from None


def _advice(made: Any) -> str:
    """What to do about an object that is no environment: the first rule that applies."""
    name, packages = type(made).__name__, {x.__module__.split(".")[0] for x in type(made).__mro__}
    generator = inspect.isgenerator(made) or inspect.iscoroutine(made) or inspect.isasyncgen(made)
    if generator:
        getattr(made, "close", lambda: None)()

    def has(*names: str) -> bool:
        return all(hasattr(made, one) for one in names)

    rules = (
        (made is None, "it may lack its `return`"),
        (isinstance(made, type), f"return {getattr(made, '__name__', '')}(), an instance of it"),
        (generator, "return the environment from a function without `yield` and `async`"),
        (
            "pettingzoo" in packages or has("possible_agents") or has("agent_iter"),
            "environments of PettingZoo have several agents, and one is trained here: wrap it as a "
            "gymnasium.Env that sees and acts for one of them",
        ),
        (
            "stable_baselines3" in packages or has("step_async", "step_wait"),
            "a VecEnv of Stable-Baselines3 is stepped otherwise: make one gymnasium.Env, of which "
            "env.num_envs are stepped together",
        ),
        (
            packages & {"gym", "gym_notices"},
            "environments of the package gym, which gymnasium replaced, have another interface: "
            "derive it from gymnasium.Env, or convert it with "
            "gymnasium.make('GymV26Environment-v0', env=...) of the package shimmy",
        ),
        (has("reset", "step"), f"derive {name} from gymnasium.Env"),
        (callable(made), "call it, and return what it makes"),
        (True, "return the environment alone"),
    )
    return next(advice for applies, advice in rules if applies)


def _kind(value: Any) -> str:
    match value:
        case None:
            return "None"
        case type():
            return f"the class {value.__name__}"
        case _:
            name = f"{type(value).__module__}.{type(value).__qualname__}"
            return f"a {name.removeprefix('builtins.')}"


def _name(function: Any) -> str:
    return getattr(function, "__name__", type(function).__name__)
