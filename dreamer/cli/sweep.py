"""Several runs by one command: `python -m dreamer.train --multirun seed=0,1,2 env.task=a,b`.

Every combination is a job, a process of its own with a run folder of its own. Hydra's launchers run
the jobs: on this machine one after the other, on Ray or on SLURM.
"""

import contextlib
import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from hydra import initialize
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Transformer
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from dreamer.cli import compose
from dreamer.config.explain import first_line
from dreamer.errors import INTERRUPTED, UserError, describe
from dreamer.system.signals import StopRequest

FLAGS = {"--multirun", "-m"}
# Keys from which `compose` makes the name of a run folder.
NAMED = ("env", "env.task", "env.id", "env.entry_point", "size", "agent", "experiment", "seed")
# Launchers log what is printed here; incremental keeps the handlers of other loggers open.
QUIET = (
    *("hydra/hydra_logging=disabled", "+hydra.hydra_logging.incremental=true"),
    *("hydra/job_logging=disabled", "+hydra.job_logging.incremental=true"),
    "hydra.output_subdir=null",
)
FOLDER = "runs/multirun/${now:%Y-%m-%d}/${now:%H-%M-%S}"  # of Ray's and SLURM's launchers
# The launcher sets a size of Ray's memory, which is not allowed when joining a cluster.
RAY = tuple(
    f"+hydra.launcher.ray.init.{option}"
    for option in ("object_store_memory=null", "log_to_driver=false", "logging_level=error")
)
EXTRAS = {"ray": "ray", "submitit_slurm": "slurm", "submitit_local": "slurm"}  # by launcher
# Options of Hydra without effect here: composing refuses them with advice.
EXPLAINED = (
    *("hydra.run.", "hydra.searchpath", "hydra.job.chdir", "hydra.output_subdir", "hydra.mode"),
    *("hydra/sweeper", "hydra.sweeper"),
)
LOCAL = "basic"  # the launcher that runs one job after the other in this process
POLL = 0.2  # seconds between checks of a job and of signals
# SLURM warns a launcher of its time limit by SIGUSR2; the launcher then ends the job by SIGTERM.
IGNORING_SIGUSR2 = ("sh", "-c", 'trap "" USR2; exec "$@"', "sh")


@dataclass(frozen=True)
class Job:
    """One run: the options that vary, all of them, and its folder."""

    varied: tuple[str, ...]
    argv: tuple[str, ...]
    folder: str

    def __str__(self) -> str:
        return " ".join(self.varied) or "the only one"


class Result(NamedTuple):
    """How a job ended: its exit status, None if it never started, and its last line of output."""

    status: int | None
    last: str = ""


def sweep(argv: Sequence[str], stop: StopRequest) -> int:
    """Runs all jobs; returns 0 when none failed.

    Args:
      argv: options, of which some have several values, and those of Hydra for its launcher.
      stop: of the whole command.

    Raises:
      UserError: before any job starts: an option that a job does not allow, jobs that share a
        folder, or a launcher that is not installed.
    """
    given = [argument for argument in argv if argument not in FLAGS]
    jobs = plan([argument for argument in given if not _is_hydras(argument)])
    stop.begin()
    for number, job in enumerate(jobs):
        print(f"job {number}: {job}: in {job.folder}", flush=True)
    results = _launch(jobs, [argument for argument in given if _is_hydras(argument)], stop)
    return _report(jobs, results, stop.requested)


def plan(argv: Sequence[str]) -> list[Job]:
    """The jobs of all combinations, each of them composed and allowed.

    Raises:
      UserError: one is not allowed, or two share a folder.
    """
    choices = [_values(argument) for argument in argv]
    jobs: list[Job] = []
    for combination in itertools.product(*choices):
        config = compose.compose(combination)
        if config.checkpoint.dir and jobs:
            raise UserError(
                f"checkpoint.dir={config.checkpoint.dir} is one folder for several runs; leave it "
                "out, each run has its own"
            )
        varied = itertools.compress(combination, [len(values) > 1 for values in choices])
        jobs.append(Job(tuple(varied), combination, config.run.dir))
    if len({job.folder for job in jobs}) < len(jobs):
        jobs = [_with_folder(job) for job in jobs]
    for one, other in itertools.combinations(jobs, 2):
        if one.folder == other.folder:
            raise UserError(f"two jobs are the same: {one}; give each value once")
    return jobs


