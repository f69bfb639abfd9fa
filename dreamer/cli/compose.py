"""From options to a frozen configuration: group files, a file of the user's and the options are
merged, then the schema validates. The command line has the grammar of Hydra."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from dreamer.cli import groups, habits
from dreamer.config import Config, keys, serialization, trust
from dreamer.config.env import Env
from dreamer.config.explain import first_line, joined, unknown_key, validate
from dreamer.config.options import TrainOptions
from dreamer.errors import UserError
from dreamer.system import files

Schema = TypeVar("Schema", bound=BaseModel)
Reader = Callable[[str, Any, FieldInfo], Any]  # of a value: its key, the value, the field

# Keys of a saved configuration that do not apply to other runs.
OWN = ("run.dir", "run.accept_changes", "checkpoint.dir")


def compose(overrides: Iterable[str] | Mapping[str, Any] = ()) -> Config:
    """Returns the configuration for options; it may be run.

    Later ones override earlier ones: the default groups and those that `config=FILE` chooses, the
    values in FILE, the groups that the options choose, the values of the options. If FILE is the
    saved configuration of a run, which is complete, the default groups and its own folders are left
    out. A `run.dir` that contains a run, with no keys but those that are free on resume, starts
    from the saved configuration of that run, its `checkpoint.dir` included.

    Args:
      overrides: texts such as "env=atari", "size=12m", "seed=1", "config=FILE"; or a mapping of
        keys, dotted or nested, to values, which are used exactly as they are. "trust=true" allows
        what FILE or the saved configuration names, see `trust`.

    Raises:
      UserError: an option that is not GROUP=CHOICE or KEY=VALUE, or that is not allowed; or a file
        names code that the user has never named.
    """
    config, given, source, trusted = _composed(overrides)
    trust.settle(config, given, source, trusted)
    return config


def preview(overrides: Iterable[str]) -> Config:
    """Returns the configuration that `compose` returns, to be printed only: nothing is allowed or
    refused.

    Raises:
      UserError: as `compose`, except for what a file names.
    """
    return _composed(overrides)[0]


def options(argv: Iterable[str], schema: type[Schema]) -> Schema:
    """Returns a schema without groups, such as the evaluation's, filled from KEY=VALUE arguments.

    Raises:
        UserError: an argument that is not KEY=VALUE, or that is not allowed.
    """
    tree = OmegaConf.create({})
    _assign(tree, _split(argv, schema), schema, _from_text)
    return validate(schema, _resolved(tree))


def options_and_env(
    argv: Iterable[str], schema: type[Schema], about: tuple[str, ...] = ("env=", "env.")
) -> tuple[Schema, Env | None]:
    """Returns what `options` does, and the environment that other options name, if any.

    Args:
        argv: of the command.
        schema: as in `options`.
        about: prefixes of the options that name the environment.

    Raises:
        UserError: as `options` and `compose`.
    """
    about_env = [argument for argument in argv if argument.startswith(about)]
    found = options([argument for argument in argv if argument not in about_env], schema)
    return found, compose(about_env).env if about_env else None


def refuse_two_names(given: Mapping[str, Any]) -> None:
    """Refuses two names of the environment from one source; only an entry point overrides the task
    of a group, a recipe or the defaults.

    Args:
      given: values by the full path of their key.

    Raises:
      UserError: both were given.
    """
    if all(given.get(name) for name in keys.ENV_NAMES):
        raise UserError(
            f"env.task={given['env.task']} and env.entry_point={given['env.entry_point']} both "
            "name the environment; keep one of them"
        )


def _composed(
    overrides: Iterable[str] | Mapping[str, Any],
) -> tuple[Config, set[str], str, bool]:
    """Returns the configuration, the keys among the options, the file of the others, and whether
    the user trusts it."""
    if isinstance(overrides, Mapping):
        given = groups.keyed(overrides)
        read: Reader = partial(_from_value, literal=True)
    else:
        given = _split(overrides, Config, (*groups.GROUPS, groups.FILE, "trust"))
        read = _from_text
    trusted = validate(TrainOptions, {"trust": given.pop("trust", False)}).trust
    file, saved = given.pop(groups.FILE, None), _saved_run(given)
    path = saved if file is None else Path(_unquoted(str(file)))
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
        _assign(tree, below, Config, partial(_from_value, literal=complete))
        _assign(tree, given, Config, read)
        config = validate(Config, _resolved(tree))
    except UserError as error:
        if complete:
            in_file |= {*keys.every(Config), *keys.sections(Config)}
        if str(error).partition("=")[0] in in_file - in_options:
            raise UserError(f"{path}: {error}") from None
        raise
    if not config.run.dir:
        run = config.run.model_copy(update={"dir": _run_folder(config, choices, path)})
        config = config.model_copy(update={"run": run})
    return config, in_options, str(path or ""), trusted


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
    """Returns the saved configuration of the run in `run.dir`, if all keys are among those that a
    resumed run may change."""
    if not given.get("run.dir") or not all(map(serialization.is_free, given)):
        return None
    try:
        path = Path(_unquoted(str(given["run.dir"]))).expanduser() / groups.CONFIG
        content = files.read(path, serialization.MOST)
    except (OSError, RuntimeError, ValueError):
        return None
    return path if content.startswith(serialization.HEADER.encode()) else None


def _run_folder(config: Config, choices: dict[str, str], path: Path | None) -> str:
    """A name made of the options, so that the same command finds it again.

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


