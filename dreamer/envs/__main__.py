"""Lists suites and their tasks, checks an environment, measures its speed.

python -m dreamer.envs                                 suites, a task of each, what is installed
python -m dreamer.envs SUITE                           the tasks of one
python -m dreamer.envs check SUITE TASK [KEY=VALUE]    tests the contract of an environment
python -m dreamer.envs speed SUITE TASK [KEY=VALUE]    its steps per second with random actions

SUITE is what follows env= when training, and KEY=VALUE a key of env, such as repeat=2. Two keys are
of these commands: steps, and num_envs for the environments that step together. An environment of
your own needs no TASK:

python -m dreamer.envs check gymnasium entry_point=my_module:make
"""

import sys
import time
from importlib import metadata
from typing import Any

import numpy as np
import yaml

from dreamer.cli import command, compose, groups, usage
from dreamer.envs import registry
from dreamer.envs.base import random_action
from dreamer.envs.check import CheckError, check_all
from dreamer.errors import UserError, nearest
from dreamer.system import files

NEEDS = {"car_racing": ("box2d", "pip install 'dreamer[box2d]'")}  # packages beside the suite's
DEFAULTS = {  # of the commands
    "check": {"steps": "300", "num_envs": "2"},
    "speed": {"steps": "500", "num_envs": "1"},
}


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status; the caller handles UserError."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv:
        print(table())
    elif usage.answered(argv, lambda: str(__doc__)):
        pass
    elif argv[0] in DEFAULTS:
        _run(*argv)
    elif len(argv) == 1:
        print("\n".join(registry.tasks(_group(argv[0])["suite"])))
    else:
        raise UserError(f"{' '.join(argv)}: expected check, speed, or one suite alone; see --help")
    return 0


def table() -> str:
    """A line per suite: its name, an example of a task, and the installed version."""
    rows = [("env=", "for example env.task=", "installed")]
    for name in groups.choices("env"):
        section = _group(name)
        suite = registry.SUITES[section["suite"]]
        package, install = NEEDS.get(name, (suite.package, suite.install))
        try:
            installed = f"{package} {metadata.version(package)}"
        except metadata.PackageNotFoundError:
            installed = f"no: {install}"
        rows.append((name, section["task"], installed))
    wide = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "\n".join(f"{a:<{wide[0]}}  {b:<{wide[1]}}  {c}" for a, b, c in rows)


def _run(command: str, *words: str) -> None:
    """Runs check or speed."""
    names = [word for word in words if "=" not in word]
    pairs = dict(word.removeprefix("env.").split("=", 1) for word in words if "=" in word)
    given = DEFAULTS[command] | pairs
    own = bool(given.keys() & {"entry_point", "id"})
    if own and not names:
        names = ["gymnasium"]
    if len(names) != (1 if own else 2):
        raise UserError(
            f"write python -m dreamer.envs {command} SUITE TASK [KEY=VALUE ...], or for "
            "both entry_point=MODULE:FUNCTION"
        )
    suite, *task = names
    _group(suite)
    steps, num_envs = (_number(key, given.pop(key)) for key in ("steps", "num_envs"))
    options = [*(f"env.task={one}" for one in task), *(f"env.{k}={v}" for k, v in given.items())]
    config = compose.compose([f"env={suite}", *options]).env
    name = f"{suite} {config.name}"

    def make(**changes: Any) -> Any:
        return registry.make(config.model_copy(update=changes), num_envs, seed=0)

    if command == "speed":
        print(f"{name}: {speed(make(), steps):,.0f} steps/s with {num_envs} together")
        return
    try:
        endings = check_all(make, steps)
    except CheckError as error:
        raise UserError(f"{name}: {error}") from error
    print(report(make(), endings, steps))


def report(env: Any, endings: Any, steps: int) -> str:
    """Describes the checks that an environment passed."""
    lines = []
    for what, spec in (("observation", env.observation_spec()), ("action", env.action_spec())):
        leaves = ", ".join(f"{key} {leaf.dtype} {leaf.shape}" for key, leaf in spec.items())
        lines.append(f"{what:11} {leaves}")
    env.close()
    ended = f"{endings.terminated} terminated, {endings.truncated} truncated"
    resumed = " and after a resume" if endings.repeats else "; a resume starts new episodes"
    lines += [
        f"spaces      {steps} steps of {env.num_envs} environments within their specs, finite",
        f"episodes    first, last and terminal right; ended: {ended}",
        f"seeds       the same seed repeats, in another environment{resumed}",
    ]
    if endings.limited:
        lines.append("time limit  truncates, and does not terminate")
    if not endings.terminated + endings.truncated:
        lines.append("note        no episode ended by itself: take more steps, as in steps=2000")
    return "\n".join([*lines, "passed"])


def speed(env: Any, steps: int) -> float:
    """Steps per second over all environments, with random actions, after some untimed steps."""
    rng = np.random.default_rng(0)
    time_step, start = env.reset(), 0.0
    for number in range(-max(2, steps // 20), steps):
        if number == 0:
            start = time.perf_counter()
        spec = env.action_spec()
        time_step = env.step(random_action(spec, env.num_envs, rng, time_step.observation))
    seconds = time.perf_counter() - start
    env.close()
    return float(steps * env.num_envs / seconds)


def _group(name: str) -> dict[str, Any]:
    """The section env of a group's file.

    Raises:
      UserError: There is no such group.
    """
    choices = groups.choices("env")
    if name not in choices:
        raise UserError(f"{name} is no suite{nearest(name, choices)}; it is {', '.join(choices)}")
    text = (groups.config_dir() / "env" / f"{name}.yaml").read_text(encoding="utf-8")
    section: dict[str, Any] = yaml.safe_load(text)["env"]
    return section


def _number(key: str, text: str) -> int:
    number = files.number(text.replace("_", ""))
    if not number:
        raise UserError(f"{key}={text}: must be a whole number of at least 1")
    return number


if __name__ == "__main__":
    command.run(main, announced=False)
