"""Actors on Ray, in processes of this machine or of others: the only file that knows Ray."""

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
ANSWERING = 10.0  # seconds that a cluster may take to answer
FETCHING = 60.0  # seconds that a finished chunk may take from one machine to another


class RayActors:
    """Actors by their numbers, each asked for so many chunks ahead; to be started one by one.

    This file must not import jax: an actor's process settles first that it uses the CPU.

    Args:
      config: of the run, with the dtype of the learner's networks.

    Raises:
      UserError: no cluster answers, or it is too small.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._handles: dict[int, Any] = {}
        self._asked: dict[int, deque[Any]] = {}  # chunks to come, the next one first
        self._homes: dict[int, str] = {}  # machines
        self._version, self._weights = -1, None
        options = {"num_cpus": 1, "max_restarts": 0, "scheduling_strategy": "SPREAD"}
        self._kind = ray.remote(**options)(_Actor)
        count = config.run.num_actors
        self._ours = not ray.is_initialized()
        if self._ours:
            _connect(config.run.ray_address or os.environ.get("RAY_ADDRESS", ""), count)
        cpus = ray.cluster_resources().get("CPU", 0)
        if cpus < count:
            self.close()
            raise UserError(
                f"run.num_actors={count} actors need a CPU each, but the Ray cluster has {cpus:g}; "
                "add nodes to it, or ask for fewer"
            )

    def send(self, version: int, weights: Any) -> None:
        """Gives weights to all chunks that are asked for from here on."""
        self._version, self._weights = version, ray.put(weights)

    def start(self, index: int, life: int) -> None:
        """Starts an actor where the cluster has room, in the place of the one of this number.

        Args:
          index: its number.
          life: see `ActorWorker`.
        """
        if index in self._handles:
            ray.kill(self._handles.pop(index))
        self._handles[index] = self._kind.remote()
        begun = self._handles[index].begin.remote(self._config, life, os.getcwd())
        self._homes[index] = ""
        self._asked[index] = deque([begun])
        for _ in range(IN_FLIGHT):
            self._ask(index)

    def receive(self, wanted: Collection[int], seconds: float) -> tuple[int, Any] | None:
        """Waits for the next chunk of one of these actors.

        Returns:
          The number of an actor and its chunk, or the EnvironmentFault that it died; None where
          there was none in time.

        Raises:
          UserError: by the actor itself, which does not begin or go on.
        """
        first = {self._asked[index][0]: index for index in wanted}
        ready, _ = ray.wait(list(first), num_returns=1, timeout=seconds)
        if not ready:
            return None
        index = first[ready[0]]
        self._asked[index].popleft()
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
        if isinstance(answer, str):  # it begins
            self._homes[index] = answer
            return None
        self._ask(index)
        return index, answer

    def close(self) -> None:
        """Ends the actors, and the cluster if it was started here; may be called twice."""
        if self._ours:
            ray.shutdown()
            return
        while self._handles:
            ray.kill(self._handles.popitem()[1])

    def _ask(self, index: int) -> None:
        self._asked[index].append(self._handles[index].play.remote(self._version, self._weights))

    def _name(self, index: int) -> str:
        home = self._homes[index]
        return f"actor {index} on {home}" if home else f"actor {index}"


class _Actor:
    """An `ActorWorker` in a process of its own."""

    def begin(self, config: Config, life: int, folder: str) -> str:
        """Makes it; `folder` is where the run was started, and where its modules are."""
        os.environ["JAX_PLATFORMS"] = "cpu"
        os.environ.setdefault("PJRT_NPROC", "1")  # threads of jax: the CPU that Ray has set aside
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
    """Joins a cluster, or starts one of this machine, of at least so many CPUs."""
    _refuse_silence(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Or pages of its own on every death, for which there is no public setting.
    ray._private.worker._worker_logs_enabled = False
    quiet = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": True}
    cpus = max(os.cpu_count() or 1, count)
    where = {"address": address} if address else {"address": "local", "num_cpus": cpus}
    dashboard = {} if address else {"include_dashboard": False}
    where_from = contextlib.nullcontext() if address else on_loopback()
    with where_from, _our_signals(), warnings.catch_warnings():
        # What Ray forks becomes another program at once, which is safe.
        warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
        try:
            ray.init(**where, **dashboard, **quiet)
        except Exception as error:  # of many kinds
            reason = " ".join(str(error).split()).partition(". ")[0]
            raise _no_cluster(address, reason) from error


def _refuse_silence(address: str) -> None:
    """Ray itself tries for minutes."""
    host, colon, port = address.rpartition(":")
    if "://" in address or (colon and not 0 < (files.number(port) or 0) < 2**16):
        raise UserError(
            f"run.ray_address={address}: expected HOST:PORT of the head of a Ray cluster to which "
            "this machine belongs, such as 10.0.0.1:6379"
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
        f"no Ray cluster answers at {address} ({reason}), which run.ray_address or RAY_ADDRESS "
        "names; start it with `ray start --head`, and `ray start --address` on this machine, or "
        "leave it out"
    )


@contextlib.contextmanager
def on_loopback() -> Iterator[None]:
    """Lets a cluster that is started inside of it listen on the loopback address alone, not on all
    interfaces, which is what Ray does where it cannot have other machines."""
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextlib.contextmanager
def _our_signals() -> Iterator[None]:
    """Keeps the handlers of signals, of which Ray sets one that exits."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            with contextlib.suppress(ValueError):  # in another thread Ray has set none either
                signal.signal(number, handler)
