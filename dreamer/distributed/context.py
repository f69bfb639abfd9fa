"""Whether this process trains alone or as one of several hosts, and what is said when that ends.

One program is started once per host. They find each other by `run.coordinator`, or by what SLURM,
Open MPI or a TPU pod put into the environment.
"""

import atexit
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any, Self

import jax

from dreamer.config.run import RunConfig
from dreamer.distributed import hosts
from dreamer.errors import UserError, emit
from dreamer.system import files
from dreamer.system.signals import StopRequest

LOST_AFTER = 30  # seconds without a sign of life
STATUS = 3  # of a process that ends because of another
# In the texts of errors that come from the connection to other hosts.
_LOST = re.compile(r"gloo|nccl|coordination|heartbeat|unavailable|connection (reset|closed)", re.I)


def wanted(run: RunConfig, env: Mapping[str, str] = os.environ) -> bool:
    """Whether there are several hosts.

    Args:
      run: settings.
      env: of the process.

    Raises:
      UserError: the settings do not fit together.
    """
    given = {"run.num_processes": run.num_processes > 0, "run.process_id": run.process_id >= 0}
    if run.coordinator in ("", "auto", "none"):
        for key, there in given.items():
            if there:
                raise UserError(
                    f"{key} is set without run.coordinator=HOST:PORT, the address of process 0; "
                    "add it, or leave out both numbers where SLURM, Open MPI or a TPU pod give them"
                )
        return run.coordinator == "auto" or (run.coordinator == "" and bool(detected(env)))
    for key, there in given.items():
        if not there:
            raise UserError(
                f"run.coordinator={run.coordinator} is of several processes, of which each also "
                f"needs run.num_processes=N and its own run.process_id from 0 to N - 1; add {key}"
            )
    if run.process_id >= run.num_processes:
        raise UserError(
            f"run.process_id={run.process_id} is not below run.num_processes={run.num_processes}; "
            f"allowed are 0 to {run.num_processes - 1}"
        )
    _address(run)
    return run.num_processes > 1


def refuse(run: RunConfig) -> None:
    """Refuses several hosts where Python calls, which does not start the program on each.

    Raises:
      UserError: the settings ask for them.
    """
    if run.coordinator not in ("", "none"):
        raise UserError(
            f"run.coordinator={run.coordinator} is for the command line: start python -m "
            "dreamer.train on every host; leave it out here"
        )


def detected(env: Mapping[str, str]) -> str:
    """What started several processes that belong together; empty if nothing did."""
    # Of a step of SLURM: in a script that srun does not start, only SLURM_NTASKS tells of others.
    if _number(env.get("SLURM_STEP_NUM_TASKS")) > 1 and "SLURM_PROCID" in env:
        return "SLURM"
    if _number(env.get("OMPI_COMM_WORLD_SIZE")) > 1:
        return "Open MPI"
    workers = [name for name in env.get("TPU_WORKER_HOSTNAMES", "").split(",") if name]
    if len(workers) > 1 or _number(env.get("MEGASCALE_NUM_SLICES")) > 1:
        return "TPU"
    return ""


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
    """Where process 0 listens: at the address that run.coordinator names, if it is one of this
    machine. Empty if it is none, as behind NAT, or if the name has several, or the loopback address
    as a name has on its own machine that others find elsewhere."""
    name, port = _address(run)
    if "JAX_COORDINATOR_BIND_ADDRESS" in os.environ:
        return ""
    try:
        known = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    except OSError:
        return ""
    found = {address for address in (str(info[4][0]) for info in known) if _is_here(address)}
    if name == "localhost":
        found = {"127.0.0.1"}
    if len(found) != 1:
        return ""
    (address,) = found
    if (address.startswith("127.") or address == "::1") and name not in (address, "localhost"):
        return ""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _is_here(address: str) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as attempt:
        try:
            attempt.bind((address, 0))
        except OSError:
            return False
    return True


