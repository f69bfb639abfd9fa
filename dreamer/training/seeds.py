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

from dreamer.checkpoint import paths
from dreamer.config import Config
from dreamer.distributed import mesh
from dreamer.envs import registry
from dreamer.errors import UserError
from dreamer.rollout.driver import transition_spec
from dreamer.system import files
from dreamer.system.signals import StopRequest
from dreamer.training import device_replay
from dreamer.training.callbacks import Callback
from dreamer.training.device_loop import Call, DeviceLoop, World, program
from dreamer.training.hooks.checkpoints import saved_first
from dreamer.training.loop import Episodes, agent_that_fits
from dreamer.training.trainer import Trainer


def train_together(
    config: Config, stop: StopRequest, callbacks: Sequence[Callback], trainers: list[Trainer]
) -> None:
    """Trains `run.seeds` runs, which are added to the list as they are made."""
    configs = split(config)
    _check(config, configs)
    with ExitStack() as stack:
        for one in configs:
            leader = trainers[0] if trainers else None
            trainers.append(stack.enter_context(Trainer(one, stop, callbacks, leader)))
        started: list[Trainer] = []
        with saved_first(started):
            for trainer in trainers:
                started.append(trainer)
                if not trainer.begin():
                    started.remove(trainer)
            _run(started)
            for trainer in reversed(started):  # the others use the display of the first
                trainer.finish()


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
    made = []
    for seed in range(config.seed, config.seed + count):
        files.refuse_links(name.parent, f"{name.name}-seed{seed}")
        run = config.run.model_copy(update={"dir": f"{name}-seed{seed}", "seeds": 1})
        made.append(config.model_copy(update={"seed": seed, "run": run}))
    return made


def _check(config: Config, configs: list[Config]) -> None:
    """Refuses what would fail in one of the runs, before the others start.

    Raises:
      UserError: a folder is not for its run, the environments are not written in JAX, or the agents
        or the replays of all runs do not fit.
    """
    if config.run.loop == "host" or not registry.is_jax(config.env):
        raise UserError(
            f"run.seeds={config.run.seeds} needs environments written in JAX and the device loop; "
            "start a run for every seed=N instead"
        )
    for one in configs:
        paths.checked_run_folder(one)
    devices = mesh.devices_of(config)
    simulator = registry.make_jax(config.env).simulator
    agent = agent_that_fits(config, (simulator.observations, simulator.actions), devices)
    device_replay.check(config, transition_spec(agent), devices, "fewer run.seeds")


def _run(trainers: list[Trainer]) -> None:
    """The iterations of all runs; those that stopped behind the others catch up first, alone."""
    if not trainers:
        return
    furthest = max(trainer.step for trainer in trainers)
    for trainer in trainers:
        while trainer.step < furthest and not trainer.done:
            trainer.after(trainer.loop.advance(trainer.next_step))
    if trainers[0].stop.requested:
        return
    if len({trainer.step for trainer in trainers}) > 1:
        steps = ", ".join(f"seed {t.config.seed} at {t.step:,}" for t in trainers)
        raise UserError(
            f"run.seeds={len(trainers)}: the runs have no step in common from which to continue "
            f"together ({steps}); finish each alone, by run.seeds=1 with its seed= and run.dir="
        )
    together = VmappedSeeds([trainer.loop for trainer in trainers])
    while not trainers[0].done:
        until = min(trainer.next_step for trainer in trainers)
        for trainer, episodes in zip(trainers, together.advance(until), strict=True):
            trainer.after(episodes)


class VmappedSeeds:
    """Loops at the same step of their runs, whose iterations are one compiled call.

    Args:
      loops: of the same configuration except the seed; their state and world move to this group.
    """

    def __init__(self, loops: list[Any]) -> None:
        self._loops: list[DeviceLoop] = loops
        devices = loops[0].devices
        parts = [partial(self._part, np.int32(number)) for number in range(len(loops))]
        states, worlds = map(list, zip(*map(DeviceLoop.join, loops, parts), strict=True))
        shard = mesh.compile_shards(_stack, devices, (0,) * len(loops), 0, donate=())
        self._state: Any = _stacked(jax.jit(_stack), states)
        self._world: World = _stacked(shard, worlds)
        self._state_of = jax.jit(_of)
        self._part_of = mesh.compile_shards(_of, devices, (0, None), 0, donate=())
        self._program = cache(partial(program, self._compute, devices))

    def advance(self, until: int) -> list[Episodes]:
        """Dispatches one call; returns the episodes that the one before ended, by loop."""
        first = self._loops[0]
        call = first.next_call(until)
        self._state, self._world, metrics, episodes = self._program(call)(
            self._state, self._world, first.number
        )
        for loop in self._loops:  # only the first was traced
            loop.metrics.names = first.metrics.names
        return [
            loop.dispatched(call, *measured)
            for loop, *measured in zip(self._loops, metrics, episodes, strict=True)
        ]

    def _compute(self, call: Call, state: Any, world: World, step: jax.Array) -> tuple:
        """One device's shard of a call of all loops, metrics and episodes as a list of them."""
        compute = partial(self._loops[0].compute, call)
        state, world, *measured = jax.vmap(compute, (0, 0, None))(state, world, step)
        count = range(len(self._loops))
        return state, world, *([_of(x, number) for number in count] for x in measured)

    def _part(self, number: np.int32, name: str) -> Any:
        """A copy of the state of a loop, or of a part of its world, leaves [X, ...]."""
        if name == "state":
            return self._state_of(self._state, number)
        return self._part_of(getattr(self._world, name), number)


def _stack(*arrays: jax.Array) -> jax.Array:
    return jnp.stack(arrays)


def _stacked(stack: Any, trees: list[Any]) -> Any:
    """Stacks trees array by array, and empties the list: two copies might not fit into memory."""
    structure = jax.tree.structure(trees[0])
    columns = [list(leaves) for leaves in zip(*map(jax.tree.leaves, trees), strict=True)]
    trees.clear()
    columns.reverse()
    return jax.tree.unflatten(structure, [stack(*columns.pop()) for _ in range(len(columns))])


def _of(tree: Any, number: Any) -> Any:
    return jax.tree.map(lambda x: x[number], tree)
