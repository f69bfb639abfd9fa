"""Decides whether a saved file may run the code that it names, or reach outside of its run folder.

A configuration can name code (`env.entry_point`, an id that imports a package), and can reach
outside of its run folder (`xla_flags`, clusters, other folders). Values that the user gives on a
command line or in a program are allowed, for this process and by a small file of the user's for
later ones. A saved file may use allowed values, wherever it is stored; all others are refused.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shlex
import stat
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

from dreamer.errors import UserError, printable, warn
from dreamer.system import files

ABOUT = (
    "# What you named on a command line or in a program, and what saved files may therefore use.\n"
    "# Delete a line to forget it.\n"
)
MOST = 2**24  # bytes of the file that are read
SHOWN = 1000  # characters of a value that are shown
NAMES = ("env.task=", "env.id=", "env.entry_point=", "env.kwargs=")  # options that repeat a claim
OUTSIDE = ("xla_flags", "run.ray_address", "run.coordinator")
WRITTEN = ("checkpoint.dir", "replay.folder")  # folders, always allowed inside of the run folder
NOWHERE = {"run.coordinator": ("auto", "none")}  # values that name nothing
OBJECT = "the configuration"  # the source of one that a program passes
# A key that the command line reads without quotes, in JSON.
_KEY = re.compile(r'(?<!\\)"(?!(?:true|false|null|nan|inf)")([a-z_][a-z0-9_]*)": ', re.I)
# What the command line does not read back: other quoted keys, escapes, references, infinity, and
# values that begin with a quote or bracket, or are null as text.
_UNREADABLE = re.compile(r"""": |\\(?!")|\$\{|Infinity|=(?:["'(]|null$)""")

Section = TypeVar("Section")

_allowed: set[str] = set()  # digests of the claims that this process may use


@dataclass(frozen=True)
class Claim:
    """Values by their keys that take effect together."""

    values: Mapping[str, Any]

    def __str__(self) -> str:
        words = (f"{key}={_shown(value)}" for key, value in self.values.items())
        return " ".join(map(shlex.quote, words))

    @cached_property
    def digest(self) -> str:
        """The same for the same values, also after they were saved and read."""
        text = json.dumps(_tagged(self.values))
        return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"

    @property
    def is_known(self) -> bool:
        return self.digest in _allowed or self.digest in _remembered()

    @property
    def can_be_repeated(self) -> bool:
        """Whether the command line reads the shown text as these values."""
        text = str(self)
        one_line = " ".join(text.split()) == text and len(text) <= SHOWN
        return one_line and not _UNREADABLE.search(text)


def code(env: Any) -> list[Claim]:
    """The claim of a section `env` that has code imported and called; none where it names only a
    suite of this project and a task, or a registered id.

    Text among the arguments of an id counts: it may name a file or code, as `env_id` does for
    gymnasium's ids of old environments. Numbers do not.
    """
    if not hasattr(env, "entry_point"):
        return []
    if not env.entry_point and ":" not in env.task and not _has_text(env.kwargs):
        return []
    named = {"env.entry_point": env.entry_point} if env.entry_point else {"env.task": env.task}
    return [Claim(named | ({"env.kwargs": env.kwargs} if env.kwargs else {}))]


def named_as(env: Any) -> tuple[Any, ...]:
    """Suite, name and arguments of a section `env`: equal for two of the same environment."""
    return env.suite, env.name, _tagged(getattr(env, "kwargs", {}))


def allow(env: Section) -> Section:
    """Allows the code that a section `env` names, now and later: the user trusts it."""
    _remember(code(env))
    return env


def allow_here(env: Any) -> None:
    """Allows the code of a section `env` in this process: the one that started it has decided."""
    _allowed.update(claim.digest for claim in code(env))


def require(env: Any) -> None:
    """Refuses a section `env` with code that the user has never named.

    Raises:
      UserError: showing it.
    """
    _require(code(env), "a saved file")


def known(env: Any) -> bool:
    """Whether all code that a section `env` names is allowed."""
    return all(claim.is_known for claim in code(env))


def settle(config: Any, given: Collection[str], source: str = "", trusted: bool = False) -> None:
    """Allows or refuses a whole new configuration.

    Args:
      config: the configuration.
      given: keys that the user set; the values of all others come from `source`.
      source: the file or object that the configuration comes from; empty where all values are the
        user's options, or defaults and recipes of this project.
      trusted: whether the user trusts the source.

    Raises:
      UserError: the source names code or places that the user has never named.
    """
    claims, trusted = _claims(config), trusted or not source
    _remember([claim for claim in claims if trusted or claim.values.keys() <= set(given)])
    if _leads_away(config.run.dir, source):
        folder = Claim({"run.dir": config.run.dir})
        if trusted or "run.dir" in given:
            _allowed.add(folder.digest)  # in this process alone: every run has its own
        claims.append(folder)
    _require(claims, source)


def _claims(config: Any) -> list[Claim]:
    """All that a whole configuration names beyond suites and files in its run folder."""
    found = code(config.env)
    run = _place(config.run.dir, "run.dir") if config.run.dir else None
    for key in (*OUTSIDE, *WRITTEN):
        value = attrgetter(key)(config)
        if key == "checkpoint.dir" and run and not value:
            value = os.path.join(config.run.dir, "checkpoints")  # which may be a link
        if key in WRITTEN and value:
            place = _place(value, key)
            value = "" if run and place.is_relative_to(run) else str(place)
        if value and value not in NOWHERE.get(key, ()):
            found.append(Claim({key: value}))
    return found


def _require(claims: list[Claim], source: str) -> None:
    for claim in claims:
        if claim.is_known:
            continue
        is_code = any(key.startswith("env.") for key in claim.values)
        what = "code" if is_code else "something outside of the run folder"
        how = "add trust=true (in Python trust=True)"
        if source == OBJECT:
            how = "add trust=True, as in dreamer.train(config, trust=True)"
        elif claim.can_be_repeated:
            how = f"repeat it on the command line as it is written here, or {how}"
        raise UserError(
            f"{claim}: {source} names {what} that you have never named; if you trust it, {how}"
        )


# --------------------------------------------------------------------------- the file of the user


def path() -> Path | None:
    """The file of allowed claims; None where there is no home folder."""
    state = Path(os.environ.get("XDG_STATE_HOME", ""))
    if not state.is_absolute():  # as the specification of these folders requires
        home = Path(os.path.expanduser("~"))  # unchanged where there is none
        if not (home.is_absolute() and home.is_dir()):
            return None
        state = home / ".local" / "state"
    return state / "dreamer" / "trusted"


def _remember(claims: list[Claim]) -> None:
    """Allows claims in this process, and in the file where it can be written."""
    _allowed.update(claim.digest for claim in claims)
    file, new = path(), {claim.digest: f"{claim.digest} {claim}" for claim in claims}
    if file is None or new.keys() <= _remembered().keys():
        return
    with contextlib.suppress(OSError, ValueError):  # no home, or one that cannot be written
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        reason = _unsafe(os.lstat(file.parent))
        if reason:
            warn(f"{file.parent} {reason}, so nothing is remembered there; delete it")
            return
        descriptor = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            lines = (_remembered() | new).values()
            files.write_atomic(file, ABOUT + "\n".join(lines) + "\n", 0o600)
        finally:
            os.close(descriptor)


def _remembered() -> dict[str, str]:
    """Lines of the file by their digests; none of a file that others may have written."""
    file = path()
    with contextlib.suppress(OSError, ValueError):  # ValueError: a path with a null byte
        # Nobody else can replace the file after the check: the folder belongs to the user.
        if file and not any(_unsafe(os.lstat(place)) for place in (file.parent, file)):
            lines = files.read(file, MOST).decode("utf-8", "replace").split("\n")
            return {line.partition(" ")[0]: line for line in lines if line.startswith("sha256:")}
    return {}


def _unsafe(found: os.stat_result) -> str:
    """Why others may have made a file or folder, or may change it; empty if only the user can."""
    if stat.S_ISLNK(found.st_mode):
        return "is a link"
    if found.st_uid != os.geteuid():
        return "belongs to another user"
    return "can be written by others" if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) else ""


# ----------------------------------------------------------------------------------------- values


def _has_text(value: Any) -> bool:
    """Whether a value contains anything but numbers."""
    value = list(value.values()) if isinstance(value, Mapping) else value
    if isinstance(value, list | tuple):
        return any(map(_has_text, value))
    return not (value is None or isinstance(value, bool | int | float))


def _tagged(value: Any) -> Any:
    """A value with its types, for JSON; the order of mappings and sets is ignored."""
    if isinstance(value, Mapping):
        pairs = ([_tagged(key), _tagged(part)] for key, part in value.items())
        return ["mapping", sorted(pairs, key=json.dumps)]
    if isinstance(value, set | frozenset):
        return ["set", sorted(map(_tagged, value), key=json.dumps)]
    if isinstance(value, list | tuple):
        return ["list", [_tagged(part) for part in value]]
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return ["int", hex(value)]  # of any size
    for plain in (float, str):
        if isinstance(value, plain):
            return [plain.__name__, plain(value)]
    return [f"{type(value).__module__}.{type(value).__qualname__}", repr(value)]


def _shown(value: Any) -> str:
    """A value as the command line reads it, without control characters."""
    text = value
    if not isinstance(value, str):
        try:
            text = _KEY.sub(r"\1: ", json.dumps(value, ensure_ascii=False))
        except (TypeError, ValueError):  # types that JSON lacks, integers of too many digits
            text = f"({_tagged(value)})"
    text = printable(text)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({len(text):,} characters)"


def _place(folder: str, key: str) -> Path:
    """A folder as an absolute path without links.

    Raises:
      UserError: no folder can have that name.
    """
    try:  # a home that does not exist is not expanded, and refused elsewhere
        return Path(os.path.realpath(os.path.expanduser(folder)))
    except ValueError:  # a null byte, or half of a character
        raise UserError(
            f"{Claim({key: folder})}: no folder can have that name; choose another one"
        ) from None


def _leads_away(folder: str, source: str) -> bool:
    """Whether a run folder is neither where runs are kept nor the folder of the file that names
    it; one that a program passes may be anywhere below the working directory."""
    if not folder:
        return False
    place = _place(folder, "run.dir")
    if source == OBJECT:
        return not place.is_relative_to(_place(os.curdir, "run.dir"))
    own = _place(source, "config")
    return place not in (own, own.parent) and not place.is_relative_to(_place("runs", "run.dir"))