def connect(run: RunConfig, stop: StopRequest | None = None) -> AbstractContextManager[Any]:
    """That of this process with others, if there are any; see `wanted` and `DistributedContext`."""
    return DistributedContext(run, stop or StopRequest()) if wanted(run) else nullcontext()


class DistributedContext:
    """Several hosts from here on; a context that ends when all of them have left it.

    One that fails leaves at once, and so do the others when they miss it: by an error that names
    the connection, or by an abort from C++ in the midst of anything. So the last line is printed by
    a process beside this one, which sees it end.

    Args:
      run: settings, of which `wanted` is true.
      stop: ends the wait for the others.

    Raises:
      UserError: the others cannot be found.
    """

    def __init__(self, run: RunConfig, stop: StopRequest) -> None:
        self._run, self._stop = run, stop

    def __enter__(self) -> Self:
        run, seconds = self._run, self._run.join_seconds
        self._stop.begin()  # all hosts stop together
        direct = run.coordinator != "auto" and run.coordinator != ""
        self._watchdog = Watchdog()
        self._watchdog.say(
            f"error: after run.join_seconds={seconds:g} not all hosts had come; start all of them "
            "within that time, and look at what those said that did not come"
        )
        try:
            if direct and run.process_id > 0:
                _find(run, self._stop)
            try:
                # In jax no handler of a signal runs until all have come.
                with self._stop.grace(run.grace_seconds, self._last_words):
                    hosts.unite(
                        run.coordinator if direct else "",
                        *(run.num_processes, run.process_id, seconds, LOST_AFTER),
                        _listen(run) if direct and run.process_id == 0 else "",
                    )
            except (RuntimeError, ValueError) as error:
                raise UserError(
                    f"the hosts cannot be joined: {error}; "
                    "see that the port of run.coordinator is free on its host, and that every "
                    "process has the same settings"
                ) from error
            number, count = hosts.index(), hosts.count()
        except BaseException:
            self._watchdog.dismiss()
            raise
        self._watchdog.say(
            f"error: host {number} of {count} has ended because another was lost, or was itself "
            "ended from outside; the same command on all hosts resumes"
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: object
    ) -> None:
        lost = isinstance(error, jax.errors.JaxRuntimeError) and bool(_LOST.search(str(error)))
        if error is None:
            try:
                hosts.leave()
            except RuntimeError as left:
                error, lost = left, True
            else:
                self._watchdog.dismiss()
                return
        if lost:
            what = str(error).partition("\n")[0]
            emit(f"{type(error).__name__}: {what}", sys.stderr)
            _end(STATUS)  # the watchdog says what that means
        self._watchdog.dismiss()
        # The others are not waited for at exit, so that they soon miss this one.
        atexit.register(_end, 2 if isinstance(error, UserError) else 1)

    def _last_words(self) -> str:
        self._watchdog.say("")
        seconds = f"run.grace_seconds={self._run.grace_seconds:g}"
        return f"{seconds} are over before all hosts had come; nothing was begun"


def _end(status: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(status)


def _find(run: RunConfig, stop: StopRequest) -> None:
    """Waits until process 0 is there: jax itself would abort when it is not.

    Raises:
      UserError: it does not come, or a signal comes first.
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
    """A process that says the last line it was given when this one ends without dismissing it.

    A scheduler's signals come to every process of a job, and are not for this one; one that is
    gone nevertheless is not missed.
    """

    _SCRIPT = """
        trap '' HUP INT TERM USR1 USR2
        while IFS= read -r line; do word=$line; done
        [ -z "$word" ] || echo "$word" >&2
    """

    def __init__(self) -> None:
        # In a session of its own, where a Ctrl-C for this one does not end it.
        self._process = subprocess.Popen(
            ["sh", "-c", self._SCRIPT], stdin=subprocess.PIPE, start_new_session=True, text=True
        )

    def say(self, word: str) -> None:
        """Takes a line in place of the one before."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.write(f"{word}\n")
            self._process.stdin.flush()

    def dismiss(self) -> None:
        """Nothing is to be said any more."""
        self.say("")
        with suppress(OSError):
            self._process.communicate()
