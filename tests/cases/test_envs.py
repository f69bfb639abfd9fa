"""Wrong environments of users: one line, in their terms."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import gymnasium
import numpy as np
import psutil
import pytest

import dreamer
from dreamer.cli import train
from dreamer.envs import __main__ as command
from dreamer.envs.base import FIRST, LAST, MID
from dreamer.envs.faults import Restarts
from dreamer.errors import EnvironmentFault, exit_on_user_error
from tests import tiny_run
from tests.cases import odd_envs

ODD = "tests.cases.odd_envs"
RESET = ["gave no observation and dict of info in its reset, but ", "`return observation, {}`"]
STEP = "gave no observation, reward, terminated, truncated and dict of info in its step, but "
SPACE = "set it, in the class or its __init__, to a space of gymnasium.spaces"
MADE = "which must be a gymnasium.Env, a gymnasium.vector.VectorEnv or a dm_env.Environment; "
WRONG = {  # and the words of its error
    "NeedsLevel": ["NeedsLevel needs the argument level", "'env.kwargs={level: VALUE}'"],
    "itself": [f"itself makes the class Right, {MADE}return Right()"],
    "forgets": [f"forgets makes None, {MADE}it may lack its `return`"],
    "yields": [f"yields makes a generator, {MADE}", "without `yield`"],
    "waits": [f"waits makes a coroutine, {MADE}", "without `yield` and `async`"],
    "a_list": [f"a_list makes a list, {MADE}return the environment alone"],
    "Duck": [f"Duck, {MADE}derive Duck from gymnasium.Env"],
    "Parallel": [f"Parallel, {MADE}environments of PettingZoo have several agents", "wrap it"],
    "VecEnv": [f"VecEnv, {MADE}a VecEnv of Stable-Baselines3", "env.num_envs"],
    "GymEnv": [f"GymEnv, {MADE}environments of the package gym", "gymnasium.Env"],
    "already": ["has no function already, but a tests.cases.odd_envs.Right of that name"],
    "SEEN": ["has no function SEEN, but a numpy.ndarray of that name"],
    "exits_at_once": ["cannot be made: SystemExit (", "odd_envs.py, line"],
    "unprintable_at_once": ["cannot be made: Unprintable (", "odd_envs.py, line"],
    "no_space": ["its observation_space is missing, or None", SPACE],
    "class_as_space": ["its action_space is the class Discrete itself", SPACE],
    "method_as_space": ["its action_space is a function", SPACE],
    "PropertyFails": ["cannot be made: KeyError: 'no actions yet' (", "in action_space)"],
    "sequence": ["observation 'observation' is a Sequence space, which is not supported"],
    "text": ["observation 'say' is a Text space, which is not supported", "wrapper"],
    "one_of": ["is a OneOf space, which is not supported", "wrapper"],
    "nothing": ["the observation space Box([], [], (0,), float32) is empty"],
    "stacked": ["(12, 64, 64)", "channels first", "(height, width, channels)"],
    "gray_stacked": ["(5, 84, 84)", "channels first", "wrapper"],
    "planes": ["(17, 8, 8)", "channels first", "wrapper"],
    "frames": ["(4, 64, 64, 3)", "a stack of images", "into the channels"],
    "ram": ["(10000,) has 2,560,000 classes", "at most 65,536 in all", "float32"],
    "many_keys": ["all observations together, of 2 keys, has 80,000 classes", "at most 65,536"],
    "many_actions": ["'action' of shape (2,) has 70,000 classes", "at most 65,536 in all"],
    "floats": ["(64, 64, 3) and type float32", "uint8 from 0 to 255", "scale"],
    "halves": ["gave NaN or infinity as observation"],
    "Old": [*RESET, "a ndarray alone"],
    "OldDict": [*RESET, "a dict alone"],
    "OldPair": [*RESET, "(int, int)"],
    "NoInfo": [*RESET, "(ndarray, NoneType)"],
    "NoSeed": ["takes no seed in its reset; write `def reset(self, *, seed=None, options=None)`"],
    "Four": [f"step 0: environment 0 {STEP}(ndarray, float, bool, dict)", "truncated, {}`"],
    "Far": ["gave observation with the value 5", "expected -1.0 to 1.0"],
    "strange": ["gave observation as a NoArray, which makes no array: RuntimeError: it is on"],
    "array_as_end": ["gave terminated of shape (1,) and type bool, expected True or False"],
    "text_as_end": ["gave terminated of shape () and type <U2, expected True or False"],
    "none_as_end": ["gave terminated of shape () and type object, expected True or False"],
    "complex_reward": ["gave a reward of shape () and type complex128, expected one number"],
    "object_reward": ["gave a reward of shape () and type object, expected one number"],
    "exits": ["step 0: environment 0 failed in its step with SystemExit (", "odd_envs.py, line"],
    "quits": ["step 0: environment 0 failed in its step with Quit: enough ("],
    "unprintable": ["step 0: environment 0 failed in its step with Unprintable ("],
    "endless_message": [
        "failed in its step with ValueError: no no ",
        " ... (",
        "odd_envs.py, line",
    ],
    "exits_in_close": ["failed in its close with SystemExit (", "odd_envs.py, line"],
    "ExitsInReset": ["environment 0 failed in its reset with SystemExit: 0 ("],
    "text_rewards": ["gave rewards of shape (2,) and type <U1, expected 2 numbers"],
    "no_rewards": ["gave rewards of shape () and type object, expected 2 numbers"],
    "some_rewards": ["gave rewards of shape (2,) and type object, expected 2 numbers"],
    "column_rewards": ["gave rewards of shape (2, 1) and type float64, expected 2 numbers"],
    "text_ends": ["gave terminated of shape (2,) and type <U2, expected True or False for each"],
    "no_info": [*RESET, "(ndarray, NoneType)"],
    "no_metadata": ["metadata has autoreset_mode=None; expected one of AutoresetMode.NEXT_STEP"],
    "no_single_space": ["its single_action_space is missing, or None", SPACE],
}


@pytest.fixture(autouse=True)
def first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe before training is the first environment."""
    monkeypatch.setattr(odd_envs.ExitsInReset, "made", 0)


