"""The configuration of a run as YAML: written, read back, and compared with another one."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml
from pydantic import BaseModel

from dreamer.config import Config, keys
from dreamer.config.explain import first_line, validate
from dreamer.config.section import INT64
from dreamer.errors import UserError, describe

DEEPEST = 50  # nesting of a yaml file
MOST = 2**20  # bytes of one
HEADER = (
    "# Configuration of a dreamer run, complete and resolved. The same run.dir resumes the run.\n"
)
_NO_TEXT = re.compile("[\ud800-\udc7f\udd00-\udfff]")  # characters that no encoding has
LAST = ("run", "accept_changes")  # section and key that end the saved configuration of any version
# Keys or sections that a resumed run may change, because they do not affect what the agent learns:
# duration, devices and hosts, evaluation, checkpoints and logs.
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


def to_yaml(config: BaseModel) -> str:
    """Returns every key of a configuration as yaml, which `from_yaml` reads back."""
    tree = plain("", config, literal=False)
    return yaml.safe_dump(tree, sort_keys=False, default_flow_style=False)


def from_yaml(text: str, name: str = "the saved configuration") -> Config:
    """Returns the configuration that `to_yaml` wrote.

    Args:
        text: yaml.
        name: of its source, for messages.

    Raises:
        UserError: not yaml, cut off, or not allowed by the schema.
    """
    tree = read_yaml(text, name)
    try:
        return validate(Config, tree)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


def read_yaml(text: str, name: str, loader: Any = yaml.SafeLoader) -> dict[str, Any]:
    """Returns the mapping in a yaml document.

    Args:
      text: of the document.
      name: of its file, for error messages.
      loader: a kind of SafeLoader; that of Hydra's files reads 1e-3 as a number.

    Raises:
      UserError: it is no mapping, a saved configuration that was cut off, is nested too deeply, has
        aliases, by which a short document can become a huge one, or contains values other than
        text, numbers of 64 bits, lists and mappings.
    """
    depth = 0
    try:
        for event in yaml.parse(text, yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise UserError(f"*{event.anchor} is an alias; write out its value")
            opened = isinstance(event, yaml.CollectionStartEvent)
            depth += opened - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                raise UserError(f"nested more than {DEEPEST} times; write it flatter")
        tree = plain("", loader(text).get_single_data(), literal=False)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{name} is not yaml: {first_line(error)}") from None
    except Exception as error:  # of many kinds, for values that do not match their tags
        raise UserError(f"{name} is not yaml: a value cannot be read: {describe(error)}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{name} must be a mapping of keys to values, not {keys.show(tree)!r}")
    section, key = LAST
    last = tree.get(section)
    if text.startswith(HEADER) and not (isinstance(last, dict) and isinstance(last.get(key), bool)):
        raise UserError(
            f"{name} is cut off: its last key {section}.{key} is missing; replace it by a complete "
            "copy"
        )
    return tree


def differences(saved: Config, new: Config) -> list[str]:
    """Returns 'agent.units: 64 -> 128' for every key that differs and is not free on resume."""
    before, after = (dict(flat(one.model_dump(mode="json"))) for one in (saved, new))
    changed = [
        path for path in before | after if before.get(path, "absent") != after.get(path, "absent")
    ]
    return [
        f"{path}: {keys.show(before.get(path, 'absent'))} -> {keys.show(after.get(path, 'absent'))}"
        for path in changed
        if not is_free(path)
    ]


def is_free(key: str) -> bool:
    """Returns whether a resumed run may change a key."""
    return any(f"{key}.".startswith(f"{free}.") for free in FREE_ON_RESUME)


def plain(key: str, value: Any, literal: bool) -> Any:
    """Returns a value as text, numbers, lists and mappings, which a file can store.

    Args:
      key: dotted path of the value, for messages.
      value: of any type.
      literal: whether ${...} in it is text, instead of a reference.

    Raises:
      UserError: it has parts of other types.
    """
    if hasattr(value, "tolist"):  # an array
        value = value.tolist()
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, BaseModel):
        value = value.model_dump()
    if isinstance(value, Mapping):
        for name in value:
            plain(f"a key of {key or 'the file'}", name, literal)
        prefix = f"{key}." if key else ""
        return {name: plain(f"{prefix}{name}", part, literal) for name, part in value.items()}
    if isinstance(value, set | Sequence) and not isinstance(value, str | bytes):
        return [plain(key, inner, literal) for inner in value]
    if isinstance(value, str) and not _NO_TEXT.search(value):
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if literal else value
    is_long = isinstance(value, int) and not -INT64 - 1 <= value <= INT64
    if value is None or (isinstance(value, bool | int | float) and not is_long):
        return value
    raise UserError(
        f"{key}={keys.show(value)}: cannot be saved in a file; use text, numbers of 64 bits, lists "
        "and mappings"
    )


def flat(
    tree: Mapping[Any, Any], prefix: str = "", whole: frozenset[str] = frozenset()
) -> Iterator[tuple[str, Any]]:
    """Yields the leaves of nested mappings with dotted paths; `whole` are not flattened."""
    for name, value in tree.items():
        path = f"{prefix}{name}"
        inner = value.model_dump() if isinstance(value, BaseModel) else value
        if isinstance(inner, Mapping) and path not in whole:
            yield from flat(inner, f"{path}.", whole)
        else:
            yield path, value
