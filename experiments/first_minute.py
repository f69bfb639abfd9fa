"""Records what a user sees in the first minute.

    python experiments/first_minute.py FOLDER [--seconds 60] [KEY=VALUE ...]

Runs `python -m dreamer.train` in a pseudo terminal, with an empty compilation cache (cold) and a
full one (warm), and sends Ctrl-C at the end; a third run, also cold, gets it while the update
compiles. Writes NAME.txt, each new line of output with its time, and NAME.cast for asciinema to
FOLDER, and prints the time of each first event.
"""

import argparse
import codecs
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

COLUMNS, LINES = 100, 30
SEEN = {
    "first output": r"dreamer: ",
    "what is planned": r"task  ",
    "the policy compiles": r"compiling the policy",
    "the update compiles": r"compiling the update",
    "first update": r"updates\s+[1-9]",
    "first rate of updates": r"updates\s+[\d,]+\s+\d\S* per second",
    "first time left": r"\d+:\d\d:\d\d left",
    "Ctrl-C acknowledged": r"Ctrl-C again ends",
    "ended": r"stopped, the same command resumes|interrupted",
}
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def record(
    folder: Path, name: str, argv: list[str], cache: Path, seconds: float, press: str = ""
) -> list[tuple[float, str]]:
    """Output with its times; Ctrl-C comes after so many seconds, or right after a text."""
    command = [sys.executable, "-m", "dreamer.train", f"run.dir={folder / name}", *argv]
    env = os.environ | {
        **{"JAX_COMPILATION_CACHE_DIR": str(cache), "TERM": "xterm-256color"},
        **{"COLUMNS": str(COLUMNS), "LINES": str(LINES)},
    }
    ours, theirs = pty.openpty()
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    start = time.monotonic()
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=env, start_new_session=True
    )
    os.close(theirs)
    found: list[tuple[float, str]] = []
    pressed = False
    while True:
        now = time.monotonic() - start
        due = press and re.search(press, "".join(text for _, text in found[-20:]))
        if not pressed and (due or now >= seconds):
            pressed = True
            found.append((now, "\n[Ctrl-C is pressed]\n"))
            process.send_signal(signal.SIGINT)
        if not select.select([ours], [], [], 0.02)[0]:
            continue
        try:
            data = os.read(ours, 65536)
        except OSError:  # the terminal has no other side any more
            break
        if not data:
            break
        found.append((time.monotonic() - start, decoder.decode(data)))
    found.append((time.monotonic() - start, f"\n[status {process.wait()}]\n"))
    with open(folder / f"{name}.cast", "w", encoding="utf-8") as file:
        print(json.dumps({"version": 2, "width": COLUMNS, "height": LINES}), file=file)
        for when, text in found:
            print(json.dumps([round(when, 3), "o", text.replace("\n", "\r\n")]), file=file)
    shown: dict[str, str] = {}  # by its first word
    with open(folder / f"{name}.txt", "w", encoding="utf-8") as file:
        for when, text in found:
            for line in map(str.rstrip, ESCAPE.sub("", text).splitlines()):
                if line and shown.get(line.split()[0]) != line:
                    shown[line.split()[0]] = line
                    print(f"{when:7.2f}  {line}", file=file)
    return found


def timeline(found: list[tuple[float, str]]) -> dict[str, float]:
    """When each was seen first, and the longest time without any output."""
    times = {}
    for what, pattern in SEEN.items():
        for when, text in found:
            if re.search(pattern, ESCAPE.sub("", text)):
                times[what] = when
                break
    whens = [0.0, *(when for when, _ in found)]
    times["longest silence"] = max(b - a for a, b in zip(whens, whens[1:], strict=False))
    pressed = next(when for when, text in found if "is pressed" in text)
    times["pressed"] = pressed
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="a new one")
    parser.add_argument("--seconds", type=float, default=60, help="until Ctrl-C")
    parser.add_argument("argv", nargs="*", help="options of training")
    given = parser.parse_args()
    given.folder.mkdir(parents=True)
    cache = given.folder.absolute() / "cache"
    runs = {
        "cold": (cache, given.seconds, ""),
        "warm": (cache, given.seconds, ""),
        "pressed": (cache.with_name("cache2"), 600.0, "compiling the update, [3-9] s"),
    }
    columns = {
        name: timeline(record(given.folder.absolute(), name, given.argv, *how))
        for name, how in runs.items()
    }
    print(f"{'seconds since the start':26}" + "".join(f"{name:>9}" for name in columns))
    for what in [*SEEN, "pressed", "longest silence"]:
        cells = [
            f"{times[what]:9.2f}" if what in times else f"{'-':>9}" for times in columns.values()
        ]
        print(f"{what:26}" + "".join(cells))


if __name__ == "__main__":
    main()
