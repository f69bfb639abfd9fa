"""A trained agent from its run: loaded from where it was put, acting, imagining, and refused."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import dreamer
from dreamer.agents.dreamer import world_model as models
from dreamer.checkpoint import storage
from dreamer.envs import registry
from dreamer.errors import UserError
from dreamer.nets.rssm import feature
from dreamer.rollout.evaluate import evaluate
from dreamer.rollout.policy import Policy
from tests import tiny, tiny_run
from tests.api import agents


@pytest.fixture(scope="module")
def run(tmp_path_factory: Any) -> Path:
    return tiny_run.finished(tmp_path_factory)[0]


# ------------------------------------------------------------------------------------------ loading


def without_others(folder: Path) -> None:
    """Leaves of a checkpoint what acting needs, and of its state the parameters' entry alone."""
    shutil.rmtree(folder / "replay")
    assert (folder / "state").is_dir()


def copies(run: Path, place: Path) -> dict[str, Path]:
    """One run in all forms that it may be copied in."""
    shutil.copytree(run, place / "run")
    shutil.copytree(run / "checkpoints", place / "checkpoints")
    shutil.copy(run / "config.yaml", place / "checkpoints")
    shutil.copytree(run / "checkpoints" / "100", place / "some agent")
    shutil.copy(run / "config.yaml", place / "some agent")
    shutil.copytree(run / "checkpoints" / "100", place / "beside" / "mine")
    shutil.copy(run / "config.yaml", place / "beside")
    without_others(place / "some agent")
    return {
        "run": place / "run",
        "one in a run": place / "run" / "checkpoints" / "100",
        "those of a run": place / "run" / "checkpoints",
        "checkpoints with config": place / "checkpoints",
        "one with config inside": place / "some agent",
        "one with config beside": place / "beside" / "mine",
    }


def test_an_agent_is_loaded_from_wherever_it_was_copied(run: Path, tmp_path: Path) -> None:
    expected = tiny_run.finished.__globals__["_finished"](run)[1]["train"].params
    for form, path in copies(run, tmp_path).items():
        agent = dreamer.load(path)
        assert (agent.step, agent.config.env.num_envs) == (100, 2), form
        tiny_run.assert_same(jax.device_get(agent.params), jax.device_get(expected))


def test_loading_makes_no_environment_and_imports_nothing_that_is_named(
    run: Path, tmp_path: Path
) -> None:
    copy = tiny_run.copy(run, tmp_path / "run")
    config = copy / "config.yaml"
    config.write_text(config.read_text().replace("tests.probe_envs", "not_installed_here"))
    agent = dreamer.load(copy)
    assert agent.config.env.task == "not_installed_here:probe/Drawn-v0"
    step = registry.make(dreamer.load(run).config.env, 2, 0).reset()
    assert agent.policy(num_envs=2)(step)["action"].shape == (2,)
    with pytest.raises(UserError, match="never named"):
        agent.make_env()
    with pytest.raises(UserError, match="there is no module not_installed_here"):
        dreamer.load(copy, trust=True).make_env()


def test_a_checkpoint_without_a_note_of_its_spaces_is_refused(run: Path, tmp_path: Path) -> None:
    """Its environment would have to be made, by whatever code its configuration names."""
    copy = tiny_run.copy(run, tmp_path / "run")
    saved = copy / "checkpoints" / "100"
    meta = storage.read(saved).meta
    noted = meta["spaces"]
    storage.amend(saved, {"spaces": None}, None)
    assert "cannot be used: meta.spaces=None" in refused(copy)
    assert list(noted) == ["observations", "actions", "native"]


def test_best_and_newest_are_told_apart(run: Path, tmp_path: Path) -> None:
    changes = ("run.steps=6", "eval.every=2", "eval.episodes=2", "eval.num_envs=1")
    tiny_run.train(tmp_path / "run", *changes)
    scores = {
        line["step"]: line["eval/mean"]
        for line in tiny_run.lines(tmp_path / "run")
        if "eval/mean" in line
    }
    assert dreamer.load(tmp_path / "run").step == 6
    assert dreamer.load(tmp_path / "run", which="best").step == max(scores, key=scores.__getitem__)


