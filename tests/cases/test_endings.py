"""Whatever ends a run saves it first; what is only for looking at never ends one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import gymnasium
import jax
import numpy as np
import pytest
from gymnasium import spaces

import dreamer
from dreamer.cli import eval as evaluation
from dreamer.cli import train
from dreamer.errors import UserError, exit_on_user_error
from tests import probe_envs, tiny_run

EVERY = ("checkpoint.every_steps=20", "run.steps=44", "log.progress=plain")


class Strange(BaseException):
    """What nobody catches by `except Exception`."""


class Failing(dreamer.Callback):
    """Does something in one hook from step 22 on, and notes calls after that."""

    def __init__(self, hook: str, deed: Callable[[Any], None]) -> None:
        self.step, self.later = 0, 0
        self._hook, self._deed = hook, deed

    def _called(self, hook: str, run: Any) -> None:
        self.later += self.step > 0
        if hook == self._hook and run.step >= 22:
            self.step = run.step
            self._deed(run)

    def on_step(self, run: Any) -> None:
        self._called("on_step", run)

    def on_update(self, run: Any) -> None:
        self._called("on_update", run)

    def on_episode(self, run: Any, score: float, length: int) -> None:
        self._called("on_episode", run)

    def on_checkpoint(self, run: Any, path: Path) -> None:
        self._called("on_checkpoint", run)


def raising(error: BaseException) -> Callable[[Any], None]:
    def deed(run: Any) -> None:
        raise error

    return deed


@pytest.mark.parametrize(
    ("hook", "error"),
    [
        ("on_step", SystemExit(3)),
        ("on_step", StopIteration("a mistake")),
        pytest.param("on_update", KeyboardInterrupt(), marks=pytest.mark.slow),
        ("on_episode", MemoryError()),
        pytest.param("on_checkpoint", SystemExit(0), marks=pytest.mark.slow),
        pytest.param("on_checkpoint", GeneratorExit(), marks=pytest.mark.slow),
        ("on_episode", Strange("a mistake")),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else value,
)
def test_a_callback_may_raise_anything(
    hook: str, error: BaseException, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It gets to the caller as it is, when the run is saved and that is said."""
    failing = Failing(hook, raising(error))
    with pytest.raises(type(error)) as caught:
        dreamer.train(tiny_run.argv(tmp_path / "run", *EVERY), callbacks=[failing])
    assert caught.value is error
    assert dreamer.load(tmp_path / "run").step == failing.step >= 22
    assert failing.later == 0
    said = f"until step {failing.step} is saved in {tmp_path}/run, and the same command resumes\n"
    assert f"training ended with {type(error).__name__}" in (err := capsys.readouterr().err)
    assert err.endswith(said)
    assert err.count("\n") == 1


