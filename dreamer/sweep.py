"""Many runs by one command: `python -m dreamer.train --multirun seed=0,1,2 env.task=a,b`.

Every combination is a job, a process of its own with a run folder of its own. Hydra's launchers say
where: on this machine one after the other, on Ray or on SLURM.
"""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from hydra import initialize
from hydra._internal.callbacks import Callbacks
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Transformer
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import HydraContext, RunMode
from omegaconf.errors import OmegaConfBaseException

from dreamer import compose
from dreamer.errors import INTERRUPTED, UserError
from dreamer.explain import first_line
from dreamer.run.signals import StopRequest

FLAGS = ("--multirun", "-m")
# Keys of which `compose` makes the name of a run folder.
NAMED = ("env", "env.task", "env.id", "env.entry_point", "size", "agent", "experiment", "seed")
# What launchers log is told here or of no use; incremental leaves the handlers of others open.
QUIET = (
    *("hydra/hydra_logging=disabled", "+hydra.hydra_logging.incremental=true"),
    *("hydra/job_logging=disabled", "+hydra.job_logging.incremental=true"),
    "hydra.output_subdir=null",
)
FOLDER = "runs/multirun/${now:%Y-%m-%d}/${now:%H-%M-%S}"  # where launchers of other machines write
# The launcher gives Ray a size of memory, which one that joins a cluster must not.
RAY = tuple(
    f"+hydra.launcher.ray.init.{option}"
    for option in ("object_store_memory=null", "log_to_driver=false", "logging_level=error")
)
EXTRAS = {"ray": "ray", "submitit_slurm": "slurm", "submitit_local": "slurm"}  # by launcher
# Options of Hydra that change nothing here: composing says what to write instead.
EXPLAINED = (
    *("hydra.run.", "hydra.searchpath", "hydra.job.chdir", "hydra.output_subdir", "hydra.mode"),
    *("hydra/sweeper", "hydra.sweeper"),
)
LOCAL = "basic"  # the launcher that runs one after the other in this process
POLL = 0.2  # seconds between looks at a job and at signals


@dataclass(frozen=True)
class Job:
    """One run: the options that vary, all of them, and its folder."""

    varied: tuple[str, ...]
    argv: tuple[str, ...]
    folder: str

    def __str__(self) -> str:
        return " ".join(self.varied) or "the only one"


class Result(NamedTuple):
    """How a job ended: its exit status, None where it was not begun, and what it said last."""

    status: int | None
    last: str = ""


def wanted(argv: Sequence[str]) -> bool:
    """Whether the arguments ask for several runs."""
    return any(flag in argv for flag in FLAGS)


def sweep(argv: Sequence[str], stop: StopRequest) -> int:
    """Runs all jobs; gives 0 when none failed.

    Args:
      argv: options, of which some have several values, and those of Hydra for its launcher.
      stop: of the whole command.

    Raises:
      UserError: an option that a job does not allow, jobs that share a folder, or a launcher that
        is not there; nothing was begun then.
    """
    given = [argument for argument in argv if argument not in FLAGS]
    ours = [argument for argument in given if not _is_hydras(argument)]
    jobs = plan(ours)
    stop.begin()
    for number, job in enumerate(jobs):
        print(f"job {number}: {job}: in {job.folder}", flush=True)
    results = _launch(jobs, [argument for argument in given if _is_hydras(argument)], stop)
    return _report(jobs, results, stop.requested)


def plan(argv: Sequence[str]) -> list[Job]:
    """The jobs of all combinations, each of which was composed and is allowed.

    Raises:
      UserError: one is not, or two share a folder.
    """
    choices = [_values(argument) for argument in argv]
    several = [len(values) > 1 for values in choices]
    jobs: list[Job] = []
    for combination in itertools.product(*choices):
        varied = tuple(itertools.compress(combination, several))
        config = compose.compose(list(combination))
        if config.checkpoint.dir and len(jobs) == 1:
            raise UserError(
                f"checkpoint.dir={config.checkpoint.dir} is one folder for several runs; leave it "
                "out, each run has its own"
            )
        jobs.append(Job(varied, combination, config.run.dir))
    if len({job.folder for job in jobs}) < len(jobs):
        jobs = [_with_folder(job) for job in jobs]
    for one, other in itertools.combinations(jobs, 2):
        if one.folder == other.folder:
            raise UserError(f"two jobs are the same: {one}; give each value once")
    return jobs


class Task:
    """What a launcher calls for each job, here or on another machine: it runs in a process of its
    own, so that whatever happens to it happens to it alone.

    Args:
      jobs: by number.
      stop: where it runs in this process: asked whether to end jobs and to begin no others. Without
        it, what a job says goes into `output.txt` of the launcher's folder of the job.
    """

    def __init__(self, jobs: Sequence[Job], stop: StopRequest | None) -> None:
        self._jobs, self._stop = jobs, stop
        self._folder = os.getcwd()

    def __call__(self, config: Any) -> Result:
        job = self._jobs[config.job]
        if self._stop and self._stop.requested:
            return Result(None)
        command = [sys.executable, "-m", "dreamer.train", *job.argv]
        if self._stop:
            # Out of the reach of Ctrl-C, which is passed on once.
            with subprocess.Popen(command, cwd=self._folder, start_new_session=True) as process:
                return Result(self._wait(process))
        from hydra.core.hydra_config import HydraConfig

        output = Path(HydraConfig.get().runtime.output_dir) / "output.txt"
        with output.open("w", encoding="utf-8") as file, _ignored_by_children("SIGUSR2"):
            process = subprocess.Popen(
                command, cwd=self._folder, stdout=file, stderr=subprocess.STDOUT
            )
        with process:
            status = self._wait(process)
        lines = output.read_text(encoding="utf-8", errors="replace").splitlines()
        return Result(status, f"{lines[-1] if lines else 'no output'}; see {output}")

    def _wait(self, process: subprocess.Popen) -> int:
        """Waits for the end of a job, which saves first when it is asked to end."""
        told = False
        try:
            while process.poll() is None:
                if self._stop and self._stop.requested and not told:
                    told = True
                    process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(POLL)
        except BaseException:  # a second Ctrl-C, or a launcher that ends this process
            if told:
                process.kill()  # another SIGTERM may pass as the first, see `StopRequest`
            else:
                process.terminate()
            raise
        return process.returncode