def refused(path: Path | str, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        dreamer.load(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_what_is_no_agent_is_refused(run: Path, tmp_path: Path) -> None:
    assert refused(tmp_path / "none") == (
        f"{tmp_path / 'none'} is not a folder; name the folder of a training run"
    )
    assert "it has no config.yaml of one" in refused(tmp_path)
    assert refused(run, which="first") == "which=first: expected newest or best"
    assert f"no best checkpoint in {run}; train first" in refused(run, which="best")

    other = tmp_path / "other"  # as other programs leave them
    other.mkdir()
    (other / "config.yaml").write_text("agent: ppo\n")
    (other / "model.zip").write_bytes(b"PK")
    assert "it has no config.yaml of one" in refused(other)

    copy = tiny_run.copy(run, tmp_path / "copy")
    (copy / "checkpoints" / "100" / "checkpoint.json").write_text("[]")
    assert "checkpoints/100 is damaged: checkpoint.json has changed; name another" in refused(copy)
    other = tiny_run.copy(run, tmp_path / "larger")
    config = other / "config.yaml"
    config.write_text(config.read_text().replace("units: 16", "units: 17"))
    assert "does not fit the configuration: " in refused(other)
    config.write_text(config.read_text().replace("units: 17", "unites: 17"))
    assert "agent.unites=17: no such key" in refused(other)


def test_a_damaged_checkpoint_is_refused_and_left_as_it_is(run: Path, tmp_path: Path) -> None:
    lost = tiny_run.copy(run, tmp_path / "lost")
    shutil.rmtree(lost / "checkpoints" / "100" / "state" / "d")
    before = sorted(lost.rglob("*"))
    message = refused(lost)
    assert message.startswith(f"the checkpoint {lost}/checkpoints/100 is damaged: state/d/")
    assert " is missing; name another one, or resume the run" in message
    assert sorted(lost.rglob("*")) == before


# ------------------------------------------------------------------------------------------- acting


def test_the_policy_is_that_of_evaluation(run: Path) -> None:
    agent = dreamer.load(run)
    expected = evaluate(Policy(agent.networks, 2, True), agent.params, agent.config.env, 4, seed=5)
    env, policy = agent.make_env(num_envs=2, seed=5), agent.policy(num_envs=2, greedy=True, seed=5)
    time_step, rewards = env.reset(), []
    for _ in range(7):
        time_step = env.step(policy(time_step))
        rewards.append(time_step.reward[0])
        if time_step.step_type[0] == 2:
            break
    assert np.isclose(sum(rewards), expected.returns[0])
    assert len(rewards) == expected.lengths[0]


def test_the_policy_remembers_until_it_is_reset() -> None:
    agent, env = agents.agent(), agents.env(4)
    policy = agent.policy(num_envs=4, seed=2)
    with pytest.raises(UserError, match="the policy has no state yet"):
        policy.state  # noqa: B018
    seen = [env.reset()] + [env.step({}) for _ in range(5)]
    once = [policy(step) for step in seen]
    policy.reset()
    tiny_run.assert_same([policy(step) for step in seen], once)
    rows = agent.record(agents.env(4), 6, seed=2)  # which plays the same
    tiny_run.assert_same({k: x[:, 5] for k, x in rows["action"].items()}, once[5])
    other = agent.record(agents.env(4), 6, seed=3)
    assert not np.array_equal(other["action"]["push"], rows["action"]["push"])


def test_masks_are_respected_and_recorded() -> None:
    agent = agents.agent()
    for greedy in (False, True):
        rows = agent.record(agents.env(4), 30, greedy=greedy)
        for key, mask in (("action", "action_mask"), ("pair", "action_mask_pair")):
            valid, action = rows["observation"][mask], rows["action"][key]
            chosen = np.take_along_axis(valid, action[..., None], -1)[..., 0]
            last = rows["is_last"].reshape(4, 30, *[1] * (action.ndim - 2))
            assert (chosen | last).all()  # where no action is taken it is zero
            assert len(set(action[~rows["is_last"]].ravel().tolist())) == valid.shape[-1]


def test_a_record_has_the_form_of_replay() -> None:
    agent, env = agents.agent(), agents.env(4)
    rows = agent.record(env, 20, seed=1)
    pattern = tiny.batch(agent.networks, 4, 19)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), rows)
    assert shapes == jax.tree.map(lambda x: (x.shape, x.dtype), pattern)
    for t, (seen, action) in enumerate(env.taken):
        taken = ~rows["is_last"][:, t]
        for key, value in seen.items():
            np.testing.assert_array_equal(rows["observation"][key][:, t], value)
        for key, value in action.items():
            np.testing.assert_array_equal(rows["action"][key][:, t][taken], value[taken])
    assert rows["is_first"][0].tolist() == [t % 8 == 0 for t in range(20)]


