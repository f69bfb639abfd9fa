"""From options to a frozen configuration: group files, a file of the user's and the options are
merged, then the schema validates.

Group files are written as for Hydra, and the command line has its grammar, but Hydra itself is not
started: its state is global and belongs to the program that uses this library.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf._utils import get_yaml_loader
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from dreamer import files, keys, trust
from dreamer.config import Config, TrainOptions
from dreamer.config.env import Env
from dreamer.config.section import INT64
from dreamer.errors import UserError, describe, nearest
from dreamer.explain import expected, first_line, habit, joined, unknown_key, validate

Schema = TypeVar("Schema", bound=BaseModel)
Reader = Callable[[str, Any, FieldInfo], Any]

GROUPS = ("env", "size", "agent", "experiment")
MERGED = ("size", "agent", "env", "experiment")  # the groups, later ones over earlier ones
DEEPEST = 50  # nesting of a yaml file
MOST = 2**20  # bytes of one
ALIASES = {"env.id": "env.task"}  # another name of a key
NAMES = {"env.task", "env.entry_point"}  # each says what the environment is
FILE = "config"  # the option that names a file of the user's
CONFIG = "config.yaml"
HEADER = (
    "# Configuration of a dreamer run, complete and resolved. The same run.dir resumes the run.\n"
)
LAST = ("run", "accept_changes")  # section and key that end the saved configuration of any version
# What a saved configuration says of its own run alone.
OWN = ("run.dir", "run.accept_changes", "checkpoint.dir")

# Keys, or whole sections, that a resumed run may change, because none of them touches what the
# agent learns from: how long, where and on what it runs; what is measured, saved and displayed.
FREE_ON_RESUME = (
    "run.steps",
    "run.dir",
    "run.accept_changes",
    "run.seeds",
    "run.grace_seconds",
    "run.max_skipped",
    "run.max_rollbacks",
    "run.policy_device",
    "run.coordinator",
    "run.num_processes",
    "run.process_id",
    "run.join_seconds",
    "run.actors",
    "run.num_actors",
    "run.ray_address",
    "run.weights_every",
    "replay.where",
    "replay.folder",
    "platform",
    "xla_flags",
    "devices",
    "env.workers",
    "env.restarts",
    "env.timeout",
    "env.max_memory",
    "eval",
    "checkpoint.every_seconds",
    "checkpoint.every_steps",
    "checkpoint.keep",
    "log",
)


# ------------------------------------------------------------------------------------------- public


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


def _composed(
    overrides: Iterable[str] | Mapping[str, Any],
) -> tuple[Config, set[str], str, bool]:
    """Returns the configuration, the keys among the options, the file of the others, and whether
    the user trusts it."""
    if literal := isinstance(overrides, Mapping):
        given = _keyed(overrides)
    else:
        given = _split(list(overrides), Config, (*GROUPS, FILE, "trust"))
    word = options([f"trust={keys.show(given.pop('trust', False))}"], TrainOptions).trust
    file, saved = given.pop(FILE, None), _saved_run(given)
    path = saved if file is None else Path(_unquoted(str(file)))
    below, complete = _read_file(path) if path else ({}, False)
    if complete:
        dropped = OWN if path != saved else OWN[:2]
        below = {key: value for key, value in below.items() if key not in dropped}
    in_file, in_options = set(below), set(given)
    chosen = _pop_groups(given)
    try:
        choices = {} if complete else _default_groups() | _with_recipe(_pop_groups(below))
        choices |= _with_recipe(chosen)
        below = _not_covered(below, chosen, given)
        tree = _merge_groups(choices, below)
        if not complete:  # which has the defaults of both
            refuse_two_names(below)
        refuse_two_names(given)
        _assign(tree, below, Config, tree.env.suite, partial(_read_value, literal=complete))
        read = partial(_read_value, literal=True) if literal else _read_text
        _assign(tree, given, Config, tree.env.suite, read)
        config = validate(Config, _resolve(tree))
    except UserError as error:
        key = str(error).partition("=")[0]
        known = in_file if not complete else in_file | {*keys.every(Config), *keys.sections(Config)}
        if key in known - in_options:
            raise UserError(f"{path}: {error}") from None
        raise
    if not config.run.dir:
        run = config.run.model_copy(update={"dir": _run_folder(config, choices, path)})
        config = config.model_copy(update={"run": run})
    return config, in_options, str(path or ""), word


def refuse_two_names(given: Mapping[str, Any]) -> None:
    """Refuses what names the environment twice. Only of what the user gave: the task of a group, a
    recipe or the defaults gives way to an entry point.

    Args:
      given: values by the full path of their key.

    Raises:
      UserError: both were given.
    """
    if all(given.get(name) for name in NAMES):
        raise UserError(
            f"env.task={given['env.task']} and env.entry_point={given['env.entry_point']} both say "
            "what the environment is; keep one of them"
        )


def options(argv: list[str], schema: type[Schema]) -> Schema:
    """Returns a schema without groups, such as the evaluation's, filled from KEY=VALUE arguments.

    Raises:
        UserError: an argument that is not KEY=VALUE, or that is not allowed.
    """
    tree = OmegaConf.create({})
    _assign(tree, _split(argv, schema), schema, "", _read_text)
    return validate(schema, _resolve(tree))


def options_and_env(
    argv: list[str], schema: type[Schema], about: tuple[str, ...] = ("env=", "env.")
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


def to_yaml(config: BaseModel) -> str:
    """Returns every key of a configuration as yaml, which `from_yaml` reads back."""
    tree = config.model_dump(mode="json")
    section, env = tree.get("env", tree), getattr(config, "env", config)
    if hasattr(env, "kwargs"):  # JSON has no keys but text
        section["kwargs"] = _plain("env.kwargs", env.kwargs, literal=False)
    return yaml.safe_dump(tree, sort_keys=False, default_flow_style=False)


def from_yaml(text: str, name: str = "the saved configuration") -> Config:
    """Returns the configuration that `to_yaml` wrote.

    Args:
        text: what it wrote.
        name: where it is from, for messages.

    Raises:
        UserError: not yaml, cut off, or not allowed by the schema.
    """
    tree = read_yaml(text, name)
    if text.startswith(HEADER):
        _refuse_cut(tree, name)
    try:
        return validate(Config, tree)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


def read_yaml(text: str, name: str, loader: Any = yaml.SafeLoader) -> dict[str, Any]:
    """Returns the mapping that a yaml document is.

    Args:
      text: of the document.
      name: of its file, for complaints.
      loader: a kind of SafeLoader; that of Hydra's files reads 1e-3 as a number.

    Raises:
      UserError: it is none, is nested too deeply, has aliases, by which a short document can become
        a huge one, or holds something else than text, numbers of 64 bits, lists and mappings.
    """
    depth = 0
    try:
        for event in yaml.parse(text, yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise UserError(f"{name} has an alias (*{event.anchor}); write out what it names")
            opened = isinstance(event, yaml.CollectionStartEvent)
            depth += opened - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                raise UserError(f"{name} is nested more than {DEEPEST} times; write it flatter")
        tree = loader(text).get_single_data()
    except UserError:
        raise
    except yaml.YAMLError as error:
        raise UserError(f"{name} is not yaml: {first_line(error)}") from None
    except Exception as error:  # of many kinds, for values that are not what their tags say
        raise UserError(f"{name} is not yaml: a value cannot be read: {describe(error)}") from None
    for odd in _odd(tree):
        raise UserError(f"{name}: {odd}")
    if not isinstance(tree, dict):
        raise UserError(f"{name} must be a mapping of keys to values, not {keys.show(tree)!r}")
    return tree


def _odd(tree: Any, path: str = "") -> Iterator[str]:
    """Yields what no configuration holds, with its path."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            yield from _odd(name, f"a name in {path or 'it'}")
            yield from _odd(value, f"{path}.{name}" if path else f"{name}")
    elif isinstance(tree, list):
        for value in tree:
            yield from _odd(value, path)
    elif isinstance(tree, int) and not -INT64 - 1 <= tree <= INT64:
        yield f"{path}: an integer of {tree.bit_length():,} bits; it may have 64"
    elif isinstance(tree, str) and re.search("[\ud800-\udc7f\udd00-\udfff]", tree):
        yield f"{path}: {keys.show(ascii(tree))} has characters that are none"
    elif not (tree is None or isinstance(tree, str | int | float)):
        yield f"{path}: a {type(tree).__name__}; write quoted text, numbers, lists or mappings"


