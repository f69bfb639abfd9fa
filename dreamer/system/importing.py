"""Excludes folders of saved files, which may be untrusted, from the import path.

`import dreamer` runs it first, so it imports only modules that Python has loaded already.
"""

import os
import stat
import sys

MARK = "# Configuration of a dreamer run"  # the start of the config.yaml of a run
STARTS = {"config.yaml": MARK, "checkpoint.json": '{"checksum": '}


def is_saved(place: str) -> bool:
    """Whether a folder is, or is inside, a run, a checkpoint or recorded episodes."""
    try:
        path = os.path.realpath(place)
    except OSError:  # the working directory was removed
        return False
    while True:
        if _holds_saved(path):
            return True
        path, before = os.path.dirname(path), path
        if path == before:
            return False


def leave_out_saved() -> None:
    """Removes the working directory from `sys.path`, where `python -m` and interactive sessions put
    it first, if it holds saved files; also for child processes."""
    if not sys.path or sys.flags.safe_path or not is_saved(os.curdir):
        return
    _leave_out(os.curdir)
    os.environ["PYTHONSAFEPATH"] = "1"


def leaves_out(place: str) -> bool:
    """Whether a folder is excluded from the import path because it holds saved files."""
    out = os.path.realpath(place)
    return out not in {os.path.realpath(entry or os.curdir) for entry in sys.path} and is_saved(out)


def add(place: str) -> None:
    """Adds a folder to the import path, unless it holds saved files."""
    if is_saved(place):
        _leave_out(place)
    else:
        sys.path.insert(0, place)


def _leave_out(place: str) -> None:
    out = os.path.realpath(place)
    sys.path[:] = [entry for entry in sys.path if os.path.realpath(entry or os.curdir) != out]


def _holds_saved(path: str) -> bool:
    """Whether a folder has the files of a run, a checkpoint or recorded episodes."""
    try:
        names = set(os.listdir(path))
    except OSError:  # nothing can be imported from it
        names = set()
    arrays = [name.removesuffix(".npz") for name in names if name.endswith(".npz")]
    if any(map(str.isdecimal, arrays)) or (arrays and names & {"env.yaml", "spaces.json"}):
        return True
    meta = os.path.join(path, "meta", "metadata")  # of the oldest checkpoints
    if "state" in names and ("checkpoint.json" in names or os.path.lexists(meta)):
        return True
    return any(_starts(os.path.join(path, name), text) for name, text in STARTS.items())


def _starts(path: str, text: str) -> bool:
    """Whether a regular file starts with a text; does not block on a pipe or a device."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
            return regular and os.read(descriptor, len(text)) == text.encode()
        finally:
            os.close(descriptor)
    except OSError:
        return False
