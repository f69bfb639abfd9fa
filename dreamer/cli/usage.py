"""Answers of the command line: help, versions, the configuration, and options of commands."""

import os
import platform
import sys
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
from dreamer.config import Config, keys, trust
from dreamer.config.env import SUITES, Env
from dreamer.config.options import AgentOptions, TrainOptions
from dreamer.config.serialization import to_yaml
from dreamer.errors import UserError

Options = TypeVar("Options", bound=AgentOptions)
WIDTH = 100
INTRODUCTION = """\
Trains a DreamerV3 agent.

usage: python -m dreamer.train [GROUP=CHOICE ...] [KEY=VALUE ...]

  python -m dreamer.train
  python -m dreamer.train env=atari100k env.task=pong size=12m seed=1
  python -m dreamer.train experiment=cartpole run.dir=runs/first

The same command with the same run folder resumes, and so does run.dir=FOLDER alone.
config=FILE.yaml reads groups and keys from a file; those of the command line override it. --cfg job
prints the whole configuration, --version the versions; the variable DREAMER_TRACEBACK=1 prints the
traceback of an error. Lists are written [64,64]. With --multirun, every combination of several
values is a run: python -m dreamer.train --multirun seed=0,1,2 size=1m,12m
"""
PURPOSE = {
    "env": "the suite of environments and its published protocol",
    "size": "the size of the networks",
    "agent": "the variant of the algorithm",
    "experiment": "a full recipe; other options override it",
}


def answered(argv: Sequence[str], text: Callable[[], str]) -> bool:
    """Prints the help or the versions if the arguments request them; returns whether they do."""
    if {"-h", "--help", "help"} & set(argv):
        print(text())
    elif "--version" in argv:
        versions = (f"{package} {_version(package)}" for package in ("dreamer", "jax"))
        print(f"{', '.join(versions)}, Python {platform.python_version()}")
    else:
        return False
    return True


def answered_config(argv: Sequence[str]) -> bool:
    """Prints the whole configuration if the arguments have --cfg job, as in programs of Hydra;
    returns whether they do."""
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
    found = metadata.distributions(name=package)
    return next((one.version for one in found), "(not installed)")


def agent_options(
    argv: Sequence[str] | None, schema: type[Options], name: str
) -> tuple[Options, Env | None] | None:
    """Returns the options of a command that loads an agent, and the environment if they repeat
    its name; None after printing the help. Starts jax on the chosen platform.

    Args:
      argv: arguments; those of the process if None.
      schema: of the options.
      name: of the command.

    Raises:
      UserError: an option that is not allowed, or no such folder.
    """
    argv = sys.argv[1:] if argv is None else argv
    text = f"Usage: python -m dreamer.{name} run=PATH [KEY=VALUE ...]\n"
    if answered(argv, lambda: text + options_text(schema)):
        return None
    options, env = options_and_env(argv, schema, trust.NAMES)
    if not Path(os.path.expanduser(options.run)).is_dir():
        raise UserError(f"run={options.run} is not a folder; name the folder of a training run")
    from dreamer.system import runtime  # imports jax, which is slow

    runtime.runtime(options.platform)
    return options, env


def help_text() -> str:
    """Returns the help of the command line, at most 100 columns wide."""
    default = compose([])
    parts = [INTRODUCTION, "GROUPS (GROUP=CHOICE)\n"]
    chosen = {"env": default.env.suite, "size": default.size, "agent": "default"}
    parts += [_group(group, chosen.get(group)) for group in groups.GROUPS]
    parts.append("KEYS (KEY=VALUE): key, default, meaning (what it takes)\n")
    parts += _sections({suite: compose([f"env={groups.of_suite(suite)}"]) for suite in SUITES})
    parts.append(f"  of this command, kept in no file\n{options_text(TrainOptions)}")
    return "\n".join(parts)


def _group(group: str, default: str | None) -> str:
    lines = [f"  {group}: {PURPOSE[group]}"]
    for choice in groups.choices(group):
        mark = " (default)" if choice == default else ""
        about = description(groups.config_dir() / group / f"{choice}.yaml")
        lines += _columns(f"    {choice}", about + mark, 22)
    return "\n".join(lines) + "\n"


def description(path: Path) -> str:
    """Returns the first comment line of a group file that is not Hydra's own."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comments = (line[1:].strip() for line in lines if line[:1] == "#" and "@package" not in line)
    return next(comments, "")


def _sections(defaults: dict[str, Config]) -> list[str]:
    """Returns the keys of every section, those of env once for each suite.

    Args:
      defaults: the configuration of a run without other options, by suite.
    """
    titles = {suite: f"env, with the suite {suite}" for suite in defaults}
    sections: dict[str, list[str]] = {"general": [], **{title: [] for title in titles.values()}}
    for suite, config in defaults.items():
        for key, field in keys.leaves(Config, suite).items():
            parent = key.rpartition(".")[0]
            title = titles[suite] if parent == "env" else parent or "general"
            is_new = parent == "env" or suite == next(iter(defaults))
            if is_new and key not in ("size", "env.suite"):
                left = f"    {key:<32}{keys.show(attrgetter(key)(config)) or '(empty)':<14}"
                sections.setdefault(title, []).extend(_columns(left, _meaning(field), 50))
    return ["\n".join([f"  {title}", *lines]) + "\n" for title, lines in sections.items()]


def _meaning(field: FieldInfo) -> str:
    return f"{field.description} ({keys.expected(field)})"


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
