"""Where modules are imported from: never from a folder of saved files, which others may have made.

The first thing that `import dreamer` runs, so it imports only what every Python has loaded already.
"""

import os
import stat
import sys

MARK = "# Configuration of a dreamer run"  # how the config.yaml of a run starts
STARTS = {"config.yaml": MARK, "checkpoint.json": '{"checksum": '}


def is_saved(place: str) -> bool:
    """Whether a folder is that of a run, a checkpoint or recorded episodes, or is inside one."""
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
    """Takes the working directory out of `sys.path`, where `python -m` and interactive sessions put
    it first, if it holds saved files; processes started from here do without it too."""
    if not sys.path or sys.flags.safe_path or not is_saved(os.curdir):
        return
    _leave_out(os.curdir)
    os.environ["PYTHONSAFEPATH"] = "1"


def leaves_out(place: str) -> bool:
    """Whether no module of a folder can be imported because of the saved files that hold it."""
    out = os.path.realpath(place)
    return out not in {os.path.realpath(entry or os.curdir) for entry in sys.path} and is_saved(out)


def add(place: str) -> None:
    """Lets modules of a folder be imported, unless it holds saved files."""
    if is_saved(place):
        _leave_out(place)
    else:
        sys.path.insert(0, place)


def _leave_out(place: str) -> None:
    out = os.path.realpath(place)
    sys.path[:] = [entry for entry in sys.path if os.path.realpath(entry or os.curdir) != out]


def _holds_saved(path: str) -> bool:
    """Whether a folder holds what runs, checkpoints and recorded episodes are recognised by."""
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
    """Whether a regular file starts with a text; a pipe or a device is not waited for."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
            return regular and os.read(descriptor, len(text)) == text.encode()
        finally:
            os.close(descriptor)
    except OSError:
        return False
