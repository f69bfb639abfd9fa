"""The measurements, from a single part of an update to the whole training loop."""

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


def measured(
    subject: Subject,
    budget: Budget,
    what: str,
    call: Callable[[], Any],
    per_call: float = 1.0,
    unit: str = "call",
    **more: Any,
) -> Result:
    """Times a call; the other arguments are fields of the result."""
    timing = measure(call, budget)
    return Result(what, subject.config.size, subject.observation, timing, per_call, unit, **more)


def compiled(function: Any, *args: Any) -> tuple[Any, dict[str, Any]]:
    """Compiles a jitted function; returns it with the time and memory that it takes."""
    start = time.perf_counter()
    program = function.lower(*args).compile()
    seconds = time.perf_counter() - start
    memory = program.memory_analysis().temp_size_in_bytes
    return program, {"compile_seconds": seconds, "memory": memory}


def part(subject: Subject, budget: Budget, what: str, function: Callable, *args: Any) -> Result:
    """Compiles a function and times it on the first device."""
    args = mesh.to_device(args)
    program, fields = compiled(jax.jit(function), *args)
    moved = nbytes(args) + nbytes(jax.eval_shape(function, *args))
    fields |= {"flops": flops(function, *args), "moved": moved}
    return measured(subject, budget, what, lambda: program(*args), **fields)


def limits(config: Config, budget: Budget) -> tuple[Result, Result]:
    """The limits of the machine: a large matrix product and a large copy."""
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
    devices, count = subject.devices, subject.config.run.updates_per_call
    sampled = _batch(subject, count)
    batches = mesh.split(sampled, devices)
    step = partial(learning.train_step, subject.agent)
    one = subject.state(), jax.tree.map(lambda x: x[0], sampled), subject.key
    operations = count * flops(step, *one)
    state, key = (mesh.replicate(x, devices) for x in (subject.state(), subject.key))
    function = mesh.compile_updates(step, devices)
    latents = jax.eval_shape(function, state, batches, key)[1]
    program, fields = compiled(function, state, batches, key)

    def call() -> Any:
        nonlocal state
        state, *rest = program(state, batches, key)
        return state, rest

    yield measured(
        *(subject, budget, "update", call, count, "updates"),
        flops=operations / len(devices),
        moved=2.0 * count * nbytes(state) + nbytes((batches, latents)) / len(devices),
        to_device=nbytes(batches),
        to_host=nbytes(latents),
        **fields,
    )


def parts(subject: Subject, budget: Budget) -> Iterator[Result]:
    """The parts of an update, one at a time; trained parts with their gradients."""
    agent, model, behavior = subject.agent, subject.agent.model, subject.agent.behavior
    run = partial(part, subject, budget)
    state = subject.state()
    params = state.params
    batch = jax.tree.map(lambda x: x[0], _batch(subject, 1))
    start, previous, steps = learning.split_batch(agent, batch)
    size, length = steps["is_first"].shape
    draws = learning.draw_noise(agent, subject.key, size, length, 0)

    def encode(params: Any) -> Any:
        return model.encoder.apply(params["encoder"], steps["observation"])

    yield run("encoder", _learned(encode), params)
    tokens = jax.jit(encode)(params)

    def observe(params: Any, tokens: Any) -> Any:
        return models.observe(
            model, params, start, tokens, previous, steps["is_first"], draws.posterior
        )

    yield run("observe, forward", observe, params, tokens)
    yield run("observe", _learned(observe), params, tokens)
    latents, stats = jax.jit(observe)(params, tokens)

    def decode(params: Any, latents: Any) -> Any:
        predictions = model.decoder.apply(params["decoder"], latents)
        return models.reconstruction_losses(model, predictions, steps["observation"])

    yield run("decoder", _learned(decode), params, latents)

    def model_losses(params: Any, latents: Any, stats: Any) -> Any:
        scales = agent.config.losses
        return models.model_losses(model, params, scales, steps, latents, stats, 0.99)[0]

    yield run("decoder, heads and KL", _learned(model_losses), params, latents, stats)
    starts = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), latents)

    def imagine(params: Any, starts: Any) -> Any:
        return behaviors.rollout(behavior, model, params, starts, draws.prior, draws.policy)

    kinds = {behavior.gradient(key) for key in agent.actions}
    if kinds == {"reinforce"}:
        yield run("imagination", lambda *x: vars(imagine(*x)), params, starts)
    else:
        learned = _learned(lambda *x: imagine(*x).returns)
        yield run("imagination", learned, params, starts)
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
    yield run("actor and critic", _learned(actor_critic), *given)
    descend = partial(learning.descend, agent)
    finite = jnp.array(True)
    yield run("optimizer", descend, state, learning.packed(params), params, finite)


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
    yield measured(
        *(subject, budget, "act", lambda: policy(params, time_step, 1), num_envs, "steps"),
        compile_seconds=seconds,
        to_device=nbytes(seen) + num_envs,
        to_host=nbytes(fetched),
    )


