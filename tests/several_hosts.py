"""Several hosts as processes of this machine, with one device each: two hang in some runs."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests import tiny_run

LIMIT = 300  # seconds that any of them may take

ENVIRONMENT = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}


class Host:
    """A process of a test, and what it wrote."""

    def __init__(self, arguments: list[str], log: Path, environment: dict[str, str]) -> None:
        self.log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, *arguments],
                stdout=file,
                stderr=file,
                env=ENVIRONMENT | environment,
            )

    @property
    def text(self) -> str:
        return self.log.read_text()

    def end(self, seconds: float = LIMIT) -> int:
        """Waits for its end; gives the exit status."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {seconds} s:\n{self.text}") from None

    def last_line(self) -> str:
        """What was written last, also by the watchdog, which is a moment late."""
        line = ""
        for _ in range(50):
            lines = self.text.splitlines()
            line = lines[-1] if lines else ""
            if line.startswith("error:"):
                break
            time.sleep(0.1)
        return line


@contextlib.contextmanager
def programs(
    commands: list[list[str]], folder: Path, environments: Sequence[dict[str, str]] = ()
) -> Iterator[list[Host]]:
    """Processes of Python with these arguments; killed in the end, for they hear nothing else."""
    folder.mkdir(parents=True, exist_ok=True)
    made: list[Host] = []
    try:
        for number, arguments in enumerate(commands):
            environment = environments[number] if environments else {}
            made.append(Host(arguments, folder / f"log{number}-{time.time_ns()}", environment))
        yield made
    finally:
        for host in made:
            with contextlib.suppress(ProcessLookupError):
                host.process.send_signal(signal.SIGKILL)
            host.process.wait()


def training(folder: Path, *changes: str, count: int = 2) -> contextlib.AbstractContextManager:
    """Hosts that train together in one run folder."""
    address = f"127.0.0.1:{free_port()}"
    common = [*changes, f"run.coordinator={address}", f"run.num_processes={count}"]
    commands = [
        ["-m", "dreamer.train", *tiny_run.argv(folder, *common, f"run.process_id={number}")]
        for number in range(count)
    ]
    return programs(commands, folder.parent / f"{folder.name}-logs")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def wait_until(condition: Callable[[], bool], hosts: list[Host], seconds: float = LIMIT) -> None:
    end = time.monotonic() + seconds
    while not condition():
        ended = [host.text for host in hosts if host.process.poll() is not None]
        assert not ended, "\n".join(ended)
        assert time.monotonic() < end, "\n".join(host.text for host in hosts)
        time.sleep(0.1)