def _is_hydras(argument: str) -> bool:
    name = argument.lstrip("+~")
    return name.startswith(("hydra.", "hydra/")) and not name.startswith(EXPLAINED)


def _values(argument: str) -> list[str]:
    """The options that an argument stands for, itself if it has one value."""
    try:
        override = OverridesParser.create().parse_override(argument)
    except HydraException:
        return [argument]  # which composing explains, or reads as text
    if not override.is_sweep_override():
        return [argument]
    if not override.is_discrete_sweep():
        raise UserError(
            f"{argument}: cannot be swept; write values as in seed=0,1,2 or seed=range(0,3)"
        )
    plain = override.sweep_iterator(transformer=Transformer.identity)
    written = override.sweep_string_iterator()  # which escapes what needs no escape here
    return [
        f"{override.get_key_element()}={value if isinstance(value, str) else text}"
        for value, text in zip(plain, written, strict=True)
    ]


def _with_folder(job: Job) -> Job:
    """The job in a folder whose name tells what varies."""
    others = [option for option in job.argv if not option.startswith("run.dir=")]
    given = len(others) < len(job.argv)
    told = [option for option in job.varied if given or option.partition("=")[0] not in NAMED]
    folder = "-".join([job.folder, *(option.replace("/", "-") for option in told)])
    return replace(job, argv=(*others, f"run.dir={folder}"), folder=folder)


def _launch(jobs: Sequence[Job], options: Sequence[str], stop: StopRequest) -> list[Result]:
    chosen = [option for option in options if option.startswith("hydra/launcher=")]
    name = chosen[-1].partition("=")[2] if chosen else LOCAL
    task = Task(jobs, stop if name == LOCAL else None)
    ConfigStore.instance().store(name="sweep", node={"job": 0})
    preset = [*QUIET, *(RAY if name == "ray" else ())]
    try:
        with (
            initialize(config_path=None, version_base="1.3", job_name="dreamer"),
            tempfile.TemporaryDirectory() as nowhere,
        ):
            preset.append(f"hydra.sweep.dir={nowhere if name == LOCAL else FOLDER}")
            hydra = GlobalHydra.instance().hydra
            assert hydra is not None
            config = hydra.compose_config("sweep", [*preset, *options], RunMode.MULTIRUN)
            context = HydraContext(hydra.config_loader, Callbacks(config))
            launcher = Plugins.instance().instantiate_launcher(
                hydra_context=context, task_function=task, config=config
            )
            with _alone(name, options):
                returned = launcher.launch([[f"job={number}"] for number in range(len(jobs))], 0)
    except UserError:
        raise
    except (HydraException, OmegaConfBaseException) as error:
        missing = name in EXTRAS and f"Could not find 'hydra/launcher/{name}'" in str(error)
        extra = f"; pip install 'dreamer[{EXTRAS[name]}]'" if missing else ""
        raise UserError(f"{' '.join(options)}: {first_line(error)}{extra}") from error
    except Exception as error:  # of a launcher: no scheduler, no cluster, a job that it lost
        raise UserError(
            f"hydra/launcher={name} failed with {type(error).__name__}: {first_line(error)}"
        ) from error
    return [_result(job) for job in returned]


def _alone(launcher: str, options: Sequence[str]) -> AbstractContextManager[None]:
    """Keeps a cluster that the launcher starts itself from listening to other machines."""
    joins = any(".ray.init.address=" in option for option in options)
    if launcher != "ray" or joins or "RAY_ADDRESS" in os.environ:
        return contextlib.nullcontext()
    from dreamer.run.ray_actors import on_loopback

    return on_loopback()


def _result(returned: Any) -> Result:
    try:
        result: Result = returned.return_value
    except Exception as error:
        return Result(1, f"{type(error).__name__}: {first_line(error)}")
    return result


def _report(jobs: Sequence[Job], results: Sequence[Result], stopped: bool) -> int:
    """Says how each job ended; the exit status of them all."""
    for number, (job, result) in enumerate(zip(jobs, results, strict=True)):
        state = f"failed with status {result.status}" if result.status else "done"
        if result.status is None:
            state = "not begun"
        elif stopped and not result.status:
            state = "done or stopped"
        last = f": {result.last}" if result.last and result.status else ""
        stream = sys.stderr if result.status else sys.stdout
        print(f"job {number}: {job}: {state}, in {job.folder}{last}", file=stream, flush=True)
    if stopped:
        print("stopped, the same command resumes")
    failed = [result.status for result in results if result.status]
    return INTERRUPTED if INTERRUPTED in failed else int(bool(failed))


@contextlib.contextmanager
def _ignored_by_children(name: str) -> Iterator[None]:
    """Lets processes that are started here ignore a signal, by which SLURM tells a launcher that
    the time is nearly over; it ends them by SIGTERM then."""
    number = getattr(signal, name, None)
    if number is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(number, before)
