"""Joins this process with other hosts, and reports how that ends.

One program is started once per host. They find each other by `run.coordinator`, or by the
environment variables of SLURM, Open MPI or a TPU pod.
"""

import atexit
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from typing import Any

import jax

from dreamer.config.run import RunConfig
from dreamer.distributed import hosts
from dreamer.errors import UserError, emit
from dreamer.system import files
from dreamer.system.signals import StopRequest

LOST_AFTER = 30  # seconds without a sign of life
STATUS = 3  # exit status of a process that lost another host
# In the messages of errors of the connection to other hosts.
_LOST = re.compile(r"gloo|nccl|coordination|heartbeat|unavailable|connection (reset|closed)", re.I)


def is_distributed(run: RunConfig, env: Mapping[str, str] = os.environ) -> bool:
    """Whether there are several hosts.

    Args:
      run: settings.
      env: of the process.

    Raises:
      UserError: the settings do not fit together.
    """
    given = {"run.num_processes": run.num_processes > 0, "run.process_id": run.process_id >= 0}
    addressed = run.coordinator not in ("", "auto", "none")
    for key, is_set in given.items():
        if is_set and not addressed:
            raise UserError(
                f"{key} is set without run.coordinator=HOST:PORT, the address of process 0; "
                "add it, or leave out both numbers under SLURM, Open MPI or on a TPU pod"
            )
        if addressed and not is_set:
            raise UserError(
                f"run.coordinator={run.coordinator}: each process needs run.num_processes=N and "
                f"its own run.process_id from 0 to N - 1; add {key}"
            )
    if not addressed:
        return run.coordinator == "auto" or (run.coordinator == "" and bool(detected(env)))
    if run.process_id >= run.num_processes:
        raise UserError(
            f"run.process_id={run.process_id} is not below run.num_processes={run.num_processes}; "
            f"allowed are 0 to {run.num_processes - 1}"
        )
    _address(run)
    return run.num_processes > 1


def refuse(run: RunConfig) -> None:
    """Refuses several hosts in a library call, which starts the program on one host alone.

    Raises:
      UserError: the settings request them.
    """
    if run.coordinator not in ("", "none"):
        raise UserError(
            f"run.coordinator={run.coordinator} is for the command line: start python -m "
            "dreamer.train on every host; leave it out here"
        )


def detected(env: Mapping[str, str]) -> str:
    """The launcher that started several processes together; empty if there is none."""
    workers = [name for name in env.get("TPU_WORKER_HOSTNAMES", "").split(",") if name]
    several = {
        # A script that srun did not start has SLURM_NTASKS too, but is one process.
        "SLURM": "SLURM_PROCID" in env and _number(env.get("SLURM_STEP_NUM_TASKS")) > 1,
        "Open MPI": _number(env.get("OMPI_COMM_WORLD_SIZE")) > 1,
        "TPU": len(workers) > 1 or _number(env.get("MEGASCALE_NUM_SLICES")) > 1,
    }
    return next((launcher for launcher, found in several.items() if found), "")


def _number(text: str | None) -> int:
    return files.number(text or "") or 0


def _address(run: RunConfig) -> tuple[str, int]:
    name, _, port = run.coordinator.rpartition(":")
    if not name or not 0 < _number(port) < 2**16:
        raise UserError(
            f"run.coordinator={run.coordinator} is no address; write HOST:PORT of process 0, or "
            "auto or none"
        )
    return name.strip("[]"), int(port)


def _listen(run: RunConfig) -> str:
    """The address at which process 0 listens: that of run.coordinator, if this machine has it.

    Empty if it does not, as behind NAT, if the name has several, or if it is the loopback address
    of a name that other machines resolve differently.
    """
    name, port = _address(run)
    if "JAX_COORDINATOR_BIND_ADDRESS" in os.environ:
        return ""
    try:
        known = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    except OSError:
        return ""
    found = {str(info[4][0]) for info in known if _is_here(info[0], info[4])}
    if name == "localhost":
        found = {"127.0.0.1"}
    if len(found) != 1:
        return ""
    (address,) = found
    if ip_address(address).is_loopback and name not in (address, "localhost"):
        return ""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _refuse_taken(run: RunConfig, listen: str) -> None:
    """Refuses a port that is in use, on which jaxlib may crash.

    Args:
      run: settings.
      listen: the address to listen at, "" for all interfaces.
    """
    port = _address(run)[1]
    address = listen.rpartition(":")[0].strip("[]") or "0.0.0.0"
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as attempt:
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            attempt.bind((address, port))
        except OSError as error:
            raise UserError(
                f"run.coordinator={run.coordinator}: cannot listen at port {port}: "
                f"{error.strerror or error}; choose another port on all hosts"
            ) from None