def _refuse_cut(tree: Mapping[str, Any], name: str) -> None:
    """Refuses a saved configuration that does not go on to its last key.

    Raises:
      UserError: it has lost its end.
    """
    section, key = LAST
    last = tree.get(section)
    if not (isinstance(last, dict) and isinstance(last.get(key), bool)):
        raise UserError(
            f"{name} is cut off: {section}.{key}, with which every saved configuration ends, is "
            "missing; put a whole copy in its place"
        )


def differences(saved: Config, new: Config) -> list[str]:
    """Returns 'agent.units: 64 -> 128' for every key that differs and is not free on resume."""
    before, after = (dict(_flat(one.model_dump(mode="json"))) for one in (saved, new))
    changed = [
        path for path in before | after if before.get(path, "absent") != after.get(path, "absent")
    ]
    return [
        f"{path}: {keys.show(before.get(path, 'absent'))} -> {keys.show(after.get(path, 'absent'))}"
        for path in changed
        if not _is_free(path)
    ]


def config_dir() -> Path:
    """Returns the folder of the group files: in an installed package, or atop a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "_configs"
    return installed if installed.is_dir() else package.parent / "configs"


def group_choices(group: str) -> list[str]:
    """Returns the names that a group may be set to, in natural order (1m before 12m)."""
    names = [path.stem for path in (config_dir() / group).glob("*.yaml")]
    return sorted(names, key=lambda name: (files.number(name[:-1]) or 0, name))


def group_of(suite: str) -> str:
    """Returns the group file of a suite: of its name, or the first whose name begins with it."""
    choices = group_choices("env")
    return suite if suite in choices else next(c for c in choices if c.startswith(suite))


# ---------------------------------------------------------------------------------- what is given


def _split(
    argv: list[str], schema: type[BaseModel], others: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Returns {key: text of the value}; every argument must be written KEY=VALUE, each key once."""
    known = {**dict.fromkeys(others), **keys.every(schema)}
    pairs: list[tuple[str, str]] = []
    for index, argument in enumerate(argv):
        advice = habit(argv, index, known)
        if advice:
            raise UserError(f"{argument}: {advice}")
        key, equals, text = argument.partition("=")
        if not equals or not key:
            form = (
                f"{key}=CHOICE, {_one_of(key)}"
                if key in others and key in GROUPS
                else "KEY=VALUE, for example seed=1"
            )
            raise UserError(f"{argument!r} is not an option; options are written {form}")
        pairs.append((key.lstrip("+"), text))
    return _each_once(pairs)


