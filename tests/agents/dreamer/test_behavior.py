"""Actor and critic: what each loss may and may not reach, and the analytic gradient itself."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer.agents.dreamer import behavior as behaviors
from dreamer.agents.dreamer import learning
from dreamer.agents.dreamer import world_model as models
from dreamer.nets.rssm import feature
from tests import tiny

B, T = 2, 4
WORLD = {"encoder", "rssm", "decoder", "reward", "cont"}
# What a loss must reach; everything else it must not.
REACHES = {
    "observation/observation": {"encoder", "rssm", "decoder"},
    "reward": {"encoder", "rssm", "reward"},
    "cont": {"encoder", "rssm", "cont"},
    "dynamics": {"encoder", "rssm"},
    "representation": {"encoder", "rssm"},
    "actor": {"actor"},
    "critic": {"critic"},
    "replay_critic": {"encoder", "rssm", "critic"},
}


@cache
def reached(actions, gradient, latent):
    """For every loss the modules with a gradient that is not zero."""
    agent = tiny.agent(
        tiny.VECTOR,
        {"discrete": tiny.DISCRETE, "continuous": tiny.CONTINUOUS}[actions],
        actor={"gradient": gradient},
        rssm={"latent": latent},
        losses={"free_nats": 0.0},
    )
    return reached_by(agent, tiny.batch(agent, B, T))


def reached_by(agent, batch):
    """For every loss of a batch the modules with a gradient that is not zero."""
    state = tiny.state(agent, learned=True)
    draws = learning.draw_noise(agent, jax.random.key(0), B, T, 0)

    def terms(params):
        _, (_, _, terms, _) = learning.loss(
            agent, params, state.slow_critic, state.percentiles, batch, draws
        )
        return {name: term.sum() for name, term in terms.items()}

    jacobian = jax.jit(jax.jacrev(terms))(state.params)
    return {
        name: {
            module
            for module, part in modules.items()
            if any(np.any(np.asarray(x) != 0) for x in jax.tree.leaves(part))
        }
        for name, modules in jacobian.items()
    }


@pytest.mark.parametrize(
    ("actions", "gradient", "latent"),
    [
        ("discrete", "reinforce", "categorical"),
        pytest.param("discrete", "analytic", "categorical", marks=pytest.mark.slow),
        pytest.param("continuous", "mixed", "gaussian", marks=pytest.mark.slow),
    ],
)
def test_every_loss_reaches_exactly_its_modules(actions, gradient, latent):
    assert reached(actions, gradient, latent) == REACHES


def moderate(params):
    """Keeps predictions near zero: the outermost bins are so large that differences drown."""
    distance = jnp.abs(jnp.arange(255) - 127)
    for head in ("reward", "critic"):
        out = params[head]["params"]["out"]
        params[head]["params"]["out"] = out | {"bias": -0.5 * distance}
    return params


def small(gradient="analytic", actions="continuous"):
    agent = tiny.default(actions, gradient=gradient, latent="gaussian")
    params = moderate(tiny.state(agent, learned=True).params)
    starts = agent.model.rssm.initial(3)
    keys = jax.random.split(jax.random.key(3))
    horizon = agent.config.returns.imagination
    noise = agent.model.rssm.noise(keys[0], (horizon, 3))
    policy_noise = agent.behavior.actor.noise(keys[1], (horizon, 3))
    return agent, params, starts, noise, policy_noise


def returns_of_actions(agent, params, starts, noise, actions):
    """Weighted sum of the returns of given actions [H, N, A]: the objective of the actor."""

    def given(latent, action):
        return action, {"action": action}

    latents, _ = models.imagine(
        agent.model, params, starts, given, len(actions), noise, jnp.asarray(actions)
    )
    feat = feature(latents)
    reward = agent.model.predict_reward(params, feat)
    cont = agent.model.predict_cont(params, feat)
    value = agent.behavior.predict_value(params["critic"], feat)
    returns = behaviors.lambda_return(reward, cont, agent.config.returns.lam, value)
    return returns, jnp.cumprod(cont, 0)[:-1]


def test_analytic_gradient_equals_finite_differences():
    """The whole chain: from returns to actions by differences, from actions to weights by vjp."""
    agent, params, starts, noise, policy_noise = small()
    # Actions beyond 1 are scaled down with a gradient that differences do not have.
    policy_noise, scale = jax.tree.map(lambda x: 0.2 * x, policy_noise), 2.0

    def analytic(actor):
        imagined = behaviors.rollout(
            agent.behavior, agent.model, params | {"actor": actor}, starts, noise, policy_noise
        )
        loss = -(imagined.weight * imagined.returns / scale).sum()
        return loss, (imagined.feat, imagined.action["action"], imagined.returns)

    ours, (feat, actions, returns) = jax.jit(jax.grad(analytic, has_aux=True))(params["actor"])

    objective = jax.jit(lambda a: returns_of_actions(agent, params, starts, noise, a))
    same, weight = objective(actions)
    np.testing.assert_allclose(same, returns, rtol=1e-4)
    # The weight is held fixed, so only the returns are differenced.
    by_action, step = np.zeros(actions.shape, np.float32), 1e-2
    for index in np.ndindex(actions.shape):
        up, down = (objective(actions.at[index].add(sign * step))[0] for sign in (1, -1))
        by_action[index] = (weight * (up - down)).sum() / (2 * step)

    def policy_actions(actor):
        outputs = agent.behavior.actor.apply(actor, feat[:-1])
        dist = agent.behavior.actor.policy(outputs, {})["action"]
        return behaviors.distributions.draw(dist, policy_noise["action"])

    _, back = jax.vjp(policy_actions, params["actor"])
    (expected,) = back(-by_action / scale)
    ours, expected = (
        jnp.concatenate([x.ravel() for x in jax.tree.leaves(t)]) for t in (ours, expected)
    )
    assert np.linalg.norm(expected) > 0.01
    assert np.linalg.norm(ours - expected) <= 0.02 * np.linalg.norm(expected)


def test_every_imagined_action_has_a_gradient_from_every_return():
    agent, params, starts, noise, _ = small()
    horizon = agent.config.returns.imagination
    actions = jax.random.normal(jax.random.key(9), (horizon, 3, 2)) * 0.5
    jacobian = jax.jit(
        jax.jacrev(lambda a: returns_of_actions(agent, params, starts, noise, a)[0].sum(1))
    )(actions)
    assert jacobian.shape == (horizon, horizon, 3, 2)
    assert np.all(np.any(jacobian != 0, axis=(2, 3)))


def test_straight_through_discrete_actions_carry_gradients():
    agent, params, starts, noise, policy_noise = small(actions="discrete")

    def objective(actor):
        imagined = behaviors.rollout(
            agent.behavior, agent.model, params | {"actor": actor}, starts, noise, policy_noise
        )
        return imagined.returns.sum()

    gradient = jax.jit(jax.grad(objective))(params["actor"])
    assert all(np.any(np.asarray(x) != 0) for x in jax.tree.leaves(gradient))


@pytest.mark.parametrize("actions", ["discrete", "continuous"])
def test_reinforce_returns_carry_no_gradient(actions):
    agent, params, starts, noise, policy_noise = small("reinforce", actions)

    def objective(params):
        imagined = behaviors.rollout(
            agent.behavior, agent.model, params, starts, noise, policy_noise
        )
        return imagined.returns.sum()

    gradient = jax.jit(jax.grad(objective))(params)
    assert not any(np.any(np.asarray(x) != 0) for x in jax.tree.leaves(gradient))


def test_auto_chooses_by_the_kind_of_action():
    mixed = {"move": tiny.CONTINUOUS["action"], "press": tiny.DISCRETE["action"]}
    behavior = tiny.agent(tiny.VECTOR, mixed).behavior
    assert behavior.gradient("move") == "analytic"
    assert behavior.gradient("press") == "reinforce"
    forced = tiny.agent(tiny.VECTOR, mixed, actor={"gradient": "mixed"}).behavior
    assert {forced.gradient("move"), forced.gradient("press")} == {"mixed"}


def fake_rollout(agent, log_prob_of, returns, value, weight):
    n = returns.shape[1]
    feat = jnp.zeros((returns.shape[0] + 1, n, tiny.feature_size(agent)))
    zeros = jnp.zeros((returns.shape[0] + 1, n))
    return behaviors.Imagined(
        feat=feat,
        action={"action": log_prob_of},
        masks={},
        returns=returns,
        value=value,
        weight=weight,
        reward=zeros,
        cont=zeros,
    )


def test_reinforce_loss_by_hand():
    agent = tiny.agent(
        tiny.VECTOR, tiny.DISCRETE, actor={"gradient": "reinforce", "entropy": 0.5, "unimix": 0.0}
    )
    params = tiny.state(agent, learned=True).params
    action = jnp.array([[[0.0, 1.0, 0.0]]])
    imagined = fake_rollout(
        agent, action, jnp.array([[7.0]]), jnp.array([[3.0], [0.0]]), jnp.array([[0.5]])
    )
    loss, metrics = behaviors.actor_loss(agent.behavior, params, imagined, jnp.array(2.0))
    logits = agent.behavior.actor.apply(params["actor"], imagined.feat[:-1])["action"][0, 0]
    log_probs = np.asarray(jax.nn.log_softmax(logits))
    entropy = -(np.exp(log_probs) * log_probs).sum()
    expected = -0.5 * (log_probs[1] * (7 - 3) / 2 + 0.5 * entropy)
    np.testing.assert_allclose(loss, [[expected]], rtol=1e-5)
    np.testing.assert_allclose(metrics["entropy/action"], entropy, rtol=1e-5)


def test_replay_critic_targets_by_hand():
    agent = tiny.default()
    params = tiny.state(agent, learned=True).params
    feat = jax.random.normal(jax.random.key(0), (1, 3, tiny.feature_size(agent)))
    bootstrap = jnp.array([[10.0, 20.0, 30.0]])
    gamma, lam = 1 - 1 / 333, 0.95

    def loss(is_last, is_terminal):
        batch = {
            "reward": jnp.array([[9.0, 1.0, 2.0]]),
            "is_last": jnp.array([is_last], float),
            "is_terminal": jnp.array([is_terminal], float),
        }
        return behaviors.replay_critic_loss(
            agent.behavior, params, params["critic"], batch, feat, bootstrap
        )

    def expected(targets):
        return behaviors.critic_loss(
            agent.behavior, params, params["critic"], feat[:, :-1], jnp.array([targets])
        )

    second = 2 + gamma * 30
    first = 1 + gamma * ((1 - lam) * 20 + lam * second)
    np.testing.assert_allclose(loss([0, 0, 0], [0, 0, 0]), expected([first, second]), rtol=1e-4)
    # Truncated at step 1: the return stops mixing there, and step 1 itself is not trained.
    truncated = loss([0, 1, 0], [0, 0, 0])
    np.testing.assert_allclose(truncated[0, 0], expected([1 + gamma * 20, 0])[0, 0], rtol=1e-4)
    assert truncated[0, 1] == 0
    terminated = loss([0, 1, 0], [0, 1, 0])
    np.testing.assert_allclose(terminated[0, 0], expected([1.0, 0])[0, 0], rtol=1e-4)


def test_critic_is_pulled_toward_the_slow_critic():
    agent = tiny.default()
    params = tiny.state(agent, learned=True).params
    feat = jax.random.normal(jax.random.key(0), (4, tiny.feature_size(agent)))
    slow = jax.tree.map(lambda x: 2 * x, params["critic"])
    toward = agent.behavior.predict_value(slow, feat)
    logits = agent.behavior.critic.apply(params["critic"], feat)
    bins = agent.behavior.critic_bins
    target = jnp.ones(4)
    two_hot = behaviors.transforms.two_hot_loss
    np.testing.assert_allclose(
        behaviors.critic_loss(agent.behavior, params, slow, feat, target),
        two_hot(logits, target, bins) + two_hot(logits, toward, bins),
        rtol=1e-5,
    )