def _is_here(family: int, address: tuple[Any, ...]) -> bool:
    """Whether a socket can be bound to the address."""
    with suppress(OSError), socket.socket(family) as attempt:
        attempt.bind((address[0], 0))
        return True
    return False


@contextmanager
def connect(run: RunConfig, stop: StopRequest | None = None) -> Iterator[None]:
    """Joins this process with the other hosts, if there are any, see `is_distributed`.

    The context ends when all hosts have left it.

    A host that fails leaves at once, and so do the others when its connection is lost: by an error
    of the connection, or by an abort in C++ at any point. A watchdog process sees that this one
    ended and prints the last line.

    Args:
      run: settings.
      stop: ends the wait for the others.

    Raises:
      UserError: the other hosts cannot be found.
    """
    if not is_distributed(run):
        yield
        return
    watchdog = Watchdog()
    try:
        _join(run, stop or StopRequest(), watchdog)
    except BaseException:
        watchdog.dismiss()
        raise
    try:
        yield
    except BaseException as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and _LOST.search(str(error)):
            _end_lost(error)
        watchdog.dismiss()
        # Python would wait for the other hosts at exit, and they would miss this one late.
        atexit.register(_end, 2 if isinstance(error, UserError) else 1)
        raise
    try:
        hosts.leave()
    except RuntimeError as error:
        _end_lost(error)
    watchdog.dismiss()


def _join(run: RunConfig, stop: StopRequest, watchdog: "Watchdog") -> None:
    seconds = run.join_seconds
    stop.begin()  # all hosts stop together
    direct = run.coordinator not in ("auto", "")
    watchdog.say(
        f"error: run.join_seconds={seconds:g} passed before all hosts had joined; start all hosts "
        "within that time, and check the output of the missing ones"
    )

    def last_words() -> str:
        watchdog.say("")
        return f"run.grace_seconds={run.grace_seconds:g} passed before all hosts had joined"

    listen = ""
    if direct and run.process_id > 0:
        _find(run, stop)
    elif direct:
        listen = _listen(run)
        _refuse_taken(run, listen)
    try:
        # Inside jax, no signal handler runs until all hosts have joined.
        with stop.grace(run.grace_seconds, last_words):
            hosts.unite(
                run.coordinator if direct else "",
                *(run.num_processes, run.process_id, seconds, LOST_AFTER),
                listen,
            )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the hosts cannot join: {error}; check that the port of run.coordinator is free on "
            "its host, and that every process has the same settings"
        ) from error
    watchdog.say(
        f"error: host {hosts.index()} of {hosts.count()} ended because another host was lost, or "
        "because of a signal from outside; the same command on all hosts resumes"
    )


def _end_lost(error: BaseException) -> None:
    """Ends this process, whose connection is lost; the watchdog prints the reason."""
    what = str(error).partition("\n")[0]
    emit(f"{type(error).__name__}: {what}", sys.stderr)
    _end(STATUS)


def _end(status: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(status)


def _find(run: RunConfig, stop: StopRequest) -> None:
    """Waits until process 0 answers; without it, jax would abort.

    Raises:
      UserError: it does not answer, or a signal ends the wait.
    """
    address, end = _address(run), time.monotonic() + run.join_seconds
    while True:
        try:
            socket.create_connection(address, timeout=2).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                raise UserError(
                    f"run.coordinator={run.coordinator} does not answer after "
                    f"run.join_seconds={run.join_seconds:g}: {error.strerror or error}; start "
                    "process 0 there, or correct the address"
                ) from None
        if stop.requested:
            raise UserError(
                f"stopped before run.coordinator={run.coordinator} answered; the same command "
                "starts again"
            )
        time.sleep(0.2)


class Watchdog:
    """A process that prints the last line it was given when this one ends without dismissing it.

    It ignores the signals that a scheduler sends to every process of a job. Its own loss is
    harmless.
    """

    _SCRIPT = """
        trap '' HUP INT TERM USR1 USR2
        while IFS= read -r line; do word=$line; done
        [ -z "$word" ] || echo "$word" >&2
    """

    def __init__(self) -> None:
        # In a session of its own, so that Ctrl-C does not end it.
        self._process = subprocess.Popen(
            ["sh", "-c", self._SCRIPT], stdin=subprocess.PIPE, start_new_session=True, text=True
        )

    def say(self, line: str) -> None:
        """Replaces the line to print; none if it is empty."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()

    def dismiss(self) -> None:
        """Ends the process without a line."""
        self.say("")
        with suppress(OSError):
            self._process.communicate()
