"""Where modules are imported from: never from a folder of saved files, which others may have made.

The first thing that `import dreamer` runs, so it imports only what every Python has loaded already.
"""

import os
import sys

MARK = "# Configuration of a dreamer run"  # how the config.yaml of a run starts


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
    def has(name: str) -> bool:
        return os.path.lexists(os.path.join(path, name))

    if has("checkpoint.json") or (has("env.yaml") and has("000000.npz")):
        return True
    config = os.path.join(path, "config.yaml")
    try:
        if not os.path.isfile(config):  # a pipe would be waited for
            return False
        with open(config, encoding="utf-8", errors="replace") as file:
            return file.read(len(MARK)) == MARK
    except OSError:
        return False
