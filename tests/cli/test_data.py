"""`python -m dreamer.data`: episodes that are played, converted and described."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dreamer.cli.data import main
from dreamer.config import trust
from dreamer.config.env import GymnasiumEnv
from dreamer.datasets import collect, recorded, sources
from dreamer.envs import registry
from dreamer.errors import EnvironmentFault, UserError
from dreamer.rollout.policy import RandomPolicy
from tests import probe_envs, tiny_run

WALK = probe_envs.task("Walk")
MASKED = "env.entry_point=tests.probe_envs:Masked"


def episodes_of(folder: Path) -> list[recorded.Episode]:
    spaces = sources.spaces_of(sources.env_of(str(folder), "source"))
    return list(sources.open_recording(str(folder), "source", spaces).read())


def test_rows_are_aligned(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The walk's first number is its reward, and changes by the action less one."""
    folder = tmp_path / "new" / "walk"
    assert main(["collect", f"out={folder}", WALK, "episodes=5", "num_envs=2"]) == 0
    out = capsys.readouterr().out
    assert "episodes  5 of " in out
    assert f"saved in {folder}; train on them with replay.load={folder}" in out
    found = episodes_of(folder)
    assert len(found) == 5
    assert len({len(episode["reward"]) for episode in found}) > 1
    assert {bool(episode["is_terminal"][-1]) for episode in found} == {False, True}
    actions = np.concatenate([episode["action.action"][:-1] for episode in found])
    assert set(actions.tolist()) == {0, 1, 2}
    for episode in found:
        place, action = episode["observation.observation"][:, 0], episode["action.action"]
        np.testing.assert_allclose(np.diff(place), action[:-1] - 1, atol=1e-5)
        np.testing.assert_array_equal(episode["reward"], np.concatenate([[0], place[1:]]))
        assert action[-1] == 0
        steps = len(place) - 1
        assert episode["is_first"].tolist() == [True] + [False] * steps
        assert episode["is_last"].tolist() == [False] * steps + [True]
        assert not episode["is_terminal"][:-1].any()


def test_failures_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """And its episode is truncated."""
    probe_envs.Fragile.steps_left = 2
    options = ("episodes=2", "num_envs=1")
    main(["collect", f"out={tmp_path / 'walk'}", probe_envs.task("Fragile"), *options])
    line, *_ = capsys.readouterr().out.splitlines()
    assert line.startswith("environment 0 failed in its step with RuntimeError: out of order")
    broken, _ = episodes_of(tmp_path / "walk")
    assert broken["is_last"].tolist() == [False, False, True]
    assert not broken["is_terminal"].any()


def test_every_environment_plays_its_share() -> None:
    """Episodes of environment i have 2 + 7 i steps."""
    config = GymnasiumEnv(task="tests.probe_envs:probe/Uneven-v0")
    env = registry.make(trust.allow(config), 3, probe_envs.SEED)
    player = RandomPolicy(3, env.action_spec(), 0)
    found = list(collect.whole_episodes(player, None, env, 4, 0))
    env.close()
    assert sorted(len(episode["reward"]) - 1 for episode in found) == [2, 2, 9, 16]


def test_the_agent_of_a_run_plays(tmp_path: Path, tmp_path_factory: Any) -> None:
    run, _ = tiny_run.finished(tmp_path_factory)
    for name in ("one", "two"):
        main(["collect", f"out={tmp_path / name}", f"run={run}", "episodes=2", "num_envs=2"])
    ours, again = episodes_of(tmp_path / "one"), episodes_of(tmp_path / "two")
    assert len(ours) == 2
    tiny_run.assert_same(ours, again)


def test_random_actions_follow_masks(tmp_path: Path) -> None:
    folder = tmp_path / "masked"
    main(["collect", f"out={folder}", MASKED, "episodes=4", "num_envs=2"])
    for episode in episodes_of(folder):
        mask, action = episode["observation.action_mask"], episode["action.action"]
        assert mask[np.arange(len(action) - 1), action[:-1]].all()
        assert not mask.all(-1).any()


def test_an_environment_that_fails_leaves_no_folder(tmp_path: Path) -> None:
    argv = ["collect", probe_envs.task("Broken"), "env.restarts=0", "episodes=2"]
    with pytest.raises(EnvironmentFault):
        main([*argv, f"out={tmp_path / 'new'}"])
    assert list(tmp_path.iterdir()) == []


def test_an_entry_point_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    main(["collect", f"out={tmp_path / 'masked'}", MASKED])
    main(["info", f"source={tmp_path / 'masked'}"])
    assert f"{tmp_path / 'masked'}, tests.probe_envs:Masked\n" in capsys.readouterr().out
    with pytest.raises(UserError, match="not fit the environment tests.probe_envs:Steered: a row"):
        main(["info", f"source={tmp_path / 'masked'}", "env.entry_point=tests.probe_envs:Steered"])
    minari = pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    main(["to_minari", f"source={tmp_path / 'masked'}", "dataset=masked-v0"])
    assert minari.load_dataset("masked-v0").env_spec is None


