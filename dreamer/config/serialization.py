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
LAST = ("run", "accept_changes")  # section and key that end the saved configuration of any version
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


def to_yaml(config: BaseModel) -> str:
    """Returns every key of a configuration as yaml, which `from_yaml` reads back."""
    tree = config.model_dump(mode="json")
    section, env = tree.get("env", tree), getattr(config, "env", config)
    if hasattr(env, "kwargs"):  # JSON has no keys but text
        section["kwargs"] = plain("env.kwargs", env.kwargs, literal=False)
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
        refuse_cut(tree, name)
    try:
        return validate(Config, tree)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


def read_yaml(text: str, name: str, loader: Any = yaml.SafeLoader) -> dict[str, Any]:
    """Returns the mapping that a yaml document is.

    Args:
      text: of the document.
      name: of its file, for error messages.
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
    for odd in odd_values(tree):
        raise UserError(f"{name}: {odd}")
    if not isinstance(tree, dict):
        raise UserError(f"{name} must be a mapping of keys to values, not {keys.show(tree)!r}")
    return tree


def odd_values(tree: Any, path: str = "") -> Iterator[str]:
    """Yields what no configuration holds, with its path."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            yield from odd_values(name, f"a name in {path or 'it'}")
            yield from odd_values(value, f"{path}.{name}" if path else f"{name}")
    elif isinstance(tree, list):
        for value in tree:
            yield from odd_values(value, path)
    elif isinstance(tree, int) and not -INT64 - 1 <= tree <= INT64:
        yield f"{path}: an integer of {tree.bit_length():,} bits; it may have 64"
    elif isinstance(tree, str) and re.search("[\ud800-\udc7f\udd00-\udfff]", tree):
        yield f"{path}: {keys.show(ascii(tree))} has characters that are none"
    elif not (tree is None or isinstance(tree, str | int | float)):
        yield f"{path}: a {type(tree).__name__}; write quoted text, numbers, lists or mappings"


def refuse_cut(tree: Mapping[str, Any], name: str) -> None:
    """Refuses a saved configuration without its last key.

    Raises:
      UserError: it was cut off.
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
    return any(f"{key}.".startswith(f"{free}.") for free in FREE_ON_RESUME)


def plain(key: str, value: Any, literal: bool) -> Any:
    """Returns a value made of what yaml has."""
    if hasattr(value, "tolist"):  # of numpy or jax
        value = value.tolist()
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, BaseModel):
        value = value.model_dump()
    if isinstance(value, Mapping):
        return {name: plain(key, inner, literal) for name, inner in value.items()}
    if isinstance(value, set | Sequence) and not isinstance(value, str | bytes):
        return [plain(key, inner, literal) for inner in value]
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if literal else value
    if value is None or isinstance(value, bool | int | float):
        return value
    raise UserError(
        f"{key}={keys.show(value)}: a {type(value).__name__} cannot be saved in a file; give text, "
        "numbers, lists and mappings"
    )


def flat(
    tree: Mapping[Any, Any], prefix: str = "", whole: frozenset[str] = frozenset()
) -> Iterator[tuple[str, Any]]:
    """Yields the leaves of nested mappings with dotted paths; `whole` are not taken apart."""
    for name, value in tree.items():
        path = f"{prefix}{name}"
        inner = value.model_dump() if isinstance(value, BaseModel) else value
        if isinstance(inner, Mapping) and path not in whole:
            yield from flat(inner, f"{path}.", whole)
        else:
            yield path, value
