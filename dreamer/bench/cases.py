"""The measurements: each yields results, from a single part to the whole training loop."""

import contextlib
import dataclasses
import io
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import dm_env
import jax
import jax.numpy as jnp
import numpy as np

from dreamer.agents.dreamer import behavior as behaviors
from dreamer.agents.dreamer import learning
from dreamer.agents.dreamer import world_model as models
from dreamer.bench.arithmetic import flops
from dreamer.bench.subject import Subject, nbytes
from dreamer.bench.timing import Budget, Timing, copy, matrix_product, measure
from dreamer.config import Config
from dreamer.distributed import mesh
from dreamer.envs import registry
from dreamer.envs.base import random_action
from dreamer.errors import UserError
from dreamer.nets.layers import compute_dtype
from dreamer.nets.rssm import feature
from dreamer.replay import device, host
from dreamer.rollout.policy import Policy
from dreamer.training.trainer import Trainer


@dataclass(frozen=True)
class Result:
    """One measured call. Bytes are those that one call moves."""

    what: str
    size: str
    observation: str
    timing: Timing
    per_call: float = 1.0  # units done by one call: updates, steps or windows
    unit: str = "call"
    compile_seconds: float | None = None
    flops: float | None = None  # on each device
    memory: int | None = None  # bytes beside arguments and results
    moved: float | None = None  # bytes of arguments and results in the memory of each device
    to_device: int = 0
    to_host: int = 0


def _result(subject: Subject, what: str, timing: Timing, **more: Any) -> Result:
    return Result(what, subject.config.size, subject.observation, timing, **more)


def compiled(
    subject: Subject, what: str, budget: Budget, function: Callable, *args: Any, **more: Any
) -> Result:
    """Compiles a function and times it on the first device."""
    args = mesh.to_device(args)
    start = time.perf_counter()
    program: Any = jax.jit(function).lower(*args).compile()
    seconds = time.perf_counter() - start
    return _result(
        subject,
        what,
        measure(lambda: program(*args), budget),
        compile_seconds=seconds,
        flops=flops(function, *args),
        moved=nbytes(args) + nbytes(jax.eval_shape(function, *args)),
        memory=program.memory_analysis().temp_size_in_bytes,
        **more,
    )


def limits(config: Config, budget: Budget) -> tuple[Result, Result]:
    """What the machine can do at best: a large matrix product and a large copy."""
    budget = dataclasses.replace(budget, trace=None)
    dtype = compute_dtype(config.agent.compute_dtype)
    product, operations = matrix_product(dtype, budget)
    copied, moved = copy(budget)
    return (
        Result("matrix product", "", jnp.dtype(dtype).name, product, flops=operations),
        Result("copy", "", "float32", copied, moved=moved),
    )


def update(subject: Subject, budget: Budget) -> Iterator[Result]:
    """Whole gradient updates as training runs them, on all chosen devices."""
    replay, agent = subject.config.replay, subject.agent
    count, size = subject.config.run.updates_per_call, replay.batch_size
    sampled = _batch(subject, count, size)
    batches = mesh.split(sampled, subject.devices)
    step = partial(learning.train_step, agent)
    update: Any = mesh.compile_updates(step, subject.devices)
    state = mesh.replicate(subject.state(), subject.devices)
    key = mesh.replicate(subject.key, subject.devices)
    start = time.perf_counter()
    program = update.lower(state, batches, key).compile()
    seconds = time.perf_counter() - start
    latents: Any = None

    def call() -> Any:
        nonlocal state, latents
        state, latents, metrics = program(state, batches, key)
        return state, latents, metrics

    timing = measure(call, budget)
    one = jax.tree.map(lambda x: x[0], sampled)
    yield _result(
        subject,
        "update",
        timing,
        per_call=count,
        unit="updates",
        compile_seconds=seconds,
        flops=count * flops(step, subject.state(), one, subject.key) / len(subject.devices),
        moved=2.0 * count * nbytes(state) + nbytes((batches, latents)) / len(subject.devices),
        memory=program.memory_analysis().temp_size_in_bytes,
        to_device=nbytes(batches),
        to_host=nbytes(latents),
    )


