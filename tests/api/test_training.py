"""Training from a program: arguments, callbacks, and how callbacks stop it."""

import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import dreamer
from dreamer.checkpoint import manager
from dreamer.errors import UserError
from tests import tiny_run
from tests.training.test_device_loop import config as device_config

EVERY = ("checkpoint.every_steps=20", "run.steps=44")


class Notes(dreamer.Callback):
    """Records all calls."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.updates: list[int] = []
        self.episodes: list[tuple[float, int]] = []
        self.checkpoints: list[int] = []

    def on_step(self, run: Any) -> None:
        self.steps.append(run.step)

    def on_update(self, run: Any) -> None:
        self.updates.append(run.updates)

    def on_episode(self, run: Any, score: float, length: int) -> None:
        self.episodes.append((score, length))

    def on_checkpoint(self, run: Any, path: Path) -> None:
        assert dreamer.load(path).step == run.step  # is complete
        self.checkpoints.append(run.step)


def logged(folder: Path) -> list[tuple[float, int]]:
    return [
        (line["episode/return"], line["episode/length"])
        for line in tiny_run.lines(folder)
        if "episode/return" in line
    ]


@pytest.fixture(scope="module")
def host(tmp_path_factory: Any) -> tuple[Path, Notes, Any]:
    folder, notes = tmp_path_factory.mktemp("host") / "run", Notes()
    agent = dreamer.train(tiny_run.argv(folder, *EVERY), callbacks=[notes])
    return folder, notes, agent


def test_callbacks_of_the_host_loop(host: tuple[Path, Notes, Any]) -> None:
    folder, notes, agent = host
    assert agent.step == 44
    assert notes.steps == list(range(2, 45, 2))
    assert notes.updates == [1, 2, 3, 4, 5]
    assert notes.checkpoints == [20, 40, 44]
    assert notes.episodes == logged(folder)
    assert len(notes.episodes) >= 6


def test_options_may_be_a_mapping_or_a_configuration(host: tuple[Path, Notes, Any]) -> None:
    """Of the complete run, which is then loaded only."""
    folder, _, agent = host
    given = dict(option.split("=", 1) for option in tiny_run.argv(folder, *EVERY))
    changed = given | {"env.image_size": (16, 16), "log.tensorboard": False, "run.steps": 44}
    for options in (changed, tiny_run.config(folder, *EVERY)):
        found = dreamer.train(options)
        np.testing.assert_array_equal(
            found.params["actor"]["params"]["logits_action"]["kernel"],
            agent.params["actor"]["params"]["logits_action"]["kernel"],
        )
    with pytest.raises(UserError, match="run.stepps=3: no such key"):
        dreamer.train({"run.stepps": 3})
    with pytest.raises(UserError, match="'seed' is not an option"):
        dreamer.train("seed")
    for nothing in (3, None, [3]):
        with pytest.raises(UserError, match="^options: expected a list of texts KEY=VALUE, a map"):
            dreamer.train(nothing)


@pytest.mark.parametrize("given", [[print], dreamer.Callback(), [dreamer.Callback], None])
def test_what_is_no_callback_is_refused_before_the_run_begins(given: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="^callbacks: expected a list of objects of dreamer.Call"):
        dreamer.train(tiny_run.argv(tmp_path / "run"), callbacks=given)
    assert list(tmp_path.iterdir()) == []


class Until(dreamer.Callback):
    """Requests a stop at a step."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_step(self, run: Any) -> None:
        if run.step >= self._step:
            run.request_stop()


def test_a_callback_may_stop_and_the_same_call_resumes(
    host: tuple[Path, Notes, Any], tmp_path: Path
) -> None:
    options = tiny_run.argv(tmp_path / "run", *EVERY)
    assert dreamer.train(options, callbacks=[Until(30)]).step == 30
    agent = dreamer.train(options)
    assert agent.step == 44
    tiny_run.assert_same(dict(agent.params), dict(host[2].params))


class Failing(Notes):
    """Fails in one hook, after which no hook is called."""

    def __init__(self, hook: str) -> None:
        super().__init__()
        self._hook = hook
        self.called_after = False
        setattr(self, hook, self._fail)

    def _fail(self, run: Any, *arguments: Any) -> None:
        self.called_after |= hasattr(self, "step")
        if run.step >= 22:
            self.step = run.step
            raise KeyError("a mistake")