def checked(capsys: pytest.CaptureFixture, *arguments: str) -> tuple[int, str, str]:
    """The status of the check of an environment and what it prints, in words and as errors."""
    status = exit_on_user_error(lambda: command.main(["check", "gymnasium", *arguments]))
    return status, *capsys.readouterr()


@pytest.mark.parametrize("name", WRONG)
def test_an_error_is_one_line(name: str, capsys: pytest.CaptureFixture) -> None:
    status, _, said = checked(capsys, f"entry_point={ODD}:{name}", "steps=10")
    assert status == 2
    assert said.count("\n") == 1
    assert len(said) < 800
    assert all(words in said for words in WRONG[name]), said
    assert not [word for word in ("restart", "dreamer/", "unpack", "failure") if word in said], said


@pytest.mark.parametrize("name", ["Four", "Old", "NeedsLevel", "forgets", "Parallel", "exits"])
def test_an_id_fails_as_a_function_does(name: str, capsys: pytest.CaptureFixture) -> None:
    """Also inside the time limit of gymnasium."""
    gymnasium.register(f"odd/{name}-v0", f"{ODD}:{name}", max_episode_steps=4)
    status, _, said = checked(capsys, f"odd/{name}-v0", "steps=10")
    assert (status, said.count("\n")) == (2, 1)
    assert all(words in said for words in WRONG[name]), said