def parts(subject: Subject, budget: Budget) -> Iterator[Result]:
    """The parts of an update, one at a time; those that learn with their gradients."""
    agent, model, behavior = subject.agent, subject.agent.model, subject.agent.behavior
    run = partial(compiled, subject)
    state = subject.state()
    params = state.params
    batch = jax.tree.map(lambda x: x[0], _batch(subject, 1, subject.config.replay.batch_size))
    start, previous, steps = learning.split_batch(agent, batch)
    size, length = steps["is_first"].shape
    draws = learning.draw_noise(agent, subject.key, size, length, 0)

    def encode(params: Any) -> Any:
        return model.encoder.apply(params["encoder"], steps["observation"])

    yield run("encoder", budget, _learned(encode), params)
    tokens = jax.jit(encode)(params)

    def observe(params: Any, tokens: Any) -> Any:
        return models.observe(
            model, params, start, tokens, previous, steps["is_first"], draws.posterior
        )

    yield run("observe, forward", budget, observe, params, tokens)
    yield run("observe", budget, _learned(observe), params, tokens)
    latents, stats = jax.jit(observe)(params, tokens)

    def decode(params: Any, latents: Any) -> Any:
        predictions = model.decoder.apply(params["decoder"], latents)
        return models.reconstruction_losses(model, predictions, steps["observation"])

    yield run("decoder", budget, _learned(decode), params, latents)

    def model_losses(params: Any, latents: Any, stats: Any) -> Any:
        scales = agent.config.losses
        return models.model_losses(model, params, scales, steps, latents, stats, 0.99)[0]

    yield run("decoder, heads and KL", budget, _learned(model_losses), params, latents, stats)
    starts = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), latents)

    def imagine(params: Any, starts: Any) -> Any:
        return behaviors.rollout(behavior, model, params, starts, draws.prior, draws.policy)

    kinds = {behavior.gradient(key) for key in agent.actions}
    if kinds == {"reinforce"}:
        yield run("imagination", budget, lambda *x: vars(imagine(*x)), params, starts)
    else:
        learned = _learned(lambda *x: imagine(*x).returns)
        yield run("imagination", budget, learned, params, starts)
    imagined = jax.jit(lambda *x: vars(imagine(*x)))(params, starts)

    def actor_critic(params: Any, slow: Any, imagined: Any, feat: Any) -> Any:
        rollout = behaviors.Imagined(**imagined)
        bootstrap = rollout.returns[0].reshape(size, length)
        return (
            behaviors.actor_loss(behavior, params, rollout, jnp.ones(()))[0],
            behaviors.imagined_critic_loss(behavior, params, slow, rollout),
            behaviors.replay_critic_loss(behavior, params, slow, steps, feat, bootstrap),
        )

    given = params, state.slow_critic, imagined, feature(latents)
    yield run("actor and critic", budget, _learned(actor_critic), *given)
    descend = partial(learning.descend, agent)
    finite = jnp.array(True)
    yield run("optimizer", budget, descend, state, learning.packed(params), params, finite)


def act(subject: Subject, budget: Budget) -> Iterator[Result]:
    """One step of the policy for `env.num_envs` environments, actions fetched."""
    num_envs = subject.config.env.num_envs
    policy, params = Policy(subject.agent, num_envs), subject.state().params
    policy.reset(subject.key)
    seen = subject.rows(num_envs)["observation"]
    mid = np.full(num_envs, dm_env.StepType.MID, np.int32)
    time_step = dm_env.TimeStep(mid, np.zeros(num_envs), np.ones(num_envs), seen)
    start = time.perf_counter()
    fetched, _ = policy(params, time_step, 0)
    seconds = time.perf_counter() - start
    yield _result(
        subject,
        "act",
        measure(lambda: policy(params, time_step, 1), budget),
        per_call=num_envs,
        unit="steps",
        compile_seconds=seconds,
        to_device=nbytes(seen) + num_envs,
        to_host=nbytes(fetched),
    )


def replay(subject: Subject, budget: Budget) -> Iterator[Result]:
    """Adding a step of every environment, sampling a batch, and writing its latents back."""
    settings, num_envs = subject.config.replay, subject.config.env.num_envs
    batch, length = settings.batch_size, settings.batch_length
    capacity = min(settings.capacity, 4 * batch * length + num_envs * length)
    filled = host.init(subject.spec, capacity, num_envs, length + 1, settings.online)
    row = subject.rows(num_envs)
    while host.num_items(filled) < batch * length:
        host.add(filled, row)
    numbers = itertools.count()
    _, _, index = host.sample(filled, (0, next(numbers)), batch)
    latent = subject.rows(batch, length)["latent"]

    def result(what: str, call: Callable, count: int, unit: str) -> Result:
        return _result(subject, what, measure(call, budget), per_call=count, unit=unit)

    yield result("replay add", lambda: host.add(filled, row).steps, num_envs, "steps")
    yield result(
        "replay sample", lambda: host.sample(filled, (0, next(numbers)), batch)[2], batch, "windows"
    )
    yield result(
        "replay update", lambda: host.update(filled, index, latent).steps, batch, "windows"
    )