def _keyed(tree: Mapping[Any, Any]) -> dict[str, Any]:
    """Returns {dotted key: value} of keys that are dotted, nested or both."""
    return _each_once(_flat(tree, whole=frozenset(keys.every(Config))))


def _each_once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for written, value in pairs:
        key = ALIASES.get(written, written)
        if key in given:
            one, other = f"{key}={keys.show(given[key])}", f"{written}={keys.show(value)}"
            raise UserError(f"{key} is given twice: {one} and {other}; keep one of them")
        given[key] = value
    return given


def _read_file(path: Path) -> tuple[dict[str, Any], bool]:
    """Returns {dotted key: value} of a yaml file, groups that it chooses among them, and whether it
    is the saved configuration of a run. The only place where options come from a file."""
    try:
        text = files.read(path.expanduser(), MOST).decode()
    except (OSError, RuntimeError, ValueError) as error:  # of the disk, of ~NAME, not text
        why = getattr(error, "strerror", None) or first_line(error)
        inside = path / CONFIG
        hint = f"; name a file in it, config={inside}" if inside.is_file() else ""
        raise UserError(
            f"{FILE}={path}: cannot be read: {why}; it is a yaml file of keys as in --cfg job{hint}"
        ) from None
    complete = text.startswith(HEADER)
    tree = read_yaml(text, str(path), yaml.SafeLoader if complete else get_yaml_loader())
    if complete:
        _refuse_cut(tree, str(path))
    entries = tree.pop("defaults", None) or []
    entries = entries if isinstance(entries, list) else [entries]
    chosen = [_choice(entry, path) for entry in entries if entry != "_self_"]
    try:
        return _keyed(tree) | dict(chosen), complete
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _choice(entry: Any, path: Path) -> tuple[str, str | None]:
    """Returns group and choice of an entry of Hydra's list of defaults."""
    if isinstance(entry, dict) and len(entry) == 1:
        ((name, choice),) = entry.items()
        group = str(name).removeprefix("override ").strip().removeprefix("/")
        if group in GROUPS:
            return group, choice
    raise UserError(
        f"{path}: defaults: {keys.show(entry)} chooses nothing here; an entry is "
        f"GROUP: CHOICE, with a group of {', '.join(GROUPS)}"
    )