@pytest.mark.parametrize("hook", ["on_step", "on_episode", "on_checkpoint"])
def test_an_exception_saves_first_and_goes_on_to_the_caller(hook: str, tmp_path: Path) -> None:
    options, failing = tiny_run.argv(tmp_path / "run", *EVERY), Failing(hook)
    with pytest.raises(KeyError, match="a mistake"):
        dreamer.train(options, callbacks=[failing])
    saved = dreamer.load(tmp_path / "run").step
    assert saved == failing.step
    assert 22 <= saved <= 40
    assert not failing.called_after


def test_the_agent_in_a_callback_is_not_changed_by_training_on(tmp_path: Path) -> None:
    class Keep(dreamer.Callback):
        agents: list[Any] = []

        def on_update(self, run: Any) -> None:
            self.agents.append(dreamer.TrainedAgent.of(run))
            places = [
                {x.unsafe_buffer_pointer() for x in jax.tree.leaves(params)}
                for params in (run.loop.learner.params, self.agents[-1].params)
            ]
            assert not places[0] & places[1]  # an update takes the memory of weights before it

    options = tiny_run.argv(tmp_path / "run", *EVERY, "checkpoint.every_steps=32")
    checkpoints = "checkpoint.keep=9"
    dreamer.train([*options, checkpoints], callbacks=[Keep()])
    kept = {agent.step: agent for agent in Keep.agents}
    assert list(kept) == [28, 32, 36, 40, 44]
    expected = dreamer.load(tmp_path / "run" / "checkpoints" / "32")
    tiny_run.assert_same(dict(kept[32].params), dict(expected.params))


def test_from_another_thread_and_with_a_signal(tmp_path: Path) -> None:
    found: list[int] = []
    options = tiny_run.argv(tmp_path / "run", "run.steps=4")
    thread = threading.Thread(target=lambda: found.append(dreamer.train(options).step))
    thread.start()
    thread.join()
    assert found == [4]

    class Interrupt(dreamer.Callback):
        def on_step(self, run: Any) -> None:
            if run.step == 6:
                signal.raise_signal(signal.SIGTERM)

    options = tiny_run.argv(tmp_path / "run", "run.steps=8")
    assert dreamer.train(options, callbacks=[Interrupt()]).step == 6
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_the_name_of_the_command_is_the_function() -> None:
    """Also when somebody has tried to import the module."""
    code = (
        "import dreamer, sys; assert 'jax' not in sys.modules\n"
        "try: import dreamer.train\nexcept ImportError as error: print(error)\n"
        "from dreamer import train; assert dreamer.train is train; print(train.__module__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    message, module = done.stdout.splitlines()
    assert message.startswith("dreamer.train is the command python -m dreamer.train; programs call")
    assert module == "dreamer.api.training"


@pytest.mark.slow
def test_what_the_device_loop_tells(tmp_path: Path) -> None:
    """Of runs computed together: each of its own calls, all of which stop when one requests it."""
    pytest.importorskip("gymnax")
    notes_of: dict[int, Notes] = {}

    class Sorted(dreamer.Callback):
        def on_step(self, run: Any) -> None:
            notes_of.setdefault(run.config.seed, Notes()).on_step(run)
            if run.config.seed == 3 and run.step >= 92:
                run.request_stop()

        def on_update(self, run: Any) -> None:
            notes_of[run.config.seed].on_update(run)

        def on_episode(self, run: Any, score: float, length: int) -> None:
            notes_of[run.config.seed].on_episode(run, score, length)

    config = device_config("run.steps=200", "seed=3", "run.seeds=2", folder=tmp_path / "run")
    agent = dreamer.train(config, callbacks=[Sorted()])
    assert agent.config.seed == 3
    assert agent.step == 92
    for seed in (3, 4):
        folder = Path(f"{tmp_path / 'run'}-seed{seed}")
        notes = notes_of[seed]
        assert notes.steps[-1] == 92
        assert len(notes.steps) < 20  # calls of several steps
        assert notes.updates == sorted(set(notes.updates))
        assert notes.episodes == logged(folder)
        assert manager.newest(folder / "checkpoints") == 92


def test_an_exception_saves_all_runs_that_are_computed_together(tmp_path: Path) -> None:
    pytest.importorskip("gymnax")

    class Second(dreamer.Callback):
        def on_step(self, run: Any) -> None:
            if run.config.seed == 4:
                raise KeyError("a mistake")

    config = device_config("run.steps=200", "seed=3", "run.seeds=2", folder=tmp_path / "run")
    with pytest.raises(KeyError):
        dreamer.train(config, callbacks=[Second()])
    steps = [dreamer.load(f"{tmp_path / 'run'}-seed{seed}").step for seed in (3, 4)]
    assert steps[0] == steps[1] > 0