@dataclass
class Task:
    """Runs the job of a number in a process of its own; launchers call it, here or on another
    machine.

    Args:
      jobs: by number.
      stop: of the whole command, for jobs on this machine: ends the running job and starts no
        other. None for other launchers, whose jobs write to `output.txt` of the launcher's folder.
    """

    jobs: Sequence[Job]
    stop: StopRequest | None
    folder: str = field(default_factory=os.getcwd)

    def __call__(self, config: Any) -> Result:
        command = (sys.executable, "-m", "dreamer.train", *self.jobs[config.job].argv)
        if self.stop and self.stop.requested:
            return Result(None)
        try:
            if self.stop:  # Ctrl-C does not reach a new session; it is passed on once
                return Result(self._run(command, start_new_session=True))
            output = Path(HydraConfig.get().runtime.output_dir) / "output.txt"
            with output.open("w", encoding="utf-8") as file:
                command = (*IGNORING_SIGUSR2, *command)
                status = self._run(command, stdout=file, stderr=subprocess.STDOUT)
            lines = output.read_text(encoding="utf-8", errors="replace").splitlines()
            return Result(status, f"{lines[-1] if lines else 'no output'}; see {output}")
        except Exception as error:  # Hydra would drop the results of all other jobs
            return Result(1, describe(error))

    def _run(self, command: Sequence[str], **options: Any) -> int:
        """Runs a job, which saves after SIGTERM; returns its exit status."""
        terminated = False
        with subprocess.Popen(command, cwd=self.folder, **options) as process:
            try:
                while process.poll() is None:
                    if self.stop and self.stop.requested and not terminated:
                        terminated = True
                        process.terminate()
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(POLL)
            except BaseException:  # a second Ctrl-C, or a launcher that ends this process
                # A second SIGTERM may count as the first, see `StopRequest`.
                (process.kill if terminated else process.terminate)()
                raise
        return process.returncode


def _is_hydras(argument: str) -> bool:
    name = argument.lstrip("+~")
    return name.startswith(("hydra.", "hydra/")) and not name.startswith(EXPLAINED)


def _values(argument: str) -> list[str]:
    """The options that an argument combines, itself if it has one value."""
    with contextlib.suppress(HydraException):  # composing explains it, or reads it as text
        override = OverridesParser.create().parse_override(argument)
        if override.is_sweep_override() and not override.is_discrete_sweep():
            raise UserError(
                f"{argument}: cannot be swept; write values as in seed=0,1,2 or seed=range(0,3)"
            )
        if override.is_sweep_override():
            plain = override.sweep_iterator(transformer=Transformer.identity)
            written = override.sweep_string_iterator()  # with escapes that text does not need here
            return [
                f"{override.get_key_element()}={value if isinstance(value, str) else text}"
                for value, text in zip(plain, written, strict=True)
            ]
    return [argument]


def _with_folder(job: Job) -> Job:
    """The job in a folder named after the values that vary."""
    others = [option for option in job.argv if not option.startswith("run.dir=")]
    unnamed = [
        option.replace("/", "-")
        for option in job.varied
        if len(others) < len(job.argv) or option.partition("=")[0] not in NAMED
    ]
    folder = "-".join([job.folder, *unnamed])
    return replace(job, argv=(*others, f"run.dir={folder}"), folder=folder)


def _launch(jobs: Sequence[Job], options: Sequence[str], stop: StopRequest) -> list[Result]:
    chosen = [option.partition("=")[2] for option in options if "hydra/launcher=" in option]
    name = chosen[-1] if chosen else LOCAL
    ConfigStore.instance().store(name="sweep", node={"job": 0})
    numbers = ",".join(str(number) for number in range(len(jobs)))
    try:
        with (
            initialize(config_path=None, version_base="1.3", job_name="dreamer"),
            tempfile.TemporaryDirectory() as temporary,
            _loopback_alone(name, options),
        ):
            folder = temporary if name == LOCAL else FOLDER
            preset = [*QUIET, *(RAY if name == "ray" else ()), f"hydra.sweep.dir={folder}"]
            hydra = GlobalHydra.instance().hydra
            assert hydra is not None
            (batch,) = hydra.multirun(
                config_name="sweep",
                task_function=Task(jobs, stop if name == LOCAL else None),
                overrides=[*preset, *options, f"job={numbers}"],
                with_log_configuration=False,
            )
            return [job.return_value for job in batch]
    except (HydraException, OmegaConfBaseException) as error:
        missing = name in EXTRAS and f"Could not find 'hydra/launcher/{name}'" in str(error)
        extra = f"; pip install 'dreamer[{EXTRAS[name]}]'" if missing else ""
        raise UserError(f"{' '.join(options)}: {first_line(error)}{extra}") from error
    except Exception as error:  # of a launcher: no scheduler, no cluster, a lost job
        raise UserError(
            f"hydra/launcher={name} failed with {type(error).__name__}: {first_line(error)}"
        ) from error


def _loopback_alone(launcher: str, options: Sequence[str]) -> AbstractContextManager[None]:
    """Keeps a cluster that the launcher starts itself on the loopback interface."""
    joins = any(".ray.init.address=" in option for option in options)
    if launcher == "ray" and not joins and "RAY_ADDRESS" not in os.environ:
        with contextlib.suppress(ImportError):  # Hydra says what is missing
            from dreamer.rollout.ray_actors import on_loopback

            return on_loopback()
    return contextlib.nullcontext()


def _report(jobs: Sequence[Job], results: Sequence[Result], stopped: bool) -> int:
    """Prints how each job ended; returns the exit status of the command."""
    for number, (job, result) in enumerate(zip(jobs, results, strict=True)):
        state = "done or stopped" if stopped else "done"
        if result.status is None:
            state = "not started"
        elif result.status:
            state = f"failed with status {result.status}"
        last = f": {result.last}" if result.status and result.last else ""
        stream = sys.stderr if result.status else sys.stdout
        print(f"job {number}: {job}: {state}, in {job.folder}{last}", file=stream, flush=True)
    if stopped:
        print("stopped, the same command resumes")
    failed = [result.status for result in results if result.status]
    return INTERRUPTED if INTERRUPTED in failed else int(bool(failed))
