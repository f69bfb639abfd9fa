"""Learning from recorded episodes, alone or before acting."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from dreamer.datasets import initial, recorded
from dreamer.envs import registry
from dreamer.errors import UserError
from dreamer.training.device_loop import DeviceLoop
from dreamer.training.offline_loop import OfflineLoop
from dreamer.training.trainer import Trainer
from tests import recordings, tiny_run
from tests.training import test_device_loop

LENGTHS = [5, 8, 4, 7, 6, 8, 5, 7]  # 50 rows
OFFLINE = ("run.offline=true", "run.steps=60")
# The first learns enough to see it; the second shares its compiled program with other tests.
WHERE = {
    "host": ("replay.where=host", "agent.optimizer.learning_rate=1e-2"),
    "device": ("replay.where=device",),
}


@pytest.fixture(scope="module")
def episodes(tmp_path_factory: Any) -> Path:
    return recordings.folder(tmp_path_factory.mktemp("recorded") / "episodes", LENGTHS)


def final(folder: Path, *changes: str) -> dict[str, Any]:
    """Runs to the end; everything that influences how it would continue."""
    with Trainer(tiny_run.config(folder, *changes)) as trainer:
        trainer.run()
        loop = trainer.loop
        arrays, counters = loop.get_arrays()[0], loop.get_counters()
        return {"train": jax.device_get(loop.learner.state), "arrays": arrays, "counters": counters}


@contextmanager
def offline_loop(*changes: str) -> Iterator[OfflineLoop]:
    config = tiny_run.config(Path("unused"), *changes)
    loop = OfflineLoop(config, jax.devices()[:1])
    loop.start(initial.choose(config, loop.agent, loop.learner.params))
    yield loop
    loop.close()


@pytest.fixture(scope="module")
def whole(episodes: Path, tmp_path_factory: Any) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Offline runs without a stop, by where their replay is stored: folder and final state."""
    runs = {}
    for where, options in WHERE.items():
        folder = tmp_path_factory.mktemp(where)
        runs[where] = folder, final(folder, f"replay.load={episodes}", *OFFLINE, *options)
    return runs


@pytest.mark.parametrize("where", ["host", "device"])
def test_a_stopped_run_resumes_exactly(
    where: str, whole: dict[str, Any], tmp_path: Path, episodes: Path
) -> None:
    """Even if the episodes are gone: they are in the checkpoint."""
    moved = tmp_path / "episodes"
    changes = (f"replay.load={episodes}", *OFFLINE, *WHERE[where])
    final(tmp_path / "run", *changes, "run.steps=14")
    episodes.rename(moved)
    try:
        again = final(tmp_path / "run", *changes)
    finally:
        moved.rename(episodes)
    tiny_run.assert_same(again, whole[where][1])
    assert again["train"].updates == 60
    assert again["counters"]["loaded"] == 50


def test_the_world_model_learns_and_its_latents_are_refreshed(whole: dict[str, Any]) -> None:
    folder, state = whole["host"]
    found = tiny_run.losses(tiny_run.lines(folder))
    assert [line["step"] for line in found] == [line["updates"] for line in found]
    model = [line["loss/reward"] + line["loss/observation/observation"] for line in found]
    assert np.mean(model[-9:]) < 0.8 * np.mean(model[:9])
    latents = state["arrays"]["replay"]["rings"]["latent"]["deter"][:, :25]
    assert not latents[:, 0].any()  # a row that nothing precedes is not trained
    assert (np.abs(latents[:, 1:]).max(-1) > 0).all()


