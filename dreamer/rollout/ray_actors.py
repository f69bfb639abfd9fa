"""Actors on Ray, in processes of this machine or of others: the only file that imports Ray."""

import contextlib
import os
import platform
import signal
import socket
import warnings
from collections import deque
from collections.abc import Collection, Iterator
from typing import Any

import ray
from ray import exceptions
from ray._private import ray_constants

from dreamer.config import Config, trust
from dreamer.errors import EnvironmentFault, UserError
from dreamer.system import files, importing

IN_FLIGHT = 2  # chunks that an actor may be ahead of the learner
ANSWERING = 10.0  # seconds to wait for a cluster
FETCHING = 60.0  # seconds to wait for the transfer of a finished chunk


class RayActors:
    """Actors by their numbers, each with some chunks requested ahead; start them one by one.

    This file must not import jax: the process of an actor selects the CPU first.

    Args:
      config: of the run, with the dtype of the learner's networks.

    Raises:
      UserError: no cluster answers, or it has too few CPUs.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._handles: dict[int, Any] = {}
        self._requested: dict[int, deque[Any]] = {}  # pending chunks, the next one first
        self._nodes: dict[int, str] = {}  # names of the machines
        self._version, self._weights = -1, None
        options = {"num_cpus": 1, "max_restarts": 0, "scheduling_strategy": "SPREAD"}
        self._kind = ray.remote(**options)(_Actor)
        count = config.run.num_actors
        with contextlib.ExitStack() as stack:
            if not ray.is_initialized():
                # Ray prints pages about every dead actor; it has no public setting for them.
                stack.enter_context(_replaced(ray._private.worker, "_worker_logs_enabled", False))
                stack.callback(ray.shutdown)
                _connect(config.run.ray_address or os.environ.get("RAY_ADDRESS", ""), count)
            cpus = ray.cluster_resources().get("CPU", 0)
            if cpus < count:
                raise UserError(
                    f"run.num_actors={count} actors need a CPU each, but the Ray cluster has "
                    f"{cpus:g}; add nodes, or set fewer actors"
                )
            self._open = stack.pop_all()

    def send(self, version: int, weights: Any) -> None:
        """Sets the weights for all chunks requested from now on."""
        self._version, self._weights = version, ray.put(weights)

    def start(self, index: int, life: int) -> None:
        """Starts an actor where the cluster has room; replaces the one with this number.

        Args:
          index: its number.
          life: see `ActorWorker`.
        """
        if index in self._handles:
            ray.kill(self._handles.pop(index))
        self._handles[index] = self._kind.remote()
        started = self._handles[index].begin.remote(self._config, life, os.getcwd())
        self._nodes[index] = ""
        self._requested[index] = deque([started])
        for _ in range(IN_FLIGHT):
            self._request(index)

    def receive(self, indices: Collection[int], seconds: float) -> tuple[int, Any] | None:
        """Waits for the next chunk of one of these actors.

        Returns:
          The number of an actor and its chunk, or an EnvironmentFault if it died; None if none
          arrived in time.

        Raises:
          UserError: an error of the actor that a restart does not fix.
        """
        first = {self._requested[index][0]: index for index in indices}
        ready, _ = ray.wait(list(first), num_returns=1, timeout=seconds)
        if not ready:
            return None
        index = first[ready[0]]
        self._requested[index].popleft()
        try:
            answer = ray.get(ready[0], timeout=FETCHING)
        except exceptions.RayTaskError as error:
            if isinstance(error.cause, EnvironmentFault):
                raise EnvironmentFault(f"actor {index}: {error.cause}") from error
            if isinstance(error.cause, UserError):
                raise UserError(str(error.cause)) from error
            what = f"{type(error.cause).__name__}: {error.cause}"
            return index, EnvironmentFault(f"{self._name(index)} failed with {what}")
        except exceptions.RayError as error:
            node = " with its node" if "its node has died" in str(error) else ""
            return index, EnvironmentFault(f"{self._name(index)} died{node}")
        if isinstance(answer, str):  # the result of `begin`
            self._nodes[index] = answer
            return None
        self._request(index)
        return index, answer

    def close(self) -> None:
        """Ends the actors, and the cluster if this process started it; may be called twice."""
        self._open.close()
        while self._handles and ray.is_initialized():
            ray.kill(self._handles.popitem()[1])
        self._handles.clear()

    def _request(self, index: int) -> None:
        self._requested[index].append(
            self._handles[index].play.remote(self._version, self._weights)
        )

    def _name(self, index: int) -> str:
        node = self._nodes[index]
        return f"actor {index} on {node}" if node else f"actor {index}"


class _Actor:
    """An `ActorWorker` in a process of its own."""

    def begin(self, config: Config, life: int, folder: str) -> str:
        """Creates the worker; `folder` is the working directory of the run, with its modules."""
        os.environ["JAX_PLATFORMS"] = "cpu"
        os.environ.setdefault("PJRT_NPROC", "1")  # threads of jax: the CPU that Ray reserves
        if os.path.isdir(folder):
            os.chdir(folder)
            importing.add(folder)
        from dreamer.rollout.actor import ActorWorker
        from dreamer.system import runtime

        trust.allow_here(config.env)
        runtime.runtime("cpu")
        self._worker = ActorWorker(config, life)
        return platform.node()

    def play(self, version: int, weights: Any) -> Any:
        return self._worker.play(version, weights)


def _connect(address: str, count: int) -> None:
    """Joins a cluster, or starts one on this machine with at least `count` CPUs."""
    _refuse_unreachable(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": True}
    cpus = max(os.cpu_count() or 1, count)
    own = {"address": "local", "num_cpus": cpus, "include_dashboard": False}
    cluster = {"address": address} if address else own
    listening = contextlib.nullcontext() if address else on_loopback()
    with listening, _our_signals(), warnings.catch_warnings():
        # Processes that Ray forks call exec at once, which is safe.
        warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
        try:
            ray.init(**cluster, **quiet)
        except Exception as error:  # of many kinds
            reason = " ".join(str(error).split()).partition(". ")[0]
            raise _no_cluster(address, reason) from error


def _refuse_unreachable(address: str) -> None:
    """Refuses an address where nothing answers; Ray would try for minutes."""
    host, colon, port = address.rpartition(":")
    if "://" in address or (colon and not 0 < (files.number(port) or 0) < 2**16):
        raise UserError(
            f"run.ray_address={address}: expected HOST:PORT of the head of a Ray cluster that this "
            "machine belongs to, such as 10.0.0.1:6379"
        )
    if colon:
        try:
            socket.create_connection((host, int(port)), ANSWERING).close()
        except OSError as error:
            raise _no_cluster(address, str(error)) from error


def _no_cluster(address: str, reason: str) -> UserError:
    if not address:
        return UserError(f"Ray cannot be started on this machine: {reason}")
    return UserError(
        f"no Ray cluster answers at {address} ({reason}), set by run.ray_address or RAY_ADDRESS; "
        "start it with `ray start --head`, and `ray start --address` on this machine, or leave it "
        "out"
    )


def on_loopback() -> contextlib.AbstractContextManager[None]:
    """Makes clusters started in this context listen on the loopback address instead of all
    interfaces, as Ray does on systems that support a single machine alone."""
    return _replaced(ray_constants, "ENABLE_RAY_CLUSTER", False)


@contextlib.contextmanager
def _replaced(module: Any, name: str, value: object) -> Iterator[None]:
    """A context in which a variable of a module has another value."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


@contextlib.contextmanager
def _our_signals() -> Iterator[None]:
    """Keeps the signal handlers, of which Ray replaces one."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            with contextlib.suppress(ValueError):  # in another thread, Ray sets none either
                signal.signal(number, handler)