def test_a_callback_that_raises_while_the_end_is_saved_loses_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first cause counts, and callbacks are silent from there on."""

    class Twice(dreamer.Callback):
        def on_step(self, run: Any) -> None:
            if run.step == 22:
                advance_raises(RuntimeError("a bug"))(run)

        def on_checkpoint(self, run: Any, path: Path) -> None:
            raise SystemExit(3)

    options = [*tiny_run.argv(tmp_path / "run", *EVERY), "checkpoint.every_steps=0"]
    options = list({option.partition("=")[0]: option for option in options}.values())
    with pytest.raises(RuntimeError, match="a bug"):
        dreamer.train(options, [Twice()])
    assert dreamer.load(tmp_path / "run").step == 22
    assert "until step 22 is saved in" in capsys.readouterr().err


def advance_raises(error: BaseException) -> Callable[[Any], None]:
    def deed(run: Any) -> None:
        run.loop.advance = lambda until: raising(error)(run)

    return deed


@pytest.mark.slow
def test_an_unexpected_error_of_the_loop(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    callback = Failing("on_step", advance_raises(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        dreamer.train(tiny_run.argv(tmp_path / "run", *EVERY), callbacks=[callback])
    assert dreamer.load(tmp_path / "run").step == 22
    assert "training ended with RuntimeError: a bug; all that was" in capsys.readouterr().err
    assert dreamer.train(tiny_run.argv(tmp_path / "run", *EVERY)).step == 44


def test_an_exit_that_no_callback_asks_for_is_a_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    callback = Failing("on_step", advance_raises(SystemExit(0)))
    options = tiny_run.argv(tmp_path / "run", *EVERY)
    assert exit_on_user_error(lambda: dreamer.train(options, [callback]) and 0) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: sys.exit(0) was called while the run trained, by no callback; ")
    assert err.endswith(f"step 22 is saved in {tmp_path}/run, and the same command resumes\n")
    assert dreamer.load(tmp_path / "run").step == 22


class Leaving(probe_envs.Walk):
    """The walk, which raises what no environment should after so many steps."""

    left = 0

    def step(self, action: Any) -> Any:
        Leaving.left -= 1
        if Leaving.left == 0:
            raise Strange("enough")
        return super().step(action)


gymnasium.register("probe/Leaving-v0", entry_point=Leaving)


@pytest.mark.slow
def test_an_environment_may_raise_anything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Leaving.left = 27
    task = "env.task=tests.cases.test_endings:probe/Leaving-v0"
    options = tiny_run.argv(tmp_path / "run", *EVERY, task)
    assert train.main(options) == 0
    assert "failed in its step with Strange: enough" in capsys.readouterr().err
    assert dreamer.load(tmp_path / "run").step == 44


@pytest.mark.slow
def test_what_a_failed_update_took_is_counted_as_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def deed(run: Any) -> None:
        for array in jax.tree.leaves(run.loop.learner.state):
            array.delete()
        raise RuntimeError("the device is lost")

    options = tiny_run.argv(tmp_path / "run", *EVERY)
    with pytest.raises(RuntimeError, match="the device is lost"):
        dreamer.train(options, [Failing("on_step", deed)])
    assert dreamer.load(tmp_path / "run").step == 20
    err = capsys.readouterr().err
    assert "step 22 cannot be saved (RuntimeError: Array has been deleted" in err
    assert f"is of step 20 in {tmp_path}/run, 2 steps after it are lost, and the same" in err
    assert dreamer.train(options).step == 44


def test_a_save_that_fails_does_not_hide_the_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def deed(run: Any) -> None:
        run.path.parent.rename(tmp_path / "elsewhere")
        run.path.parent.write_text("")
        raise KeyError("a mistake")

    with pytest.raises(KeyError, match="a mistake"):
        dreamer.train(tiny_run.argv(tmp_path / "a" / "run", *EVERY), [Failing("on_step", deed)])
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("training ended with KeyError: 'a mistake'; cannot save a checkpoint in")
    assert f"nothing is saved in {tmp_path}/a/run" in last


def test_a_second_ctrl_c_ends_at_once(tmp_path: Path) -> None:
    def deed(run: Any) -> None:
        run.request_stop()  # as the first does
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dreamer.train(tiny_run.argv(tmp_path / "run", *EVERY), [Failing("on_step", deed)])
    assert dreamer.load(tmp_path / "run").step == 20


# ------------------------------------------------------------------------------- only to look at


class Shown(probe_envs.Walk):
    """The walk, whose frames have the form that is set."""

    metadata = {"render_modes": ["rgb_array"]}
    render_mode = "rgb_array"
    forms: list[Callable[[int], Any]] = []  # of the next frames; the last stays

    def __init__(self, render_mode: str | None = None) -> None:
        self._frames = 0

    def render(self) -> Any:
        self._frames += 1
        return Shown.forms[min(self._frames, len(Shown.forms)) - 1](self._frames)


gymnasium.register("probe/Shown-v0", entry_point=Shown)
SHOWN = "tests.cases.test_endings:probe/Shown-v0"
FULL = np.full((20, 30, 3), 51, np.uint8)
TALL = np.full((24, 30, 3), 51, np.uint8)
FORMS: dict[str, Any] = {
    "uint8": FULL,
    "float in [0, 1]": FULL / np.float32(255),
    "float64 in [0, 1]": FULL / 255,
    "float to 255": FULL.astype(np.float32),
    "int64": FULL.astype(np.int64),
    "gray": FULL[..., 0],
    "gray with an axis": FULL[..., :1],
    "gray float": FULL[..., 0] / 255,
    "RGBA": np.concatenate([FULL, np.zeros((20, 30, 1), np.uint8)], -1),
    "gray with transparency": FULL[..., :2],
    "channels first": np.moveaxis(FULL, -1, 0),
    "several": [FULL * 0, FULL],
    "an array of several": np.stack([FULL * 0, FULL]),
    "lists": FULL.tolist(),
    "not contiguous": FULL[::-1, ::-1],
}


def frame_of(form: Any) -> np.ndarray | None:
    Shown.forms = [lambda _: form]
    env = dreamer.make_env("gymnasium", SHOWN, num_envs=2, render=True)
    try:
        env.reset()
        return env.render()
    finally:
        env.close()


@pytest.mark.parametrize("form", FORMS)
def test_a_frame_of_any_form_is_shown(form: str) -> None:
    np.testing.assert_array_equal(frame_of(FORMS[form]), np.stack([FULL, FULL]), strict=True)


def test_numbers_that_no_picture_has() -> None:
    wild = np.array([[np.nan, np.inf, -np.inf, 0.2]])
    frames = frame_of(wild)
    assert frames is not None
    assert frames[0, 0, :, 0].tolist() == [0, 255, 0, 51]
    frames = frame_of(np.array([[True, False]]))
    assert frames is not None
    assert frames[0, 0, :, 2].tolist() == [255, 0]
    frames = frame_of(np.array([[-5, 300, 2**40, 7]]))
    assert frames is not None
    assert frames[0, 0, :, 1].tolist() == [0, 255, 255, 7]
    for nothing in (None, [], np.zeros((0, 0, 3), np.uint8), [None]):
        assert frame_of(nothing) is None


@pytest.mark.parametrize("form", ["a text", np.zeros(5), np.zeros((2, 2), complex), [[1], [1, 2]]])
def test_what_is_no_picture_is_named(form: Any) -> None:
    with pytest.raises(UserError, match="^environment 0 "):
        frame_of(form)


class Crowd(gymnasium.vector.VectorEnv):
    """Two environments at once, which render as they like."""

    metadata = {"autoreset_mode": gymnasium.vector.AutoresetMode.NEXT_STEP}
    num_envs = 2
    render_mode = "rgb_array"
    single_observation_space = spaces.Box(-1, 1, (3,), np.float32)
    observation_space = spaces.Box(-1, 1, (2, 3), np.float32)
    single_action_space = spaces.Discrete(2)
    action_space = spaces.MultiDiscrete([2, 2])
    rendered: Any = None

    def __init__(self, num_envs: int = 2, render_mode: str | None = None) -> None: ...

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return np.zeros((2, 3), np.float32), {}

    def render(self) -> Any:
        return Crowd.rendered


@pytest.mark.parametrize(
    ("rendered", "shape"),
    [
        ((FULL, TALL), (2, 24, 30, 3)),
        ([FULL / 255, FULL / 255], (2, 20, 30, 3)),
        (np.stack([FULL[..., 0], FULL[..., 0]]), (2, 20, 30, 3)),
        (FULL, (1, 20, 30, 3)),
    ],
)
def test_several_environments_at_once(rendered: Any, shape: tuple[int, ...]) -> None:
    Crowd.rendered = rendered
    made = dreamer.make_env(
        "gymnasium", entry_point="tests.cases.test_endings:Crowd", num_envs=2, render=True
    )
    made.reset()
    frames = made.render()
    assert frames is not None
    assert (frames.shape, frames.dtype) == (shape, np.uint8)
    assert set(np.unique(frames)) <= {0, 51}
    for nothing in (None, (None, FULL)):
        Crowd.rendered = nothing
        assert made.render() is None
    made.close()


def video(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


FILMED = (f"env.task={SHOWN}", "run.steps=44", "log.video_every=20", "log.progress=none")


@pytest.mark.slow
def test_frames_that_change_size_and_are_missing_now_and_then(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Shown.forms = [lambda n: None if n % 3 == 0 else np.full((10 + n, 20), 0.2), lambda n: FULL]
    Shown.forms = [Shown.forms[0]] * 3 + [Shown.forms[1]]
    assert train.main(tiny_run.argv(tmp_path / "run", *FILMED)) == 0
    assert capsys.readouterr().err == ""
    names = sorted(file.name for file in (tmp_path / "run" / "videos").iterdir())
    assert names == ["episode-20.mp4", "episode-40.mp4"]
    frames = video(tmp_path / "run" / "videos" / "episode-20.mp4")
    assert {frame.shape for frame in frames} == {(20, 30, 3)}
    assert np.abs(frames[0][:10, :19].astype(int) - 51).max() < 12


@pytest.mark.slow
def test_no_video_is_a_line_and_training_continues(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As often as it is due: first no picture, then a library that fails."""
    Shown.forms = [lambda n: "a text"]

    def on_step(run: Any) -> None:
        if run.step == 30:
            Shown.forms = [lambda n: FULL]
            monkeypatch.setattr(av, "open", lambda *_, **__: raising(RuntimeError("codec"))(0))

    class Change(dreamer.Callback):
        def on_step(self, run: Any) -> None:
            on_step(run)

    options = tiny_run.argv(tmp_path / "run", *FILMED, "log.tensorboard=true")
    assert dreamer.train(options, [Change()]).step == 44
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("warning: no video of step 20: environment 0 rendered shape ()")
    assert second.startswith("warning: no video of step 40: RuntimeError: codec")