BAD_STEPS = {
    "count": (
        {"num_envs": 3},
        r"time_step: step_type has shape \(3,\), but the policy is for 2 environments",
    ),
    "shape": (
        {"shape": (4,)},
        r"observation 'observation': the agent expects float32 \(2, 3\), but got float32 \(2, 4\)",
    ),
    "type": ({"dtype": np.uint8}, r"expects float32 \(2, 3\), but got uint8 \(2, 3\)"),
    "key": ({"key": "state"}, r"expects float32 \(2, 3\), but got none, only state"),
}


@pytest.mark.parametrize(("change", "message"), BAD_STEPS.values(), ids=BAD_STEPS)
def test_a_time_step_of_another_form_is_refused(change: dict[str, Any], message: str) -> None:
    form = {"num_envs": 2, "shape": (3,), "dtype": np.float32, "key": "observation"} | change
    spec = tiny.specs.Array(form["shape"], form["dtype"])
    env = agents.Noise({form["key"]: spec}, tiny.DISCRETE, form["num_envs"])
    with pytest.raises(UserError, match=message):
        agents.agent().policy(num_envs=2)(env.reset())


def test_a_time_step_of_one_environment_alone_is_refused() -> None:
    step = agents.env(1).reset()
    single = step._replace(step_type=step.step_type[0])
    with pytest.raises(UserError, match=r"step_type has shape \(\), but the policy is for 1 env"):
        agents.agent().policy()(single)


def test_environments_with_other_spaces_are_refused(run: Path, tmp_path: Path) -> None:
    copy = tiny_run.copy(run, tmp_path / "run")
    config = copy / "config.yaml"
    for task, message in (
        (
            "Steered",
            "action 'action': the agent expects int32 () of 3 classes, but the "
            "environment has float32 (2,)",
        ),
        (
            "Picture",
            "observation 'observation': the agent expects float32 (3,), but the "
            "environment has none, only image",
        ),
    ):
        text = (run / "config.yaml").read_text()
        config.write_text(text.replace("probe/Drawn-v0", f"probe/{task}-v0"))
        with pytest.raises(UserError) as caught:
            dreamer.load(copy, trust=True).make_env()
        assert str(caught.value).startswith(message)


# ---------------------------------------------------------------------------------------- imagining


def test_imagination_begins_with_what_the_policy_has_chosen() -> None:
    agent = agents.agent()
    policy = agent.policy(num_envs=4)
    env = agents.env(4)
    for step in (env.reset(), env.step({}), env.step({})):
        chosen = policy(step)
    found = agent.imagine(policy.state, horizon=6, decode=True)
    assert found.rewards.shape == found.continuation.shape == (6, 4)
    assert found.values.shape == (7, 4)
    assert found.actions.keys() == chosen.keys() == {"action", "pair", "push"}
    for key, action in chosen.items():
        assert found.actions[key].shape == (6, *action.shape)
        assert found.actions[key].dtype == action.dtype
        np.testing.assert_array_equal(found.actions[key][0], action)
    assert found.observations["observation"].shape == (7, 4, 3)
    assert ((found.continuation >= 0) & (found.continuation <= 1)).all()
    other = agent.imagine(policy.state, horizon=6, decode=True, seed=1)
    assert not np.allclose(other.values[1:], found.values[1:])
    np.testing.assert_array_equal(other.values[0], found.values[0])


def test_imagination_is_that_of_the_model() -> None:
    """Of one step, worked out by the networks; and of a value, by its own state."""
    agent = agents.agent()
    made, params = agent.networks, agent.params
    policy = agent.policy(num_envs=4)
    policy(agents.env(4).reset())
    carry = policy.state
    found = agent.imagine(carry, horizon=1, greedy=True, decode=True, seed=4)
    value = made.behavior.predict_value(params["critic"], feature(carry.latent))
    np.testing.assert_allclose(found.values[0], value, rtol=1e-4, atol=1e-5)
    latent_key, _ = jax.random.split(jax.random.key(4))
    noise = made.model.rssm.noise(latent_key, (1, 4))[0]
    following = models.imagine_step(made.model, params, carry.latent, carry.action, noise)
    reward = made.model.predict_reward(params, feature(following))
    np.testing.assert_allclose(found.rewards[0], reward, rtol=1e-4, atol=1e-5)
    seen = made.model.decoder.apply(params["decoder"], following)["observation"]
    expected = np.sign(seen) * np.expm1(np.abs(seen))
    np.testing.assert_allclose(found.observations["observation"][1], expected, rtol=1e-4, atol=1e-5)


