"""From the command line to a frozen configuration: Hydra composes, then the schema validates."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from dreamer import files, keys
from dreamer.config import Config
from dreamer.errors import UserError, nearest
from dreamer.explain import expected, first_line, joined, unknown_key, validate

Schema = TypeVar("Schema", bound=BaseModel)

GROUPS = ("env", "size", "agent", "experiment")
DEEPEST = 50  # nesting of a saved configuration
ALIASES = {"env.id": "env.task"}  # another name of a key

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


def compose(argv: list[str]) -> Config:
    """Returns the configuration for arguments such as ['env=atari', 'size=12m', 'seed=1'].

    Raises:
        UserError: an argument that is not GROUP=CHOICE or KEY=VALUE, or that is not allowed.
    """
    given = _split(argv, GROUPS)
    tree, choices = _compose_groups({group: given.pop(group) for group in GROUPS if group in given})
    refuse_two_names(given)
    _assign(tree, given, Config, tree.env.suite)
    config = validate(Config, _resolve(tree))
    if config.run.dir:
        return config
    run = config.run.model_copy(update={"dir": _run_folder(config, choices)})
    return config.model_copy(update={"run": run})


def refuse_two_names(given: Mapping[str, Any]) -> None:
    """Refuses what names the environment twice. Only of what the user gave: the task of a group, a
    recipe or the defaults gives way to an entry point.

    Args:
      given: values by the full path of their key.

    Raises:
      UserError: both were given.
    """
    if given.keys() >= {"env.task", "env.entry_point"}:
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
    _assign(tree, _split(argv), schema, "")
    return validate(schema, _resolve(tree))


def to_yaml(config: BaseModel) -> str:
    """Returns every key of a configuration as yaml, which `from_yaml` reads back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, default_flow_style=False)


def from_yaml(text: str, name: str = "the saved configuration") -> Config:
    """Returns the configuration that `to_yaml` wrote.

    Args:
        text: what it wrote.
        name: where it is from, for messages.

    Raises:
        UserError: not yaml, or not allowed by the schema.
    """
    tree = read_yaml(text, name)
    try:
        return validate(Config, tree)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