@pytest.mark.slow
def test_an_evaluation_that_fails_is_a_line_and_training_continues(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Though the environments of training are fine."""
    probe_envs.Fragile.steps_left = -1

    class Break(dreamer.Callback):
        def on_step(self, run: Any) -> None:
            probe_envs.Fragile.steps_left = 1 if run.step == 20 else -1

    changes = (probe_envs.task("Fragile"), "eval.every=20", "eval.episodes=1", "env.restarts=0")
    options = tiny_run.argv(tmp_path / "run", *EVERY, *changes)
    assert dreamer.train(options, [Break()]).step == 44
    out, err = capsys.readouterr()
    assert err.startswith("warning: no evaluation at step 20: environment 0 failed in its step")
    assert err.count("\n") == 1
    assert [f"evaluation at step {step}:" in out for step in (20, 40, 44)] == [False, True, True]


@pytest.mark.slow
def test_a_last_evaluation_that_fails_leaves_a_run_that_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Break(dreamer.Callback):
        def on_step(self, run: Any) -> None:
            probe_envs.Fragile.steps_left = 1 if run.step == 6 else -1

    changes = (probe_envs.task("Fragile"), "eval.every=40", "eval.episodes=1", "env.restarts=0")
    options = tiny_run.argv(tmp_path / "run", *EVERY, *changes, "run.steps=6")
    assert dreamer.train(options, [Break()]).step == 6
    assert (
        "done, but not evaluated; the same command evaluates again: st" in capsys.readouterr().out
    )
    probe_envs.Fragile.steps_left = -1
    assert dreamer.train(options).step == 6
    assert "\ndone: step 6, " in capsys.readouterr().out


@pytest.mark.slow
def test_metrics_and_a_display_that_fail_end_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Spoil(dreamer.Callback):
        def on_step(self, run: Any) -> None:
            if run.step == 10:
                run.logging.logger.write = raising_any("no tracker")
                for name in ("update", "print", "episode", "close"):
                    setattr(run.console.progress, name, raising_any("no terminal"))

    def raising_any(text: str) -> Any:
        return lambda *_: raising(ValueError(text))(0)

    assert dreamer.train(tiny_run.argv(tmp_path / "run", *EVERY), [Spoil()]).step == 44
    assert sorted(capsys.readouterr().err.splitlines()) == [
        "warning: cannot write metrics: ValueError: no tracker",
        "warning: the display fails: ValueError: no terminal",
    ]


def test_an_evaluation_by_command_gives_its_results_without_a_video(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert train.main(tiny_run.argv(run, f"env.task={SHOWN}", "run.steps=2")) == 0

    def play(out: str) -> int:
        options = [f"run={run}", f"out={tmp_path / out}", "video=true", "platform=cpu"]
        return exit_on_user_error(lambda: evaluation.main([*options, "episodes=2", "num_envs=2"]))

    Shown.forms = [lambda n: np.full((20, 30), n / 255)]
    assert play("good.json") == 0
    frames = video(tmp_path / "good.mp4")
    assert np.abs(frames[2].astype(int) - 3).max() < 6
    Shown.forms = [lambda n: FULL, lambda n: "a text"]
    assert play("bad.json") == 2
    err = capsys.readouterr().err
    assert err.startswith("error: no video of the first episode: environment 0 rendered shape ()")
    assert err.endswith(f"the results are written to {tmp_path}/bad.json\n")
    assert (tmp_path / "bad.json").exists()
    assert not (tmp_path / "bad.mp4").exists()
