"""The text of --help: groups with their choices, keys with their defaults and meanings."""

import os
import platform
import textwrap
from collections.abc import Callable, Sequence
from importlib import metadata
from operator import attrgetter
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from dreamer.cli import groups
from dreamer.cli.compose import compose, options_and_env, preview
from dreamer.config import Config, TrainOptions, keys, trust
from dreamer.config.env import Env
from dreamer.config.serialization import to_yaml
from dreamer.errors import UserError

Schema = TypeVar("Schema", bound=BaseModel)
WIDTH = 100
INTRODUCTION = """\
Trains a DreamerV3 agent.

usage: python -m dreamer.train [GROUP=CHOICE ...] [KEY=VALUE ...]

  python -m dreamer.train
  python -m dreamer.train env=atari100k env.task=pong size=12m seed=1
  python -m dreamer.train experiment=cartpole run.dir=runs/first

The same command with the same run folder resumes, and so does run.dir=FOLDER alone.
config=FILE.yaml takes groups and keys from a file, which those given beside it override. --cfg job
prints the whole configuration, --version the versions; DREAMER_TRACEBACK=1 in the environment shows
where an error comes from. Lists are written [64,64]. With --multirun, every combination of several
values is a run: python -m dreamer.train --multirun seed=0,1,2 size=1m,12m
"""
PURPOSE = {
    "env": "the suite of environments and its published protocol",
    "size": "the size of the networks",
    "agent": "the variant of the algorithm",
    "experiment": "a full recipe; other options are applied over it",
}


def wants_help(argv: Sequence[str]) -> bool:
    """Returns whether the arguments request help."""
    return any(argument in ("-h", "--help", "help") for argument in argv)


def answered(argv: Sequence[str], text: Callable[[], str]) -> bool:
    """Prints the help or the versions, where the arguments request them; whether they do."""
    if wants_help(argv):
        print(text())
    elif "--version" in argv:
        print(f"dreamer {_version('dreamer')}, jax {_version('jax')}, ", end="")
        print(f"Python {platform.python_version()}")
    else:
        return False
    return True


def answered_config(argv: Sequence[str]) -> bool:
    """Prints the whole configuration that the arguments make, where they have --cfg job as in
    programs of Hydra; whether they do."""
    found = [
        index
        for index, argument in enumerate(argv)
        if argument in ("--cfg=job", "-c=job")
        or (argument in ("--cfg", "-c") and argv[index + 1 : index + 2] == ["job"])
    ]
    if found and {"-m", "--multirun"} & set(argv):
        raise UserError("--cfg job prints one configuration; leave out --multirun")
    for index in found[:1]:
        rest = [*argv[:index], *argv[index + (1 if "=" in argv[index] else 2) :]]
        print(to_yaml(preview(one for one in rest if one != "--resolve")), end="")
    return bool(found)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "(not installed)"


def of_run(
    argv: Sequence[str], schema: type[Schema], name: str
) -> tuple[Schema, Env | None] | None:
    """Returns the options of a command about a run, and the environment if they repeat the names of
    one; None where it has printed its help instead.

    Args:
      argv: arguments.
      schema: has a field `run`, of a folder.
      name: of the command.

    Raises:
      UserError: an option that is not allowed, or no such folder.
    """
    text = f"Usage: python -m dreamer.{name} run=PATH [KEY=VALUE ...]\n"
    if answered(argv, lambda: text + options_text(schema)):
        return None
    found, env = options_and_env(list(argv), schema, trust.NAMES)
    run: str = found.run  # type: ignore[attr-defined]
    if not Path(os.path.expanduser(run)).is_dir():
        raise UserError(f"run={run} is not a folder; name the folder of a training run")
    return found, env


def help_text() -> str:
    """Returns the help of the command line, at most 100 columns wide."""
    default = compose([])
    parts = [INTRODUCTION, "GROUPS (GROUP=CHOICE)\n"]
    chosen = {"env": default.env.suite, "size": default.size, "agent": "default"}
    parts += [_group(group, chosen.get(group)) for group in groups.GROUPS]
    parts.append("KEYS (KEY=VALUE): key, default, meaning (what it takes)\n")
    suites = keys.suites(Config)
    parts += _sections({suite: compose([f"env={groups.of_suite(suite)}"]) for suite in suites})
    parts.append(f"  of this command, kept in no file\n{options_text(TrainOptions)}")
    return "\n".join(parts)


def _group(group: str, default: str | None) -> str:
    lines = [f"  {group}: {PURPOSE[group]}"]
    for choice in groups.choices(group):
        mark = " (default)" if choice == default else ""
        lines += _columns(
            f"    {choice}", description(groups.config_dir() / group / f"{choice}.yaml") + mark, 22
        )
    return "\n".join(lines) + "\n"


def description(path: Path) -> str:
    """Returns the first comment line of a group file that is not Hydra's own."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return next(
        (line[1:].strip() for line in lines if line.startswith("#") and "@package" not in line), ""
    )


def _sections(defaults: dict[str, Config]) -> list[str]:
    """Returns the keys of every section, those of env once for each suite.

    Args:
      defaults: what a run without other options has, by suite.
    """
    titles = {suite: f"env, with the suite {suite}" for suite in defaults}
    sections: dict[str, list[str]] = {"general": [], **{title: [] for title in titles.values()}}
    for suite, config in defaults.items():
        for key, field in keys.leaves(Config, suite).items():
            parent = key.rpartition(".")[0]
            title = titles[suite] if parent == "env" else parent or "general"
            is_new = parent == "env" or suite == next(iter(defaults))
            if is_new and key not in ("size", "env.suite"):
                default = keys.show(attrgetter(key)(config)) or "(empty)"
                sections.setdefault(title, []).extend(
                    _columns(f"    {key:<32}{default:<14}", _meaning(field), 50)
                )
    return ["\n".join([f"  {title}", *lines]) + "\n" for title, lines in sections.items()]


def _meaning(field: FieldInfo) -> str:
    return f"{field.description} ({keys.allowed(field.annotation, tuple(field.metadata))})"


def _columns(left: str, right: str, width: int) -> list[str]:
    """Returns lines with `left` in the first column, alone if it is too long, and `right` wrapped
    in the second."""
    lines = textwrap.wrap(right, WIDTH - width, break_on_hyphens=False) or [""]
    left = left.rstrip()
    first = f"{left:<{width}}{lines.pop(0)}" if len(left) < width else left
    return [first.rstrip(), *(" " * width + line for line in lines)]


def options_text(schema: type[BaseModel]) -> str:
    """Returns the keys of a schema without sections, one a line with what it takes."""
    lines = []
    for key, field in schema.model_fields.items():
        default = "(required)" if field.is_required() else keys.show(field.default) or "(empty)"
        lines += _columns(f"  {key:<16}{default:<14}", _meaning(field), 32)
    return "\n".join(lines)