@pytest.fixture(scope="module")
def steered(tmp_path_factory: Any) -> Path:
    """A run with continuous actions, of so few steps that nothing is learned."""
    folder = tmp_path_factory.mktemp("steered") / "run"
    tiny_run.train(folder, probe_envs.task("Steered"), "run.steps=12")
    return folder


def test_what_a_policy_draws_beyond_the_bounds_is_kept(steered: Path, tmp_path: Path) -> None:
    """In a replay and in folders; a dataset has what the environment made of it."""
    folder = tmp_path / "played"
    main(["collect", f"out={folder}", f"run={steered}", "episodes=4"])
    spaces = sources.spaces_of(sources.env_of(str(steered), "source"))
    both = [str(steered), str(folder)]
    if importlib.util.find_spec("minari"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
            main(["to_minari", f"source={folder}", "dataset=played-v0"])
            found = sources.open_recording("minari:played-v0", "source", spaces)
            clipped = [episode["action.action"] for episode in found.read()]
        for ours, theirs in zip(clipped, episodes_of(folder), strict=True):
            np.testing.assert_allclose(ours, np.clip(theirs["action.action"], -1, 1), atol=1e-6)
    for source in both:
        episodes = sources.open_recording(source, "source", spaces).read()
        assert np.abs(np.concatenate([episode["action.action"] for episode in episodes])).max() > 1
        assert main(["info", f"source={source}"]) == 0


def test_a_dataset_is_made_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    folder = tmp_path / "steered"
    main(["collect", f"out={folder}", probe_envs.task("Steered"), "episodes=3"])
    main(["to_minari", f"source={folder}", "dataset=steered-v0"])
    assert "train on them with replay.load=minari:steered-v0" in capsys.readouterr().out
    env = sources.env_of(str(folder), "source")
    found = sources.open_recording("minari:steered-v0", "source", sources.spaces_of(env))
    for ours, theirs in zip(found.read(), episodes_of(folder), strict=True):
        for name, value in theirs.items():
            np.testing.assert_allclose(ours[name], value, atol=1e-6)
    main(["info", "source=minari:steered-v0"])
    shown = capsys.readouterr().out
    assert "action.action: float32 [2]" in shown
    with pytest.raises(UserError, match="source=minari:steered-v0 is a Minari dataset already"):
        main(["to_minari", "source=minari:steered-v0", "dataset=x-v0"])


def test_info_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    main(["collect", f"out={tmp_path / 'walk'}", WALK, "episodes=2"])
    capsys.readouterr()
    assert main(["info", f"source={tmp_path / 'walk'}"]) == 0
    shown = capsys.readouterr().out.splitlines()
    found = episodes_of(tmp_path / "walk")
    returns = [episode["reward"].sum() for episode in found]
    assert f"   source  {tmp_path / 'walk'}, tests.probe_envs:probe/Walk-v0" in shown
    assert f"    steps  {sum(len(episode['reward']) - 1 for episode in found)}" in shown
    assert f"  returns  {min(returns):.6g} to {max(returns):.6g}" in "\n".join(shown)
    assert shown[-2:] == [
        "           observation.observation: float32 [3]",
        "           action.action: int32 [] of 3 classes",
    ]


def test_info_of_a_replay(tmp_path_factory: Any, capsys: pytest.CaptureFixture) -> None:
    run, _ = tiny_run.finished(tmp_path_factory)
    main(["info", f"source={run}"])
    assert f"the replay of {run}, tests.probe_envs:probe/Drawn-v0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["colect"],
            "colect: expected one of collect, to_minari, info; did you mean collect?",
        ),
        (["collect", "out=x"], "needs an agent or an environment; add run=FOLDER, or env="),
        (["collect", "out=x", "run=y", WALK], "y is not a folder"),
        (["collect", "out=tests", WALK], "out=tests exists already; name a new folder"),
        (["collect", "out=/proc/x", WALK], "cannot write /proc/x"),
        (["collect", WALK], "out"),
        (["collect", "out=x", "run=tests"], "tests is not the folder of a run"),
        (["info", "source=tests", WALK], "tests holds no saved episodes"),
        (["info", "source=tests"], "tests has no env.yaml"),
        (["info", "source=tests", "env.tusk=x"], "env.tusk=x: no such key"),
    ],
)
def test_mistakes(argv: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        main(argv)


def test_help(capsys: pytest.CaptureFixture) -> None:
    for argv in ([], ["--help"], ["collect", "help"]):
        assert main(argv) == 0
        text = capsys.readouterr().out
        assert "to_minari: Saves recorded episodes as a Minari dataset" in text
        assert max(map(len, text.splitlines())) <= 100
