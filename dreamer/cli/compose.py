"""From options to a frozen configuration: group files, a file of the user's and the options are
merged, then the schema validates. The command line has the grammar of Hydra."""

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf
from pydantic import BaseModel

from dreamer.cli import groups, habits, values
from dreamer.config import Config, TrainOptions, keys, serialization, trust
from dreamer.config.env import Env
from dreamer.config.explain import validate
from dreamer.errors import UserError
from dreamer.system import files

Schema = TypeVar("Schema", bound=BaseModel)

# What a saved configuration says of its own run alone.
OWN = ("run.dir", "run.accept_changes", "checkpoint.dir")


def compose(overrides: Iterable[str] | Mapping[str, Any] = ()) -> Config:
    """Returns the configuration for options, which may be run.

    Merged are, later ones winning: the default groups and those that `config=FILE` chooses, the
    values in FILE, the groups that the options choose, the values of the options. FILE may be the
    saved configuration of a run: that is complete, so the default groups are left out, and so are
    its folders. A `run.dir` that holds a run, with nothing else but keys that are free on resume,
    starts from the saved configuration of that run, its `checkpoint.dir` included.

    Args:
      overrides: texts such as "env=atari", "size=12m", "seed=1", "config=FILE"; or a mapping of
        keys, dotted or nested, to values, which are taken exactly as they are. With "trust=true"
        what FILE or the saved configuration names may run, see `trust`.

    Raises:
      UserError: an option that is not GROUP=CHOICE or KEY=VALUE, or that is not allowed; a file
        names what the user never named.
    """
    config, given, source, word = _composed(overrides)
    trust.settle(config, given, source, word)
    return config


def preview(overrides: Iterable[str]) -> Config:
    """Returns what `compose` does, to be shown: whatever a file names, nothing of it may run, and
    nothing is remembered.

    Raises:
      UserError: as `compose`, but for what a file names.
    """
    return _composed(overrides)[0]


def options(argv: Iterable[str], schema: type[Schema]) -> Schema:
    """Returns a schema without groups, such as the evaluation's, filled from KEY=VALUE arguments.

    Raises:
        UserError: an argument that is not KEY=VALUE, or that is not allowed.
    """
    tree = OmegaConf.create({})
    values.assign(tree, _split(argv, schema), schema, "", values.from_text)
    return validate(schema, values.resolve(tree))


def options_and_env(
    argv: Iterable[str], schema: type[Schema], about: tuple[str, ...] = ("env=", "env.")
) -> tuple[Schema, Env | None]:
    """Returns what `options` does, and the environment that other options name, if any.

    Args:
        argv: of the command.
        schema: as in `options`.
        about: how the options start that name the environment.

    Raises:
        UserError: as `options` and `compose`.
    """
    about_env = [argument for argument in argv if argument.startswith(about)]
    found = options([argument for argument in argv if argument not in about_env], schema)
    return found, compose(about_env).env if about_env else None


def refuse_two_names(given: Mapping[str, Any]) -> None:
    """Refuses two names of the environment by the user: the task of a group, a recipe or the
    defaults gives way to an entry point.

    Args:
      given: values by the full path of their key.

    Raises:
      UserError: both were given.
    """
    if all(given.get(name) for name in keys.ENV_NAMES):
        raise UserError(
            f"env.task={given['env.task']} and env.entry_point={given['env.entry_point']} both say "
            "what the environment is; keep one of them"
        )


def _composed(
    overrides: Iterable[str] | Mapping[str, Any],
) -> tuple[Config, set[str], str, bool]:
    """Returns the configuration, the keys among the options, the file of the others, and whether
    the user trusts it."""
    if isinstance(overrides, Mapping):
        given = groups.keyed(overrides)
        read: values.Reader = partial(values.from_value, literal=True)
    else:
        given = _split(overrides, Config, (*groups.GROUPS, groups.FILE, "trust"))
        read = values.from_text
    word = options([f"trust={keys.show(given.pop('trust', False))}"], TrainOptions).trust
    file, saved = given.pop(groups.FILE, None), _saved_run(given)
    path = saved if file is None else Path(values.unquoted(str(file)))
    below, complete = groups.read_file(path) if path else ({}, False)
    if complete:
        dropped = OWN if path != saved else OWN[:2]
        below = {key: value for key, value in below.items() if key not in dropped}
    in_file, in_options = set(below), set(given)
    chosen = groups.pop(given)
    try:
        choices = {} if complete else groups.defaults() | groups.with_recipe(groups.pop(below))
        choices |= groups.with_recipe(chosen)
        below = groups.not_covered(below, chosen, given)
        tree = groups.merge(choices, below)
        for named in (given,) if complete else (below, given):  # a complete file has both defaults
            refuse_two_names(named)
        suite, read_below = tree.env.suite, partial(values.from_value, literal=complete)
        values.assign(tree, below, Config, suite, read_below)
        values.assign(tree, given, Config, suite, read)
        config = validate(Config, values.resolve(tree))
    except UserError as error:
        if complete:
            in_file |= {*keys.every(Config), *keys.sections(Config)}
        if str(error).partition("=")[0] in in_file - in_options:
            raise UserError(f"{path}: {error}") from None
        raise
    if not config.run.dir:
        run = config.run.model_copy(update={"dir": _run_folder(config, choices, path)})
        config = config.model_copy(update={"run": run})
    return config, in_options, str(path or ""), word


def _split(
    argv: Iterable[str], schema: type[BaseModel], others: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Returns {key: text of the value}; every argument must be written KEY=VALUE, each key once."""
    argv = list(argv)
    known = {**dict.fromkeys(others), **keys.every(schema)}
    pairs: list[tuple[str, str]] = []
    for index, argument in enumerate(argv):
        advice = habits.advice(argv, index, known)
        if advice:
            raise UserError(f"{argument}: {advice}")
        key, equals, text = argument.partition("=")
        if not equals or not key:
            is_group = key in others and key in groups.GROUPS
            form = f"{key}=CHOICE, {groups.one_of(key)}" if is_group else "KEY=VALUE, as in seed=1"
            raise UserError(f"{argument!r} is not an option; options are written {form}")
        pairs.append((key.lstrip("+"), text))
    return groups.each_once(pairs)


def _saved_run(given: Mapping[str, Any]) -> Path | None:
    """Returns the saved configuration of the run in `run.dir`, where no other key is given than
    those that a resumed run may change."""
    if not given.get("run.dir") or not all(map(serialization.is_free, given)):
        return None
    try:
        path = Path(values.unquoted(str(given["run.dir"]))).expanduser() / groups.CONFIG
        content = files.read(path, serialization.MOST)
    except (OSError, RuntimeError, ValueError):
        return None
    return path if content.startswith(serialization.HEADER.encode()) else None


def _run_folder(config: Config, choices: dict[str, str], path: Path | None) -> str:
    """A name made of what the run is, so that the same command finds it again.

    Raises:
      UserError: it is the folder of the run whose configuration was given.
    """
    agent = [] if choices.get("agent", "default") == "default" else [choices["agent"]]
    first = choices.get("experiment") or (path.stem if path else choices["env"])
    parts = [first, config.env.name, config.size, *agent]
    seed = "" if config.run.seeds > 1 else f"-seed{config.seed}"
    name = f"runs/{'-'.join(str(part).replace('/', '-') for part in parts)}{seed}"
    if path and path.resolve().parent == Path(name).resolve():
        raise UserError(
            f"{groups.FILE}={path} is the configuration of the run in {name}; resume it by "
            f"run.dir={name} alone, or give a new run its own run.dir=FOLDER"
        )
    return name