def _saved_run(given: Mapping[str, Any]) -> Path | None:
    """Returns the saved configuration of the run in `run.dir`, where no other key is given than
    those that a resumed run may change."""
    if not given.get("run.dir") or not all(map(_is_free, given)):
        return None
    try:
        path = Path(_unquoted(str(given["run.dir"]))).expanduser() / CONFIG
        return path if files.read(path, MOST).startswith(HEADER.encode()) else None
    except (OSError, RuntimeError, ValueError):
        return None


def _is_free(key: str) -> bool:
    return any(f"{key}.".startswith(f"{free}.") for free in FREE_ON_RESUME)


# ------------------------------------------------------------------------------------------ groups


def _default_groups() -> dict[str, str]:
    return _pop_groups(_read_file(config_dir() / CONFIG)[0])


def _pop_groups(values: dict[str, Any]) -> dict[str, str]:
    """Takes the choices of groups out of {key: value}; a suite alone chooses its group."""
    chosen = {group: values.pop(group) for group in GROUPS if group in values}
    suite = values.get("env.suite")
    if "env" not in chosen and isinstance(suite, str) and suite in keys.suites(Config):
        chosen["env"] = group_of(suite)
    return {group: str(choice) for group, choice in chosen.items() if choice is not None}


def _with_recipe(chosen: dict[str, str]) -> dict[str, str]:
    """Returns the choices, over those of the recipe among them.

    Raises:
      UserError: there is no such choice.
    """
    for group, choice in chosen.items():
        if choice not in group_choices(group):
            close = nearest(choice, group_choices(group))
            own = [path for path in (Path(choice), Path(f"{choice}.yaml")) if path.is_file()]
            if own or Path(choice).suffix in (".yaml", ".yml"):
                close = f"; a file of your own is given as {FILE}={own[0] if own else choice}"
            raise UserError(f"{group}={choice}: no such choice; {group} is {_one_of(group)}{close}")
    recipe = chosen.get("experiment")
    return (_pop_groups(_group_file("experiment", recipe)) if recipe else {}) | chosen


def _group_file(group: str, choice: str) -> dict[str, Any]:
    return _read_file(config_dir() / group / f"{choice}.yaml")[0]


def _merge_groups(choices: dict[str, str], below: dict[str, Any]) -> DictConfig:
    """Returns the chosen groups over the defaults of the schema, values not yet checked."""
    # The keys of env depend on the suite: validation fills them, so that no other suite's remain.
    tree = OmegaConf.create(Config().model_dump(mode="json", exclude={"env"}))
    if "env" not in choices:
        suite = below.get("env.suite")
        if not isinstance(suite, str) or suite not in keys.suites(Config):
            validate(Config, {"env": {"suite": suite}})
        tree.env = {"suite": suite}
    for group in MERGED:
        if group not in choices:
            continue
        values = _group_file(group, choices[group])
        _pop_groups(values)
        for key, value in values.items():
            OmegaConf.update(tree, key, value, merge=False, force_add=True)
    tree.size = choices.get("size", tree.size)
    return tree


def _not_covered(
    below: dict[str, Any], chosen: dict[str, str], given: dict[str, Any]
) -> dict[str, Any]:
    """Returns the values in a file without those that any choice of a group given beside it sets,
    and without its name of the environment where another is given."""
    covered = NAMES if NAMES & given.keys() else set()
    for group, choice in _with_recipe(chosen).items() if below else ():
        for name in [choice] if group == "experiment" else group_choices(group):
            covered = covered | _group_file(group, name).keys()
    sections = ("env.",) if any(key == "env.suite" for key in covered) else ()
    return {k: v for k, v in below.items() if k not in covered and not k.startswith(sections)}


