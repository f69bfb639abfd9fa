"""Whether a saved file may do what it names: the one place that decides.

A configuration can name code (`env.entry_point`, an id that imports a package), and can reach
outside of its run folder (`xla_flags`, clusters, other folders). What the user names on a command
line or in a program may happen, and is remembered by this process and in one small file of the
user's. A saved file may use what is remembered, wherever it is stored; the rest is refused.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shlex
import stat
from collections.abc import Collection, Iterator, Mapping
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
WRITTEN = ("checkpoint.dir", "replay.folder")  # folders, of no concern inside of the run folder
NOWHERE = {"run.coordinator": ("auto", "none")}  # values that name nothing
OBJECT = "the configuration"  # the source of one that a program passes
# What the grammar of the command line reads as text without quotes.
_WORD = r"(?!(?:true|false|null|nan|inf)$)[a-z_]"
_PLAIN = re.compile(_WORD + r"[a-z0-9_./@-]*", re.I)
_KEY = re.compile(_WORD + r"[a-z0-9_]*", re.I)

Section = TypeVar("Section")

_allowed: set[str] = set()  # hashes of what this process may do


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
    def can_be_repeated(self) -> bool:
        """Whether the command line reads what is shown as these values."""
        return len(str(self)) <= SHOWN and all(map(_reads_back, self.values.values()))


def code(env: Any) -> list[Claim]:
    """The claim of a section `env` that has code imported and called; none where it names only a
    suite of this project and a task, or a registered id.

    Text among the arguments of an id counts: it may name a file or code, as `env_id` does of
    gymnasium's ids for old environments. Numbers do not.
    """
    if not hasattr(env, "entry_point"):
        return []
    if not env.entry_point and ":" not in env.task and not _has_text(env.kwargs):
        return []
    named = {"env.entry_point": env.entry_point} if env.entry_point else {"env.task": env.task}
    return [Claim(named | ({"env.kwargs": env.kwargs} if env.kwargs else {}))]


def named_as(env: Any) -> tuple[Any, ...]:
    """What the user names of a section `env`: the same for two of the same environment."""
    return env.suite, env.name, _tagged(getattr(env, "kwargs", {}))


def claims(config: Any) -> list[Claim]:
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


def allow(env: Section) -> Section:
    """Takes the user's word for a section `env`: what it names may run, now and later."""
    _remember(code(env))
    return env


def allow_here(env: Any) -> None:
    """Takes the word of the process that started this one, which decided on the section `env`."""
    _allowed.update(claim.digest for claim in code(env))


def require(env: Any, source: str = "a saved file") -> None:
    """Refuses a section `env` with code that the user has not named.

    Raises:
      UserError: showing it.
    """
    _require(code(env), source)


def known(env: Any) -> bool:
    """Whether all that a section `env` names may run."""
    return all(map(_is_known, code(env)))


def settle(config: Any, given: Collection[str], source: str = "", word: bool = False) -> None:
    """Decides on a whole new configuration.

    Args:
      config: the configuration.
      given: keys that the user set; the values of all others come from `source`.
      source: the file or object that the configuration comes from; empty where there is none, but
        only the user's options over the defaults and recipes of this project.
      word: whether the user trusts the source.

    Raises:
      UserError: the source names what the user has never named.
    """
    named, word = claims(config), word or not source
    _remember([claim for claim in named if word or claim.values.keys() <= set(given)])
    if _leads_away(config.run.dir, source):
        folder = Claim({"run.dir": config.run.dir})
        if word or "run.dir" in given:
            _allowed.add(folder.digest)  # by this process alone: every run has another one
        named.append(folder)
    _require(named, source)


def _is_known(claim: Claim) -> bool:
    return claim.digest in _allowed or claim.digest in _remembered()


def _require(claims: list[Claim], source: str) -> None:
    for claim in claims:
        if _is_known(claim):
            continue
        is_code = any(key.startswith("env.") for key in claim.values)
        what = "code" if is_code else "something outside of the run folder"
        repeat = "repeat it on the command line as it is written here, or "
        how = f"{repeat if claim.can_be_repeated else ''}add trust=true (in Python trust=True)"
        if source == OBJECT:
            how = "add trust=True, as in dreamer.train(config, trust=True)"
        raise UserError(
            f"{claim}: {source} names {what} that you have never named; it needs your word: {how}"
        )


# ----------------------------------------------------------------------------------------- memory