def replay(subject: Subject, budget: Budget) -> Iterator[Result]:
    """Adding a step of every environment, sampling a batch, and writing its latents back."""
    settings, num_envs = subject.config.replay, subject.config.env.num_envs
    batch, length = settings.batch_size, settings.batch_length
    filled = host.init(
        subject.spec, _capacity(subject.config), num_envs, length + 1, settings.online
    )
    row, latent = subject.rows(num_envs), subject.rows(batch, length)["latent"]
    while host.num_items(filled) < batch * length:
        host.add(filled, row)
    numbers = itertools.count()

    def sample() -> Any:
        return host.sample(filled, (0, next(numbers)), batch)[2]

    index = sample()
    run = partial(measured, subject, budget)
    yield run("replay add", lambda: host.add(filled, row).steps, num_envs, "steps")
    yield run("replay sample", sample, batch, "windows")
    yield run("replay update", lambda: host.update(filled, index, latent).steps, batch, "windows")


def device_replay(subject: Subject, budget: Budget) -> Iterator[Result]:
    """The same three in the memory of the first device, each as a compiled call of its own."""
    settings, num_envs = subject.config.replay, subject.config.env.num_envs
    batch, length = settings.batch_size, settings.batch_length
    capacity = _capacity(subject.config)
    stored = device.init(subject.spec, capacity, num_envs, length + 1, settings.online)
    stored = dataclasses.replace(stored, steps=jnp.int32(capacity // num_envs))  # it is full
    stored, row, latent = mesh.to_device(
        (stored, subject.rows(num_envs), subject.rows(batch, length)["latent"])
    )
    # Without the replay among the results, which would be copied.
    sampled = jax.jit(lambda stored, key: device.sample(stored, key, batch)[1:])
    drawn = sampled(stored, subject.key)

    def changing(change: Callable, *args: Any) -> Callable:
        compiled = jax.jit(change, donate_argnums=0)

        def call() -> Any:
            nonlocal stored
            stored = compiled(stored, *args)
            return stored

        return call

    run = partial(measured, subject, budget)
    calls: list[tuple[str, Callable, int, str, Any]] = [
        ("add", changing(device.add, row), num_envs, "steps", row),
        ("sample", lambda: sampled(stored, subject.key), batch, "windows", drawn),
        ("update", changing(device.update, drawn[1], latent), batch, "windows", latent),
    ]
    for what, call, count, unit, moved in calls:
        yield run(f"device replay {what}", call, count, unit, moved=2.0 * nbytes(moved))


def env(config: Config, budget: Budget) -> Result:
    """Environment steps with random actions, without an agent."""
    count = config.env.num_envs
    with contextlib.closing(registry.make(config.env, count, config.seed)) as batched:
        batched.reset()
        rng = np.random.default_rng(config.seed)
        actions = random_action(batched.action_spec(), count, rng)
        timing = measure(lambda: batched.step(actions).reward, budget)
    return Result("environment", "", config.env.name, timing, per_call=count, unit="steps")


def loop(config: Config, budget: Budget) -> Result:
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
            iterations = 1 if loop.where == "device" else _iterations_per_update(config)
            calls, start = 0, loop.step

            def call() -> Any:
                nonlocal calls
                calls += 1
                for _ in range(iterations):
                    loop.advance(2**63)
                return loop.learner.state

            timing = measure(call, budget)
            count = (loop.step - start) / calls
            return Result("loop", config.size, config.env.name, timing, count, unit="steps")


def _iterations_per_update(config: Config) -> int:
    """Iterations of the loop between two calls that update."""
    replayed = config.replay.batch_size * config.replay.batch_length
    updates = config.replay.train_ratio * config.env.num_envs / replayed
    return max(1, round(config.run.updates_per_call / updates))


def _capacity(config: Config) -> int:
    """Steps of a replay that is soon full."""
    steps = (4 * config.replay.batch_size + config.env.num_envs) * config.replay.batch_length
    return min(config.replay.capacity, steps)


def _batch(subject: Subject, count: int) -> dict[str, Any]:
    """Random batches as `replay.sample` gives them, leaves [count, B, T + 1, ...]."""
    settings = subject.config.replay
    rows = subject.rows(count, settings.batch_size, settings.batch_length + 1)
    return rows | {"latent": jax.tree.map(lambda x: x[:, :, :1], rows["latent"])}


def _learned(function: Callable) -> Callable:
    """The gradients of the sum of all results of a function with respect to its arguments."""

    def total(*args: Any) -> jax.Array:
        return sum(x.astype(jnp.float32).sum() for x in jax.tree.leaves(function(*args)))

    def gradients(*args: Any) -> Any:
        return jax.grad(total, tuple(range(len(args))))(*args)

    return gradients


PER_SUBJECT = {
    **{"update": update, "parts": parts, "act": act},
    **{"replay": replay, "device_replay": device_replay},
}