def test_no_environment_is_stepped(episodes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    make = registry.make
    monkeypatch.setattr(registry, "make", lambda *a, **k: made.append(make(*a, **k)) or made[-1])
    with offline_loop(f"replay.load={episodes}", *OFFLINE) as loop:
        loop.advance(2**63)
    assert [env._last for env in made] == [None, None]  # made for their spaces, never reset


def test_evaluations_step_environments(episodes: Path, tmp_path: Path) -> None:
    watching = ("eval.every=10", "eval.episodes=2", "eval.num_envs=2", "run.steps=20")
    final(tmp_path, f"replay.load={episodes}", *OFFLINE, *watching)
    evaluated = [line["step"] for line in tiny_run.lines(tmp_path) if "eval/mean" in line]
    assert evaluated == [10, 20]


def test_the_replay_holds_every_row_where_it_belongs(episodes: Path) -> None:
    changes = (f"replay.load={episodes}", *OFFLINE)
    rows = {"observation": [], "reward": [], "is_first": [], "is_last": [], "is_terminal": []}
    for number, length in enumerate(LENGTHS):
        episode = recordings.episode(length, number, number % 2 == 0)
        for name, parts in rows.items():
            parts.append(episode.get(name, episode["observation.observation"]))
    for options in (changes, (*changes, "replay.where=device")):
        with offline_loop(*options) as loop:
            saved = loop.get_arrays()[0]["replay"]
        for name, parts in rows.items():
            ring = saved["rings"][name]
            ring = ring["observation"] if name == "observation" else ring
            stored = ring[:, :25].reshape(50, *ring.shape[2:])
            np.testing.assert_array_equal(stored, np.concatenate(parts), strict=True)
        assert not saved["rings"]["latent"]["deter"].any()
        assert saved["counters"]["steps"].tolist() == [25]


def test_an_acting_run_learns_from_recorded_steps_at_once(episodes: Path, tmp_path: Path) -> None:
    """50 steps are enough for updates; the first iteration only starts the count of updates owed. A
    resumed run counts them too."""
    changes = (f"replay.load={episodes}", "replay.capacity=80", "run.steps=20")
    state = tiny_run.train(tmp_path / "whole", *changes)
    first = tiny_run.losses(tiny_run.lines(tmp_path / "whole"))[0]
    assert (first["step"], first["updates"]) == (10, 2)
    counters = state["arrays"]["replay"]["counters"]
    assert counters["steps"].tolist() == [35]
    # Of 25 recorded rows each no window is in the queue; of the new ones, that of the first five
    # was there at the last update, at step 18.
    assert counters["served"].tolist() == [2 * 5 + 2]
    tiny_run.train(tmp_path / "stopped", *changes, "run.steps=6")
    tiny_run.assert_same(tiny_run.train(tmp_path / "stopped", *changes), state)


def test_the_device_loop_starts_from_them_too(tmp_path: Path) -> None:
    lengths = [20, 30, 10]
    folder = tmp_path / "episodes"
    folder.mkdir()
    for number, rows in enumerate(lengths):
        episode = recordings.episode(rows, number)
        seen = np.random.default_rng(number).normal(size=(rows, 4)).astype(np.float32)
        action = episode["action.action"] % 2
        changed = {"observation.observation": seen, "action.action": action}
        recorded.save(folder, number, episode | changed)
    config = test_device_loop.config(f"replay.load={folder}")
    loop = DeviceLoop(config, jax.devices()[:1])
    loop.start(initial.choose(config, loop.agent, loop.learner.params))
    assert loop.next_call(2**63).cycles > 0
    assert loop.learner.sequences(2, (0, 1)) is not None
    assert loop.get_counters()["loaded"] == 60
    saved = test_device_loop.stored(loop)
    assert saved["counters"]["steps"].tolist() == [15]
    stored = saved["rings"]["reward"][:, :15].reshape(-1)
    rewards = [recordings.episode(rows, number)["reward"] for number, rows in enumerate(lengths)]
    np.testing.assert_array_equal(stored, np.concatenate(rewards))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("replay.load=",), "run.offline=true learns from recorded episodes alone; name them with"),
        (("run.loop=device",), "run.loop=device is for runs that act, which run.offline=true"),
        (("run.seeds=2",), "run.seeds=2 is for runs that act"),
        (("run.policy_device=cpu",), "run.policy_device=cpu is for runs that act"),
        (("run.policy_lag=1",), "run.policy_lag=1 is for runs that act"),
        (
            ("replay.capacity=40",),
            "has 50 steps, more than replay.capacity=40; raise it to at least 50",
        ),
        (
            ("replay.batch_length=25", "replay.batch_size=1", "replay.capacity=80"),
            r"has 50 steps, too few for .* replay.batch_length \+ 1 = 26 .* env.num_envs=2",
        ),
        (("replay.load=/nowhere",), r"/nowhere holds no saved episodes"),
        (
            ("replay.load=~no-such-user/x",),
            r"replay.load=~no-such-user/x: .* write the folder's full path",
        ),
        (
            ("env.task=CartPole-v1",),
            r"000000.npz does not fit the environment CartPole-v1: a row of observation.obs\w+ is",
        ),
        (("run.init_modules=[rssm]",), r"run.init_modules=\[rssm\] come from another run; name it"),
    ],
)
def test_invalid_options_fail_before_a_folder_is_made(
    options: tuple[str, ...], message: str, episodes: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        Trainer(tiny_run.config(tmp_path / "run", f"replay.load={episodes}", *OFFLINE, *options))
    assert not (tmp_path / "run").exists()


def test_a_run_stays_of_its_kind(episodes: Path, tmp_path: Path) -> None:
    offline = (f"replay.load={episodes}", *OFFLINE, "run.steps=2")
    final(tmp_path, *offline)
    changes = ("run.offline=false", "run.accept_changes=true")
    with pytest.raises(
        UserError, match=r"of an offline run, .*run.offline=false; start another ru"
    ):
        Trainer(tiny_run.config(tmp_path, *offline, *changes))


def test_a_run_ahead_of_the_device_is_held_back(episodes: Path) -> None:
    with offline_loop(f"replay.load={episodes}", *OFFLINE, "replay.where=device") as loop:
        for number in range(1, 4):
            loop.advance(2**63)
            assert int(loop._dispatched) == number == loop.step
