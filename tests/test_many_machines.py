"""The page on remote actors and sweeps is right: valid commands, real output."""

import re
import shlex
from pathlib import Path

from dreamer.cli import compose, sweep
from dreamer.rollout import actor

PAGE = (Path(__file__).parent.parent / "docs" / "many_machines.md").read_text(encoding="utf-8")


def commands() -> list[list[str]]:
    """Arguments of every command that trains."""
    found = re.findall(r"python -m dreamer\.train (.*)$", PAGE, re.MULTILINE)
    assert len(found) == 5
    return [shlex.split(command) for command in found]


def test_the_commands_are_allowed() -> None:
    for argv in commands():
        if not sweep.FLAGS & set(argv):
            config = compose.compose(argv)
            assert config.run.actors == "ray"
            assert config.env.num_envs == 2 * config.run.num_actors
            continue
        options = [each for each in argv if each not in sweep.FLAGS and "hydra" not in each]
        jobs = sweep.plan(options)
        assert len(jobs) == (6 if "env=atari100k" in argv else 3)


def test_what_it_names_is_so() -> None:
    (job, _) = sweep.plan(["agent.units=64,128"])
    assert f"`{job.folder}`" in PAGE
    assert f"chunks of up to {actor.STEPS} steps" in PAGE
    jobs = sweep.plan(["seed=0,1"])
    assert f"job 0: {jobs[0]}: done, in {jobs[0].folder}\n" in PAGE
    assert f"job 1: {jobs[1]}: failed with status 2, in {jobs[1].folder}\n" in PAGE
    for name, extra in sweep.EXTRAS.items():
        if name != "submitit_local":
            assert f"`hydra/launcher={name}` | `pip install 'dreamer[{extra}]'`" in PAGE