def _run_folder(config: Config, choices: dict[str, str], path: Path | None) -> str:
    """A name made of what the run is, so that the same command finds it again.

    Raises:
      UserError: it is the folder of the run whose configuration was given.
    """
    agent = [] if choices.get("agent", "default") == "default" else [choices["agent"]]
    first = choices.get("experiment") or (path.stem if path else choices["env"])
    parts = [first, config.env.name, config.size, *agent]
    name = "runs/" + "-".join(str(part).replace("/", "-") for part in parts)
    name = name if config.run.seeds > 1 else f"{name}-seed{config.seed}"
    if path and path.resolve().parent == Path(name).resolve():
        raise UserError(
            f"{FILE}={path} is the configuration of the run in {name}; resume it by run.dir={name} "
            "alone, or give a new run its own run.dir=FOLDER"
        )
    return name


# ------------------------------------------------------------------------------------------ values


def _assign(
    tree: DictConfig, given: dict[str, Any], schema: type[BaseModel], suite: str, read: Reader
) -> None:
    """Writes each given value into the tree, after all keys are known to exist."""
    known = keys.leaves(schema, suite)
    unknown = [
        unknown_key(key, keys.show(value), schema, suite)
        for key, value in given.items()
        if key not in known
    ]
    if unknown:
        raise UserError(joined(unknown))
    for key, value in given.items():
        if key == "env.suite":
            if value != suite or read is _read_text:
                raise UserError(
                    f"{key}={keys.show(value)}: the suite is a group; write env=CHOICE, "
                    f"{_one_of('env')}"
                )
            continue
        found = read(key, value, known[key])
        for odd in (
            _odd(found, key) if isinstance(found, dict) else ()
        ):  # the schema sees no further
            raise UserError(odd)
        try:
            OmegaConf.update(tree, key, found, merge=False, force_add=True)
        except (OmegaConfBaseException, RecursionError) as error:
            raise UserError(
                f"{key}={keys.show(value)}: cannot be read: {first_line(error)}"
            ) from None


def _read_text(key: str, text: str, field: FieldInfo) -> Any:
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
        several = quotes if text[:1] in ("{", "[") else ""
        raise UserError(
            f"{key}={text}: cannot be read; expected {expected(field)}{several}"
        ) from None
    raise UserError(
        f"{key}={text}: several values; expected {expected(field)} (a list is written [1,2])"
    )


def _read_value(key: str, value: Any, field: FieldInfo, literal: bool) -> Any:
    """Takes a value of a file or a program as it is, but reads a text where none belongs.

    Args:
      key, field: what it is for.
      value: of any type.
      literal: whether ${...} in it is text, instead of a reference.
    """
    if field.annotation is str and isinstance(value, int | float):
        raise UserError(f"{key}={keys.show(value)}: expected text; put it in quotes")
    if isinstance(value, str) and field.annotation is not str:
        return _read_text(key, value, field)
    return _plain(key, value, literal)


def _plain(key: str, value: Any, literal: bool) -> Any:
    """Returns a value made of what yaml has."""
    if hasattr(value, "tolist"):  # of numpy or jax
        value = value.tolist()
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, BaseModel):
        value = value.model_dump()
    if isinstance(value, Mapping):
        return {name: _plain(key, inner, literal) for name, inner in value.items()}
    if isinstance(value, set | Sequence) and not isinstance(value, str | bytes):
        return [_plain(key, inner, literal) for inner in value]
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if literal else value
    if value is None or isinstance(value, bool | int | float):
        return value
    raise UserError(
        f"{key}={keys.show(value)}: a {type(value).__name__} cannot be saved in a file; give text, "
        "numbers, lists and mappings"
    )


def _unquoted(text: str) -> str:
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return text[1:-1] if quoted else text


def _resolve(tree: DictConfig) -> Any:
    try:
        return OmegaConf.to_container(tree, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"a reference ${{...}} cannot be resolved: {first_line(error)}") from None


def _one_of(group: str) -> str:
    return f"one of {', '.join(group_choices(group))}"


def _flat(
    tree: Mapping[Any, Any], prefix: str = "", whole: frozenset[str] = frozenset()
) -> Iterator[tuple[str, Any]]:
    """Yields the leaves of nested mappings with dotted paths; `whole` are not taken apart."""
    for name, value in tree.items():
        path = f"{prefix}{name}"
        inner = value.model_dump() if isinstance(value, BaseModel) else value
        if isinstance(inner, Mapping) and path not in whole:
            yield from _flat(inner, f"{path}.", whole)
        else:
            yield path, value