def read_yaml(text: str, name: str) -> dict[str, Any]:
    """Returns the mapping that a yaml document is.

    Raises:
        UserError: it is none, or is nested too deeply or has aliases, by which a short document can
            become a huge one.
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
        tree = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(f"{name} is not yaml: {first_line(error)}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{name} must be a mapping of keys to values, not {keys.show(tree)!r}")
    return tree


def differences(saved: Config, new: Config) -> list[str]:
    """Returns 'agent.units: 64 -> 128' for every key that differs and is not free on resume."""
    before, after = _flat(saved.model_dump(mode="json")), _flat(new.model_dump(mode="json"))
    changed = [
        path for path in before | after if before.get(path, "absent") != after.get(path, "absent")
    ]
    return [
        f"{path}: {keys.show(before.get(path, 'absent'))} -> {keys.show(after.get(path, 'absent'))}"
        for path in changed
        if not any(f"{path}.".startswith(f"{free}.") for free in FREE_ON_RESUME)
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


# ---------------------------------------------------------------------------------------- composing


def _split(argv: list[str], groups: tuple[str, ...] = ()) -> dict[str, str]:
    """Returns {key: text of the value}; every argument must be written KEY=VALUE, each key once."""
    given: dict[str, str] = {}
    for index, argument in enumerate(argv):
        key, equals, text = argument.partition("=")
        if key.startswith("-"):
            following = (
                argv[index + 1] if index + 1 < len(argv) and "=" not in argv[index + 1] else "VALUE"
            )
            name = key.lstrip("-").replace("-", "_")
            value = text if equals else following
            raise UserError(f"{argument}: options are written without dashes: {name}={value}")
        if key.startswith(("+", "~")):
            name = key.lstrip("+~")
            raise UserError(
                f"{argument}: keys are neither added nor removed; write {name}={text or 'VALUE'}"
            )
        if not equals or not key:
            form = (
                f"{key}=CHOICE, {_one_of(key)}"
                if key in groups
                else "KEY=VALUE, for example seed=1"
            )
            raise UserError(f"{argument!r} is not an option; options are written {form}")
        key = ALIASES.get(key, key)
        if key in given:
            raise UserError(
                f"{key} is given twice: {key}={given[key]} and {argument}; keep one of them"
            )
        given[key] = text
    return given


def _compose_groups(chosen: dict[str, str]) -> tuple[DictConfig, dict[str, str | None]]:
    """Returns the chosen groups over the defaults of the schema, values not yet checked, and the
    choice of every group, those of the defaults and of a recipe included."""
    for group, choice in chosen.items():
        if choice not in group_choices(group):
            close = nearest(choice, group_choices(group))
            raise UserError(f"{group}={choice}: no such choice; {group} is {_one_of(group)}{close}")
    # The keys of env depend on the suite: validation fills them, so that no other suite's remain.
    base = Config().model_dump(mode="json", exclude={"env"})
    ConfigStore.instance().store(name="base", node=base)
    try:
        with initialize_config_dir(
            config_dir=str(config_dir()), version_base="1.3", job_name="dreamer"
        ):
            overrides = [f"{group}={choice}" for group, choice in chosen.items()]
            tree = hydra_compose("config", overrides=overrides, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise UserError(f"{config_dir()} cannot be composed: {first_line(error)}") from None
    choices = dict(tree.hydra.runtime.choices)
    return OmegaConf.masked_copy(tree, [str(key) for key in tree if key != "hydra"]), choices


def _run_folder(config: Config, choices: dict[str, str | None]) -> str:
    """A name made of what the run is, so that the same command finds it again."""
    agent = [] if choices["agent"] == "default" else [choices["agent"]]
    first = choices["experiment"] or choices["env"]
    task = getattr(config.env, "entry_point", "") or config.env.task
    parts = [first, task, choices["size"], *agent]
    name = "runs/" + "-".join(str(part).replace("/", "-") for part in parts)
    return name if config.run.seeds > 1 else f"{name}-seed{config.seed}"


def _assign(tree: DictConfig, given: dict[str, str], schema: type[BaseModel], suite: str) -> None:
    """Writes each given value into the tree, after all keys are known to exist."""
    known = keys.leaves(schema, suite)
    unknown = [
        unknown_key(key, text, schema, suite) for key, text in given.items() if key not in known
    ]
    if unknown:
        raise UserError(joined(unknown))
    for key, text in given.items():
        if key == "env.suite":
            raise UserError(
                f"{key}={text}: the suite is a group; write env=CHOICE, {_one_of('env')}"
            )
        try:
            OmegaConf.update(tree, key, _value(key, text, known[key]), force_add=True)
        except OmegaConfBaseException as error:
            raise UserError(f"{key}={text}: cannot be read: {first_line(error)}") from None


def _value(key: str, text: str, field: FieldInfo) -> Any:
    """Reads a value by Hydra's grammar, but text as written: a folder may be named 2024."""
    if field.annotation is str:
        quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
        return None if text == "null" else text[1:-1] if quoted else text
    try:
        override = OverridesParser.create().parse_override(f"{key}={text}")
        if not override.is_sweep_override():
            return override.value()
    except (HydraException, ValueError, TypeError):
        raise UserError(f"{key}={text}: cannot be read; expected {expected(field)}") from None
    raise UserError(
        f"{key}={text}: several values; expected {expected(field)} (a list is written [1,2])"
    )


def _resolve(tree: DictConfig) -> Any:
    try:
        return OmegaConf.to_container(tree, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"a reference ${{...}} cannot be resolved: {first_line(error)}") from None


def _one_of(group: str) -> str:
    return f"one of {', '.join(group_choices(group))}"


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the leaves of a nested dict by their dotted paths."""
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        path = prefix + name
        leaves |= _flat(value, f"{path}.") if isinstance(value, dict) else {path: value}
    return leaves