# ----------------------------------------------------------------------------------------- values


def _assign(tree: DictConfig, given: dict[str, Any], schema: type[BaseModel], read: Reader) -> None:
    """Writes each given value into the tree if all keys exist.

    Raises:
      UserError: there is no such key, or a value cannot be read.
    """
    suite = tree.env.suite if "env" in tree else ""
    known = keys.leaves(schema, suite)
    shown = {key: keys.show(value) for key, value in given.items()}
    unknown = [
        f"{key}={shown[key]}: {habits.of_hydra(key, shown[key])}"
        if key.startswith("hydra") and "run.dir" in known
        else unknown_key(key, shown[key], schema, suite)
        for key in given
        if key not in known
    ]
    if unknown:
        raise UserError(joined(unknown))
    for key, value in given.items():
        if key == "env.suite" and (value != suite or read is _from_text):
            raise UserError(
                f"{key}={shown[key]}: the suite is a group; write env=CHOICE, "
                f"{groups.one_of('env')}"
            )
        found = read(key, value, known[key])
        if isinstance(found, dict):  # the schema does not validate its contents
            serialization.plain(key, found, literal=False)
        try:
            OmegaConf.update(tree, key, found, merge=False, force_add=True)
        except (OmegaConfBaseException, RecursionError) as error:
            raise UserError(f"{key}={shown[key]}: cannot be read: {first_line(error)}") from None


def _resolved(tree: DictConfig) -> Any:
    """Returns plain mappings with all references replaced.

    Raises:
      UserError: one refers to no key.
    """
    try:
        return OmegaConf.to_container(tree, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"a reference ${{...}} cannot be resolved: {first_line(error)}") from None


def _from_text(key: str, text: str, field: FieldInfo) -> Any:
    """Reads a value by Hydra's grammar, but text as written: a folder may be named 2024."""
    if field.annotation is str:
        return None if text == "null" else _unquoted(text)
    try:
        override = OverridesParser.create().parse_override(f"{key}={text}")
        if not override.is_sweep_override():
            return override.value()
    except (HydraException, ValueError, TypeError, RecursionError):
        quotes = (
            "; text with other characters than letters, digits and /-+.$%*@:?| needs quotes, as in "
            f"'{key}={{name: \"a=b\"}}'"
        )
        raise UserError(
            f"{key}={text}: cannot be read; expected {keys.expected(field)}"
            f"{quotes if text[:1] in ('{', '[') else ''}"
        ) from None
    raise UserError(
        f"{key}={text}: several values; expected {keys.expected(field)} (a list is written [1,2])"
    )


def _from_value(key: str, value: Any, field: FieldInfo, literal: bool) -> Any:
    """Returns a value of a file or a program; text for another type is parsed.

    Args:
      key, value, literal: as in `serialization.plain`.
      field: of the key.
    """
    if field.annotation is str and isinstance(value, int | float):
        raise UserError(f"{key}={keys.show(value)}: expected text; put it in quotes")
    if isinstance(value, str) and field.annotation is not str:
        return _from_text(key, value, field)
    return serialization.plain(key, value, literal)


def _unquoted(text: str) -> str:
    """Returns text without the quotes around it."""
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return text[1:-1] if quoted else text