def device_replay(subject: Subject, budget: Budget) -> Iterator[Result]:
    """The same three in the memory of the first device, each as a compiled call of its own."""
    settings, num_envs = subject.config.replay, subject.config.env.num_envs
    batch, length = settings.batch_size, settings.batch_length
    capacity = min(settings.capacity, 4 * batch * length + num_envs * length)
    stored = device.init(subject.spec, capacity, num_envs, length + 1, settings.online)
    full = jnp.int32(capacity // num_envs)  # all steps written
    stored, row, latent = mesh.to_device(
        (
            dataclasses.replace(stored, steps=full),
            subject.rows(num_envs),
            subject.rows(batch, length)["latent"],
        )
    )
    # Without the replay among the results, which would be copied.
    sampled = jax.jit(lambda stored, key: device.sample(stored, key, batch)[1:])
    index = sampled(stored, subject.key)[1]
    add, update = (jax.jit(one, donate_argnums=0) for one in (device.add, device.update))

    def result(what: str, call: Callable, count: int, unit: str, moved: Any) -> Result:
        timing = measure(call, budget)
        return _result(subject, what, timing, per_call=count, unit=unit, moved=2.0 * nbytes(moved))

    def changed(change: Callable, *args: Any) -> Callable:
        def call() -> Any:
            nonlocal stored
            stored = change(stored, *args)
            return stored

        return call

    drawn = jax.eval_shape(sampled, stored, subject.key)

    def sample() -> Any:
        return sampled(stored, subject.key)

    yield result("device replay add", changed(add, row), num_envs, "steps", row)
    yield result("device replay sample", sample, batch, "windows", drawn)
    yield result("device replay update", changed(update, index, latent), batch, "windows", latent)


def env(config: Config, budget: Budget) -> Iterator[Result]:
    """Environment steps with random actions, without an agent."""
    batched = registry.make(config.env, config.env.num_envs, config.seed)
    try:
        batched.reset()
        rng = np.random.default_rng(config.seed)
        actions = random_action(batched.action_spec(), config.env.num_envs, rng)
        timing = measure(lambda: batched.step(actions).reward, budget)
        count = config.env.num_envs
        yield Result("environment", "", config.env.name, timing, per_call=count, unit="steps")
    finally:
        batched.close()


def loop(config: Config, budget: Budget) -> Iterator[Result]:
    """The whole training loop: acting, replay, environments and the updates owed.

    Raises:
      UserError: several seeds.
    """
    if config.run.seeds > 1:
        raise UserError(
            f"run.seeds={config.run.seeds}: --what loop measures one run; leave out run.seeds"
        )
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        run = config.run.model_copy(update={"dir": f"{folder}/run"})
        with Trainer(config.model_copy(update={"run": run})) as trainer:
            loop = trainer.loop
            while loop.learner.updates < 2:
                loop.advance(2**63)
            turns = 1 if loop.where == "device" else max(1, round(_turns_per_update(config)))
            calls, start = 0, loop.step

            def call() -> Any:
                nonlocal calls
                calls += 1
                for _ in range(turns):
                    loop.advance(2**63)
                return loop.learner.state

            timing = measure(call, budget)
            count = (loop.step - start) / calls
            yield Result("loop", config.size, config.env.name, timing, per_call=count, unit="steps")


def _turns_per_update(config: Config) -> float:
    """Turns of the loop between two calls that update."""
    replayed = config.replay.batch_size * config.replay.batch_length
    updates = config.replay.train_ratio * config.env.num_envs / replayed
    return config.run.updates_per_call / updates


def _batch(subject: Subject, count: int, size: int) -> dict[str, Any]:
    """Random batches as `replay.sample` gives them, leaves [count, size, T + 1, ...]."""
    rows = subject.rows(count, size, subject.config.replay.batch_length + 1)
    return rows | {"latent": jax.tree.map(lambda x: x[:, :, :1], rows["latent"])}


def _learned(function: Callable) -> Callable:
    """The gradients of the sum of all results of a function, by its arguments."""

    def total(*args: Any) -> jax.Array:
        return sum(x.astype(jnp.float32).sum() for x in jax.tree.leaves(function(*args)))

    def gradients(*args: Any) -> Any:
        return jax.grad(total, tuple(range(len(args))))(*args)

    return gradients


PER_SUBJECT = {
    **{"update": update, "parts": parts, "act": act},
    **{"replay": replay, "device_replay": device_replay},
}