def test_imagined_actions_follow_the_predicted_mask() -> None:
    agent = agents.agent()
    policy = agent.policy(num_envs=4)
    policy(agents.env(4).reset())
    closed = jax.tree.map(np.asarray, dict(agent.params))
    out = closed["mask"]["params"]["head"]["out"]
    valid = np.full(len(out["bias"]), -1, np.float32)
    valid[[2, 3, 7]] = 1  # class 2 of the action; of the pair, 0 of the first and 0 of the second
    closed["mask"]["params"]["head"]["out"] = {
        "kernel": np.zeros_like(out["kernel"]),
        "bias": valid,
    }
    only = dreamer.TrainedAgent(agent.config, agent.networks, closed, 0)
    actions = only.imagine(policy.state, horizon=6, decode=True).actions
    assert (actions["action"][1:] == 2).all()
    assert (actions["pair"][1:] == 0).all()
    free = agent.imagine(policy.state, horizon=6, decode=True).actions
    assert not (free["action"][1:] == 2).all()
    assert not (free["pair"][1:] == 0).all()


def test_predictions_as_a_video(tmp_path: Path) -> None:
    agent = agents.seeing()
    rows = agent.record(agents.Noise(agents.IMAGE, agents.STEERING, 2), 9)
    frames = agent.predict_video(rows, context=5, path=tmp_path / "a.mp4")["image"]
    assert frames.shape == (8, 3 * 64 + 4, 2 * 68, 3)
    assert frames[4, 0, 0].tolist() == [0, 255, 0]
    assert frames[5, 0, 0].tolist() == [255, 0, 0]
    truth = rows["observation"]["image"][1, 3].repeat(8, 0).repeat(8, 1)
    np.testing.assert_array_equal(frames[2, 2:66, 70:134], truth)
    assert (tmp_path / "a.mp4").stat().st_size > 500
    for context in (0, 8):
        with pytest.raises(UserError, match=f"context={context}: expected integer >= 1, <= 7"):
            agent.predict_video(rows, context=context)
    with pytest.raises(UserError, match="cannot write .*: Is a directory"):
        agent.predict_video(rows, context=5, path=tmp_path)
    with pytest.raises(UserError, match="the agent predicts no image"):
        agents.agent().predict_video(agents.agent().record(agents.env(4), 9))


# ---------------------------------------------------------------------------------------- the names


def test_importing_is_quick_and_every_name_is_there() -> None:
    code = "import sys, dreamer; print(sorted({'jax', 'gymnasium', 'pydantic'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    for name in dreamer.__all__:
        assert callable(getattr(dreamer, name))
        assert name in dir(dreamer)
    with pytest.raises(AttributeError, match="module 'dreamer' has no attribute 'lode'"):
        dreamer.lode  # noqa: B018


def test_environments_by_group_or_suite() -> None:
    env = dreamer.make_env("gymnasium", "Pendulum-v1", num_envs=3, seed=1, repeat=2)
    assert env.reset().observation["observation"].shape == (3, 3)
    env.close()
    env = dreamer.make_env("atari100k", "pong", image_size=(32, 40))
    assert env.observation_spec()["image"].shape == (32, 40, 3)
    env.close()
    assert dreamer.make_env("gymnasium").action_spec()["action"].num_values == 2
    for arguments, keys, message in (
        (("gymnasum",), {}, "env=gymnasum: no such choice; .* did you mean gymnasium"),
        (("gymnasium", "Pendulum"), {}, "env.task=Pendulum is no registered gymnasium id"),
        (("atari", "pong"), {"stiky": 0}, "env.stiky=0: no such key; .*did you mean sticky"),
        (("atari", "pong"), {"sticky": 2}, "env.sticky=2: expected number >= 0, <= 1"),
        (("gymnasium",), {"seed": -1}, "seed=-1: expected integer >= 0, <= 4294967295"),
    ):
        with pytest.raises(UserError, match=message):
            dreamer.make_env(*arguments, **keys)


def test_an_environment_has_one_name() -> None:
    env = dreamer.make_env("gymnasium", id="Pendulum-v1")
    assert env.action_spec()["action"].shape == (1,)
    env = dreamer.make_env("gymnasium", entry_point="tests.probe_envs:Steered")
    assert env.action_spec()["action"].shape == (2,)
    own, pendulum = {"entry_point": "tests.probe_envs:Steered"}, {"id": "Pendulum-v1"}
    both = "env.task=Pendulum-v1 and env.entry_point=.* both name the environment; keep one"
    for task, keys, message in (
        ("Pendulum-v1", own, both),
        (None, own | pendulum, both),
        (
            "Acrobot-v1",
            pendulum,
            "env.task is given twice: env.task=Acrobot-v1 and env.id=",
        ),
    ):
        with pytest.raises(UserError, match=message):
            dreamer.make_env("gymnasium", task, **keys)