def path() -> Path | None:
    """The file of what is remembered; None where there is no home folder."""
    state = Path(os.environ.get("XDG_STATE_HOME", ""))
    if not state.is_absolute():  # as the specification of these folders says
        home = Path(os.path.expanduser("~"))  # unchanged where there is none
        if not (home.is_absolute() and home.is_dir()):
            return None
        state = home / ".local" / "state"
    return state / "dreamer" / "trusted"


def _remember(claims: list[Claim]) -> None:
    """By this process, and in the file where it can be written."""
    _allowed.update(claim.digest for claim in claims)
    file, new = path(), {claim.digest: f"{claim.digest} {claim}" for claim in claims}
    if file is None or new.keys() <= _remembered().keys():
        return
    with contextlib.suppress(OSError, ValueError):  # no home, or one that cannot be written
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        reason = _unsafe(os.lstat(file.parent))
        if reason:
            warn(f"nothing is remembered in {file.parent}, which {reason}; delete it")
            return
        with _locked(file.parent):
            known = _remembered()
            lines = known | {digest: line for digest, line in new.items() if digest not in known}
            files.write_atomic(file, ABOUT + "\n".join(lines.values()) + "\n", 0o600)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lets one process after the other in, where the file system has locks.

    Raises:
      OSError: it is no folder.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remembered() -> dict[str, str]:
    """Lines of the file by their hashes; none of a file that anybody else may have written."""
    file, text = path(), ""
    with contextlib.suppress(OSError, ValueError):  # ValueError: a path with a null byte
        # Nobody else can replace the file after the check: the folder is the user's alone.
        if file and not any(_unsafe(os.lstat(place)) for place in (file.parent, file)):
            text = files.read(file, MOST).decode("utf-8", "replace")
    lines = [line for line in text.split("\n") if line.startswith("sha256:")]
    return {line.partition(" ")[0]: line for line in lines}


def _unsafe(found: os.stat_result) -> str:
    """Why others may have made a file or folder, or may change it; empty if only the user can."""
    if stat.S_ISLNK(found.st_mode):
        return "is a link"
    if found.st_uid != os.geteuid():
        return "belongs to another user"
    return "others can write to" if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) else ""


# ----------------------------------------------------------------------------------------- values


def _has_text(value: Any) -> bool:
    """Whether there is anything in a value but numbers."""
    value = list(value.values()) if isinstance(value, Mapping) else value
    if isinstance(value, list | tuple):
        return any(map(_has_text, value))
    return not (value is None or isinstance(value, bool | int | float))


def _tagged(value: Any) -> Any:
    """A value with its types, as JSON has it. The order of mappings and sets says nothing."""
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


def _reads_back(value: Any, inside: bool = False) -> bool:
    """Whether a value is surely one that the command line reads from what `_shown` gives."""
    if isinstance(value, Mapping):
        return all(
            isinstance(key, str) and _KEY.fullmatch(key) and _reads_back(part, True)
            for key, part in value.items()
        )
    if isinstance(value, list):
        return all(_reads_back(part, True) for part in value)
    if isinstance(value, str):
        as_it_is = inside or (value != "null" and value[:1] not in ("'", '"'))
        one_line = value.isprintable() and " ".join(value.split()) == value
        return as_it_is and one_line and not re.search(r"\\|\$\{", value)
    return value is None or isinstance(value, bool | int | float)


def _shown(value: Any, inside: bool = False) -> str:
    """A value as the command line reads it, with nothing that a terminal would act on."""
    if isinstance(value, Mapping):
        parts = (f"{_shown(name, True)}: {_shown(part, True)}" for name, part in value.items())
        text = f"{{{', '.join(parts)}}}"
    elif isinstance(value, list | tuple):
        text = f"[{', '.join(_shown(part, True) for part in value)}]"
    elif isinstance(value, str):
        quoted = inside and not _PLAIN.fullmatch(value)
        text = json.dumps(value, ensure_ascii=False) if quoted else value
    elif isinstance(value, bool):
        text = str(value).lower()
    elif isinstance(value, int) and value.bit_length() > SHOWN:
        text = hex(value)  # decimals of any length are not written
    else:
        text = "null" if value is None else repr(value)
    text = printable(text)
    return text if len(text) <= SHOWN or inside else f"{text[:SHOWN]}... ({len(text):,} characters)"


def _place(folder: str, key: str) -> Path:
    """A folder as an absolute path without links.

    Raises:
      UserError: no folder can have that name.
    """
    try:  # the home of nobody is kept as it is written, and refused elsewhere
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