@pytest.mark.parametrize("name", ["Right", "ModeWithoutDefault", "SeedAlone", "own_terminal"])
def test_correct_environments_pass(name: str, capsys: pytest.CaptureFixture) -> None:
    status, said, wrong = checked(capsys, f"entry_point={ODD}:{name}", "steps=20")
    assert (status, wrong) == (0, "")
    assert said.endswith("passed\n")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Claims", "has no render that works, although it was made with render_mode=rgb_array"),
        ("ClaimsFloats", "gave the frame float64 (8, 8, 3), expected uint8 (height, width, 3)"),
        ("ExitsInRender", "failed in its render with SystemExit: 0 ("),
        ("Right", "env.pixels=true needs an environment that renders rgb_array frames"),
    ],
)
def test_frames_that_it_does_not_draw(name: str, words: str, capsys: pytest.CaptureFixture) -> None:
    status, _, said = checked(capsys, f"entry_point={ODD}:{name}", "pixels=true")
    assert (status, said.count("\n")) == (2, 1)
    assert words in said
    if name != "Right":
        env = dreamer.make_env("gymnasium", entry_point=f"{ODD}:{name}", render=True)
        env.reset()
        if name != "ClaimsFloats":  # which a video may turn into bytes
            with pytest.raises(EnvironmentFault, match="^environment 0 (has|failed)"):
                env.render()


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable]:
    """Writes modules that can be imported in the test."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield lambda name, text: (tmp_path / f"{name}.py").write_text(text)
    for name in set(sys.modules) - before:
        if name.startswith("wrong_"):
            del sys.modules[name]


@pytest.mark.parametrize("option", ["entry_point=wrong_module:make", "id=wrong_module:Foo-v0"])
@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("x = (", "SyntaxError: '(' was never closed ("),
        ("import sys\nsys.exit(0)", "SystemExit: 0 ("),
        ("import wrong_inner", "ImportError: cannot import name 'nothing' from 'json' ("),
        ("import not_there_at_all", "needs a package that is not installed; No module named 'not"),
        ("raise type('Quit', (BaseException,), {})", "wrong_module cannot be imported: Quit ("),
    ],
)
def test_a_module_that_cannot_be_imported(
    option: str, source: str, words: str, modules: Callable, capsys: pytest.CaptureFixture
) -> None:
    modules("wrong_inner", "from json import nothing")
    modules("wrong_module", source)
    status, _, said = checked(capsys, option)
    assert (status, said.count("\n")) == (2, 1)
    assert words in said
    assert "line 1" in said or "line 2" in said


def test_a_number_in_other_digits(capsys: pytest.CaptureFixture) -> None:
    status, _, said = checked(capsys, "CartPole-v1", "steps=²")
    assert (status, said) == (2, "error: steps=²: must be a whole number of at least 1\n")


# ------------------------------------------------------------------------- faults while it runs


def run_of(name: str, folder: Path) -> list[str]:
    """The options of a tiny run on one of these environments."""
    options = tiny_run.argv(folder, f"env.entry_point={ODD}:{name}", "env.image_size=null")
    return [option for option in options if not option.startswith("env.task=")]


def act(env: dreamer.envs.base.BatchedEnv) -> object:
    return env.step({"action": np.zeros(env.num_envs, np.int32)})


def test_faults_that_differ_by_numbers_and_addresses_are_alike() -> None:
    restarts = Restarts(10)
    restarts.line(0, "gave <object object at 0x7f4c083e1250> in step 3", [])
    with pytest.raises(EnvironmentFault, match="it fails again at once"):
        restarts.line(0, "gave <object object at 0x7fa2bc9e12d0> in step 41", [])


@pytest.mark.parametrize("name", ["exits", "quits", "LeavesItsProcess"])
def test_a_fault_that_repeats_at_once_ends_it_in_workers_too(name: str) -> None:
    env = dreamer.make_env("gymnasium", entry_point=f"{ODD}:{name}", num_envs=1, workers="process")
    env.reset()
    assert act(env).step_type == LAST
    assert act(env).step_type == FIRST
    with pytest.raises(EnvironmentFault, match="; restarting does not help, it fails again at o"):
        act(env)
    assert len(env.restarts) == 1
    env.close()


@pytest.mark.parametrize("name", ["exits_at_once", "exits_in_close", "Old"])
def test_a_run_on_a_wrong_environment_does_not_start(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert exit_on_user_error(lambda: train.main(run_of(name, tmp_path / "run"))) == 2
    said = capsys.readouterr().err
    assert all(words in said for words in WRONG[name])
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow  # compiles the policy
def test_a_run_ends_at_once_with_what_it_has(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = run_of("exits", tmp_path / "run")
    assert exit_on_user_error(lambda: train.main(arguments)) == 2
    *restarted, error = capsys.readouterr().err.splitlines()
    assert [line.partition(" failed in ")[0] for line in restarted] == [
        "warning: environment 0",
        "warning: environment 1",
    ]
    assert error.startswith("error: environment 0 failed in its step with SystemExit (")
    assert "; restarting does not help, it fails again at once; all that was learned " in error
    assert list((tmp_path / "run" / "checkpoints").iterdir())


@pytest.mark.parametrize("name", ["own_terminal", "several_own_terminal"])
def test_an_info_named_is_terminal_has_no_effect(name: str) -> None:
    env = dreamer.make_env("gymnasium", entry_point=f"{ODD}:{name}", num_envs=2)
    env.reset()
    steps = [act(env) for _ in range(7)]
    assert [step.step_type[0] for step in steps] == [MID] * 6 + [LAST]
    assert all((step.discount == 1).all() for step in steps)


@pytest.mark.parametrize("name", ["large", "large_rewards"])
def test_rewards_beyond_what_is_learned_are_warned_of_once(
    name: str, capsys: pytest.CaptureFixture
) -> None:
    for _ in range(2):  # as for training and for its evaluation
        env = dreamer.make_env("gymnasium", entry_point=f"{ODD}:{name}", num_envs=2)
        env.reset()
        for _ in range(3):
            assert act(env).reward.tolist() == [2.0**60] * 2
    said = capsys.readouterr().err
    assert said.startswith(f"warning: {ODD}:{name} gives rewards beyond 4.85e+08, ")
    assert said.count("\n") == 1


def test_a_part_without_elements_is_left_out_with_a_warning(capsys: pytest.CaptureFixture) -> None:
    env = dreamer.make_env("gymnasium", entry_point=f"{ODD}:part_empty")
    assert list(env.observation_spec()) == ["y"]
    said = capsys.readouterr().err
    assert said.startswith(f"warning: {ODD}:part_empty observes 'x' of shape (0,): it has no elem")
    assert said.count("\n") == 1


@pytest.mark.slow  # the second signal counts only after two seconds
@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("name", ["hang", "Hangs"])
def test_no_process_outlives_a_run_that_is_ended_while_one_hangs(
    name: str, stop: signal.Signals, tmp_path: Path
) -> None:
    hung = tmp_path / "hung"
    arguments = run_of(name, tmp_path / "run")
    arguments += ["env.workers=process"] if name == "Hangs" else []
    command = [sys.executable, "-m", "dreamer.train", *arguments]
    run = subprocess.Popen(
        command, env={**os.environ, "HUNG": str(hung)}, stderr=subprocess.DEVNULL
    )
    try:
        _until(hung.exists, 60)
        children = psutil.Process(run.pid).children(recursive=True)
        assert len(children) >= 2
        run.send_signal(stop)
        time.sleep(2.5)
        run.send_signal(stop)
        assert run.wait(20) == 128 + stop
        _, alive = psutil.wait_procs(children, 10)
        assert not alive
    finally:
        run.kill()


def _until(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)
