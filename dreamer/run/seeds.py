"""Runs of several seeds, computed together on the same devices.

Each is a run of its own, with the folder, metrics and checkpoints that it would have alone; only
the compiled calls are one, with an axis for the seeds. Small networks leave most of an accelerator
idle, which this fills.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dreamer import files, parallel
from dreamer.agent.agent import State
from dreamer.config import Config
from dreamer.envs import registry
from dreamer.errors import UserError
from dreamer.run import device_memory, folder, paths, shares
from dreamer.run.callbacks import Callback, Callbacks
from dreamer.run.device_loop import Call, DeviceLoop, World, program
from dreamer.run.loop import Trainer, saved_first
from dreamer.run.policy import transition_spec
from dreamer.run.rollback import RolledBack
from dreamer.run.signals import StopRequest


def train(
    config: Config, stop: StopRequest | None = None, callbacks: Sequence[Callback] = ()
) -> None:
    """Trains `run.seeds` runs, each until `run.steps` or until a signal or a callback asks to stop.

    Raises:
      UserError: what the user can mend, before anything is written.
    """
    config = shares.joined(config)
    told = Callbacks(callbacks)
    stop = stop or StopRequest()
    once = _train_alone if config.run.seeds == 1 else _train_together
    trainers: list[Trainer] = []
    with stop.grace(config.run.grace_seconds, partial(_last_words, config, trainers)):
        while True:
            try:
                return once(config, stop, told, trainers)
            except RolledBack:
                trainers.clear()
                stop.saves = 0  # those asked for were heeded


def _train_alone(
    config: Config, stop: StopRequest, told: Callbacks, trainers: list[Trainer]
) -> None:
    """Trains one run, which is put into the list when it is made."""
    with Trainer(config, stop, callbacks=told) as trainer:
        trainers.append(trainer)
        trainer.run()


def _train_together(
    config: Config, stop: StopRequest, told: Callbacks, trainers: list[Trainer]
) -> None:
    """Trains `run.seeds` runs, which are put into the list as they are made."""
    configs = split(config)
    _check(config, configs)
    with ExitStack() as stack:
        for one in configs:
            leader = trainers[0] if trainers else None
            trainers.append(stack.enter_context(Trainer(one, stop, leader, told)))
        begun: list[Trainer] = []
        with saved_first(begun):
            for trainer in trainers:
                if trainer.begin():
                    begun.append(trainer)
            _run(begun)
            for trainer in reversed(begun):  # the others use the display of the first
                trainer.finish()


def _last_words(config: Config, trainers: list[Trainer]) -> str:
    kept = "; ".join([trainer.kept for trainer in trainers]) or "nothing was begun"
    return f"run.grace_seconds={config.run.grace_seconds:g} are over, this is the end: {kept}"


def split(config: Config) -> list[Config]:
    """The configuration of each run.

    Raises:
      UserError: the runs cannot be computed together, or a link is in place of a folder.
    """
    count = config.run.seeds
    if config.seed + count > 2**32:
        raise UserError(f"run.seeds={count} from seed={config.seed} on leaves the range of seeds")
    if config.checkpoint.dir:
        raise UserError(
            f"checkpoint.dir={config.checkpoint.dir} is one folder for run.seeds={count} runs; "
            "leave it out, each run has its own"
        )
    name = paths.run_folder(config)
    seeds = range(config.seed, config.seed + count)
    files.refuse_links(name.parent, *(f"{name.name}-seed{seed}" for seed in seeds))
    made = []
    for seed in seeds:
        run = config.run.model_copy(update={"dir": f"{name}-seed{seed}", "seeds": 1})
        made.append(config.model_copy(update={"seed": seed, "run": run}))
    return made


def _check(config: Config, configs: list[Config]) -> None:
    """Refuses what one of the runs would, before the others have begun.

    Raises:
      UserError: one of the folders is not for it, the environments are not written in JAX, or the
        replays of all runs do not fit.
    """
    if config.run.loop == "host" or not registry.is_jax(config.env):
        raise UserError(
            f"run.seeds={config.run.seeds} needs environments written in JAX and the device loop; "
            "start a run for every seed=N instead"
        )
    for one in configs:
        path = paths.run_folder(one)
        folder.check(path)
        paths.refuse_changes(one, path)
    devices = parallel.local_devices(config.platform, config.devices, config.replay.batch_size)
    simulator = registry.make_jax(config.env).simulator
    specs = simulator.observations, simulator.actions
    agent = device_memory.make_agent(config, specs, devices, config.run.seeds)
    device_memory.check(config, transition_spec(agent), devices, "fewer run.seeds")


def _run(trainers: list[Trainer]) -> None:
    """The turns of all runs; those that stopped behind the others catch up first, alone."""
    if not trainers:
        return
    furthest = max(trainer.step for trainer in trainers)
    for trainer in trainers:
        while trainer.step < furthest and trainer.unfinished:
            trainer.after(trainer.loop.turn())
    if trainers[0].stop.requested:
        return
    if len({trainer.step for trainer in trainers}) > 1:
        steps = ", ".join(f"seed {t.config.seed} at {t.step:,}" for t in trainers)
        raise UserError(
            f"the runs have no step in common to go on from together ({steps}); finish those ahead "
            "or behind alone, by run.seeds=1 with their seed= and run.dir="
        )
    together = Together([trainer.loop for trainer in trainers])
    while trainers[0].unfinished:
        for trainer, episodes in zip(trainers, together.turn(), strict=True):
            trainer.after(episodes)


class Together:
    """Loops at the same step of their runs, whose turns are one compiled call.

    Args:
      loops: of the same configuration but for the seed; they give what they hold to this group.
    """

    def __init__(self, loops: list[Any]) -> None:
        self._loops: list[DeviceLoop] = loops
        self._devices = loops[0].devices
        states, worlds = zip(*[loop.join(self) for loop in loops], strict=True)
        spread = (0,) * len(loops)
        shares = parallel.compile_shares(_stack, self._devices, spread, 0, donate=())
        self._state: State = _stacked(jax.jit(_stack), list(states))
        self._world: World = _stacked(shares, list(worlds))
        self._state_of = jax.jit(_of)
        self._part_of = parallel.compile_shares(_of, self._devices, (0, None), 0, donate=())
        self._program = cache(partial(program, self._compute, self._devices))

    def turn(self) -> list[list[tuple[float, int]]]:
        """Dispatches one call; gives the episodes that the one before ended, by loop."""
        first = self._loops[0]
        call = first.next_call()
        self._state, self._world, metrics, episodes = self._program(call)(
            self._state, self._world, first.number
        )
        for loop in self._loops:  # only the first was traced
            loop.metrics.names = first.metrics.names
        return [
            loop.advance(call, *measured)
            for loop, *measured in zip(self._loops, metrics, episodes, strict=True)
        ]

    def _compute(self, call: Call, state: State, world: World, step: jax.Array) -> tuple:
        """One device's share of a call of all loops, metrics and episodes as a list of them."""
        compute = partial(self._loops[0].compute, call)
        state, world, *measured = jax.vmap(compute, (0, 0, None))(state, world, step)
        count = range(len(self._loops))
        return state, world, *([_of(x, number) for number in count] for x in measured)

    def state_of(self, loop: DeviceLoop) -> State:
        """A copy of what this loop learned."""
        return self._state_of(self._state, self._number(loop))

    def part_of(self, loop: DeviceLoop, name: str) -> Any:
        """A copy of a part of its world, leaves [X, ...]."""
        return self._part_of(getattr(self._world, name), self._number(loop))

    def _number(self, loop: DeviceLoop) -> np.int32:
        return np.int32(self._loops.index(loop))


def _stack(*arrays: jax.Array) -> jax.Array:
    return jnp.stack(arrays)


def _stacked(stack: Any, trees: list[Any]) -> Any:
    """Trees as one, array by array: both forms of all of them might not fit into memory."""
    structure = jax.tree.structure(trees[0])
    columns = [list(leaves) for leaves in zip(*map(jax.tree.leaves, trees), strict=True)]
    trees.clear()
    columns.reverse()
    return jax.tree.unflatten(structure, [stack(*columns.pop()) for _ in range(len(columns))])


def _of(tree: Any, number: Any) -> Any:
    return jax.tree.map(lambda x: x[number], tree)
