"""The convention of stable-baselines3: raw observations in, raw actions and the memory out."""

from functools import partial
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import dreamer
from dreamer.api.agent import TrainedAgent
from dreamer.cli.compose import compose
from dreamer.envs.images import resize
from dreamer.errors import UserError
from tests import tiny_run
from tests.api import agents
from tests.probe_envs import Drawn, Picture, Steered


@pytest.fixture(scope="module")
def agent(tmp_path_factory: Any) -> TrainedAgent:
    return dreamer.load(tiny_run.finished(tmp_path_factory)[0])


def evaluate_policy(model: Any, env: Any, episodes: int, deterministic: bool) -> list[float]:
    """The loop of stable_baselines3.common.evaluation, over gymnasium's own vector environment."""
    num_envs = env.num_envs
    returns, current = [], np.zeros(num_envs)
    observation, _ = env.reset(seed=0)
    states, starts = None, np.ones(num_envs, bool)
    while len(returns) < episodes:
        actions, states = model.predict(
            observation, state=states, episode_start=starts, deterministic=deterministic
        )
        observation, rewards, terminated, truncated, _ = env.step(actions)
        current += rewards
        starts = terminated | truncated
        returns += current[starts].tolist()
        current[starts] = 0
    return returns


def test_its_evaluation_loop(agent: TrainedAgent) -> None:
    env = SyncVectorEnv([Drawn] * 3, autoreset_mode=AutoresetMode.SAME_STEP)
    model = agent.sb3(env)
    returns = evaluate_policy(model, env, 8, deterministic=True)
    assert len(returns) >= 8
    assert returns == evaluate_policy(model, env, 8, deterministic=True)
    assert returns != evaluate_policy(model, env, 8, deterministic=False)


def test_the_evaluation_of_stable_baselines3_itself(agent: TrainedAgent) -> None:
    evaluation = pytest.importorskip("stable_baselines3.common.evaluation")
    with pytest.warns(UserWarning, match="Monitor"):
        mean, std = evaluation.evaluate_policy(agent.sb3(Drawn()), Drawn(), n_eval_episodes=5)
    assert np.isfinite(mean)
    assert std > 0
    from stable_baselines3.common.env_util import make_vec_env

    vector = make_vec_env(Drawn, n_envs=3, seed=0)
    returns, lengths = evaluation.evaluate_policy(
        agent.sb3(vector), vector, n_eval_episodes=7, return_episode_rewards=True
    )
    assert len(returns) == 7
    assert all(3 <= length <= 7 for length in lengths)


def test_actions_are_those_of_the_policy(agent: TrainedAgent) -> None:
    """Of a batch, and of each environment alone where it is not a batch."""
    rows = agent.record(agent.make_env(num_envs=1, seed=3), 12, greedy=True)
    model = agent.sb3(Drawn())
    state, actions = None, []
    for step in range(12):
        observation = rows["observation"]["observation"][0, step]
        starts = rows["is_first"][:, step]
        action, state = model.predict(observation, state, episode_start=starts)
        assert Drawn.action_space.contains(action)
        actions.append(action)
    acts = ~rows["is_last"][0]
    np.testing.assert_array_equal(np.array(actions)[acts], rows["action"]["action"][0][acts])
    alone, memory = model.predict(rows["observation"]["observation"][0, 0])
    batch, _ = model.predict(rows["observation"]["observation"][:, 0])
    assert batch.shape == (1,)
    assert batch[0] == alone
    following = rows["observation"]["observation"][0, 1]
    one, two = (model.predict(following, memory, start)[1] for start in (None, [False]))
    tiny_run.assert_same(one.carry, two.carry)
    again = model.predict(following, memory, np.array([True]))[1]
    assert not np.array_equal(again.carry.latent["deter"], one.carry.latent["deter"])


