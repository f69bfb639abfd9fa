"""The plan of a run, printed at its start; counts are environment steps, before action repeat."""

from collections.abc import Sequence
from typing import Any

from dreamer.config import Config
from dreamer.replay import memory


def plan(
    config: Config,
    weights: int,
    transition_spec: dict[str, Any],
    devices: Sequence[Any],
    stored: str = "host memory",
    loaded: int = 0,
) -> str:
    """Lines on the task, the agent, the updates and the replay.

    Args:
      config: configuration of the run.
      weights: number of trained parameters.
      transition_spec: shapes and dtypes of one replayed step.
      devices: devices that train.
      stored: where the replay is stored.
      loaded: recorded steps in the replay at the start.
    """
    replay, run = config.replay, config.run
    per_update = replay.batch_size * replay.batch_length
    per_step = replay.train_ratio / per_update
    start = max(0, config.first_update - loaded)
    updates = max(0, int((run.steps - start) * per_step))
    needed = memory.gib(memory.nbytes(transition_spec, replay.capacity))
    frames = f" ({run.steps * config.env.repeat:,} frames)" if config.env.repeat > 1 else ""
    where = f"{len(devices)} {devices[0].device_kind} device{'s' if len(devices) > 1 else ''}"
    each = f"each of {replay.batch_size} x {replay.batch_length} = {per_update:,} replayed steps"
    acting = {
        "steps": f"{run.steps:,} environment steps{frames}",
        "replayed": f"{replay.train_ratio:g} steps per environment step",
        "updates": f"{per_step:g} per environment step from {start:,} on, {updates:,} in total, "
        f"{each}",
    }
    offline = {
        "updates": f"{run.steps:,}, {each}",
        "replayed": f"{run.steps * per_update / max(1, loaded):,.1f} times each recorded step",
    }
    recorded = f", of which {loaded:,} are recorded" if loaded else ""
    rows = {
        "task": f"{config.env.suite} {config.env.name}, "
        + ("offline" if run.offline else f"{config.env.num_envs} environments")
        + (f" in {run.num_actors} actors on Ray" if run.actors == "ray" else ""),
        "agent": f"{config.size}, {weights:,} parameters, on {where}",
        **(offline if run.offline else acting),
        "replay": f"{needed} in {stored} for {replay.capacity:,} steps{recorded}",
    }
    return "\n".join(f"{name:>9}  {text}" for name, text in rows.items())