def test_masks_are_respected_in_every_action() -> None:
    """`Choice` refuses actions that its masks exclude, or that are not of its space."""
    for env in (agents.Choice(), SyncVectorEnv([agents.Choice] * 4)):
        model = agents.agent().sb3(env)
        observation, _ = env.reset(seed=1)
        state, taken = None, set()
        for step in range(40):
            if step % 10 == 9 and not hasattr(env, "num_envs"):
                observation, state = env.reset()[0], None
            greedy = step < 20 or not hasattr(env, "num_envs")
            action, state = model.predict(observation, state, deterministic=greedy)
            observation, *_ = env.step(action)
            taken |= set(np.ravel(action["action"]).tolist())
        assert taken == {0, 1, 2}


def test_raw_actions_and_images_are_those_of_the_environment() -> None:
    """Actions in the bounds of the space; images of another size as training resizes them."""

    class Steering(Picture):
        action_space = Steered.action_space

    agent, env = agents.seeing(), Steering()
    picture, _ = env.reset(seed=0)
    action, state = agent.sb3(env).predict(picture)
    assert env.action_space.contains(action)
    policy = agent.policy(greedy=True)
    resized = resize(picture, (8, 8))[None]
    time_step = agents.Noise(agents.IMAGE, agents.STEERING, 1).reset()
    expected = policy(time_step._replace(observation={"image": resized}))["action"]
    np.testing.assert_allclose(action, 2 * np.clip(expected[0], -1, 1), rtol=1e-5)
    tiny_run.assert_same(state.carry, policy.state)
    # A suite that makes its images in another way.
    atari = dreamer.TrainedAgent(compose(["env=atari"]), agent.networks, agent.params, 0)
    with pytest.raises(
        UserError, match=r"expects uint8 \(8, 8, 3\), but the environment has uint8"
    ):
        atari.sb3(env)


def refused(agent: TrainedAgent, observation: Any, *more: Any, env: Any = Drawn) -> str:
    with pytest.raises(UserError) as caught:
        agent.sb3(env()).predict(observation, *more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_does_not_fit_is_refused(agent: TrainedAgent) -> None:
    zeros = partial(np.zeros, dtype=np.float32)
    _, state = agent.sb3(Drawn()).predict(zeros((2, 3)))
    assert refused(agent, zeros(4)) == (
        "observation 'observation': expected float32 (3,), or (N, ...) of N environments, got "
        "float32 (4,)"
    )
    assert "got float32 (2, 4)" in refused(agent, zeros((2, 4)))
    assert "got float32 (1, 2, 3)" in refused(agent, zeros((1, 2, 3)))
    message = refused(agent, zeros((3, 3)), state)
    assert message.startswith("state is of 2 environments, the observation of 3")
    message = refused(agent, zeros((2, 3)), state, np.zeros(3, bool))
    assert message.startswith("episode_start is of 3 environments, the observation of 2")
    choice = agents.agent()
    seen = agents.Choice().reset(seed=0)[0]
    missing = {key: value for key, value in seen.items() if key != "observation"}
    message = refused(choice, missing, env=agents.Choice)
    assert message == "observation 'observation' is missing from 'observation'"
    message = refused(choice, seen | {"observation": zeros((2, 3))}, env=agents.Choice)
    assert "are of different numbers of environments" in message
    message = refused(choice, seen | {"action_mask": zeros(3)}, env=agents.Choice)
    assert (
        "'action_mask': expected int8 (3,), or (N, ...) of N environments, got float32" in message
    )


def test_other_spaces_are_refused(agent: TrainedAgent) -> None:
    for env, message in (
        (Steered, r"action 'action': the agent expects int32 \(\) of 3 classes, but the env"),
        (Picture, r"observation 'observation': the agent expects float32 \(3,\), but the env"),
    ):
        with pytest.raises(UserError, match=message):
            agent.sb3(env())

    class More(Drawn):  # what the agent does not know is left aside
        observation_space = spaces.Dict(
            {"observation": Drawn.observation_space, "clock": spaces.Discrete(3)}
        )

    agent.sb3(More())
