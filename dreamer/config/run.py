"""Replay, evaluation, checkpoints, logging and the run."""

from typing import Annotated, Literal

from pydantic import Field

from dreamer.config.agent import Module
from dreamer.config.section import (
    INT32,
    Count,
    LongCount,
    LongWhole,
    Seconds,
    Section,
    Whole,
)


class ReplayConfig(Section):
    capacity: LongCount = Field(
        5_000_000, description="steps over all environments; the oldest are dropped"
    )
    batch_size: Count = Field(16, description="sequences per update over all devices")
    batch_length: Annotated[int, Field(ge=2, le=INT32)] = Field(
        64, description="steps trained per sequence, the context step not counted"
    )
    online: bool = Field(
        True, description="train on every new sequence once before uniform sampling"
    )
    train_ratio: Annotated[float, Field(gt=0, le=1e6)] = Field(
        32.0, description="replayed steps per environment step"
    )
    load: str = Field(
        "",
        description="recorded episodes to fill a new replay with: minari:DATASET_ID, a folder of "
        "saved episodes, or a run folder for its replay",
    )
    where: Literal["auto", "device", "host"] = Field(
        "auto",
        description="memory that stores it; auto is the device if it has memory of its own and "
        "the capacity fits",
    )
    folder: str = Field(
        "", description="for a replay on the host in files of this folder; empty is in memory"
    )
    prefetch: Literal["auto", "thread", "none"] = Field(
        "auto",
        description="sample batches of a replay on the host one call ahead in a thread; auto is "
        "thread on accelerators",
    )


class EvalConfig(Section):
    every: LongWhole = Field(0, description="environment steps between evaluations; 0 is never")
    episodes: Count = Field(10, description="episodes of one evaluation")
    num_envs: Count = Field(
        4, description="environments stepped together; at most episodes of them are used"
    )
    greedy: bool = Field(
        False, description="mode of the policy instead of a sample (the reference samples)"
    )


class CheckpointConfig(Section):
    dir: str = Field("", description="folder; empty is `checkpoints` inside the run folder")
    every_seconds: Seconds = Field(
        900.0, description="seconds between saves; 0 saves at every step of the loop"
    )
    every_steps: LongWhole = Field(
        0, description="environment steps between saves; 0 is by time only"
    )
    keep: Count = Field(
        2,
        description="newest checkpoints kept beside the best by evaluation; with 2 or more, a run "
        "can roll back if the newest is damaged",
    )


class LogConfig(Section):
    every_seconds: Seconds = Field(10.0, description="seconds between lines of metrics")
    video_every: LongWhole = Field(0, description="environment steps between videos; 0 is never")
    tensorboard: bool = Field(True, description="write TensorBoard events beside metrics.jsonl")
    progress: Literal["auto", "bar", "plain", "none"] = Field(
        "auto", description="progress display while training; auto is a bar in a terminal"
    )


class RunConfig(Section):
    dir: str = Field(
        "", description="run folder; empty is a name made of the options; the same folder resumes"
    )
    steps: LongCount = Field(
        1_000_000,
        description="total environment steps, rounded up to whole iterations of the loop",
    )
    offline: bool = Field(
        False,
        description="learn from replay.load alone; every key that counts steps then counts updates",
    )
    init_from: str = Field(
        "",
        description="initial weights of a new run: folder of a run, for its newest checkpoint, or "
        "of one checkpoint",
    )
    init_modules: tuple[Module, ...] = Field(
        (), description="networks to load from run.init_from; empty is all"
    )
    grace_seconds: Seconds = Field(
        0.0,
        description="seconds after SIGTERM after which the run ends even without a save; 0 is no "
        "limit",
    )
    updates_per_call: Annotated[int, Field(ge=1, le=10_000)] = Field(
        1, description="gradient updates compiled into one call"
    )
    loop: Literal["auto", "host", "device"] = Field(
        "auto",
        description="where environments step; auto is device for suites in JAX",
    )
    policy_device: Literal["train", "cpu"] = Field(
        "train",
        description="where the host loop computes actions: the first training device, or CPU",
    )
    policy_lag: Annotated[int, Field(ge=0, le=100)] = Field(
        0,
        description="iterations by which the weights of the host loop's policy may be behind, with "
        "policy_device=cpu",
    )
    actors: Literal["local", "ray"] = Field(
        "local",
        description="where environments and their policy run: in this process, or in Ray actors on "
        "one or more machines",
    )
    num_actors: Count = Field(
        1, description="Ray actors, over which the environments are split; each uses a CPU"
    )
    ray_address: str = Field(
        "",
        description="Ray cluster, such as 10.0.0.1:6379; empty is RAY_ADDRESS, else a new cluster "
        "on this machine",
    )
    weights_every: Count = Field(
        4, description="updates between broadcasts of the weights to Ray actors"
    )
    seeds: Count = Field(
        1,
        description="runs of the device loop trained together, with seed, seed + 1, ...; each has "
        "its own folder, run.dir-seedN",
    )
    max_skipped: Count = Field(
        100,
        description="consecutive updates skipped because loss or gradient is not finite, before "
        "the run rolls back to its last good checkpoint",
    )
    max_rollbacks: Whole = Field(3, description="rollbacks before the run ends")
    coordinator: str = Field(
        "",
        description="host:port of process 0 of several hosts; empty is one process, or detected on "
        "SLURM, Open MPI and TPU pods; auto is detected by jax, none is always one process",
    )
    num_processes: Whole = Field(
        0, description="processes that train together, with run.coordinator=HOST:PORT"
    )
    process_id: Annotated[int, Field(ge=-1, le=INT32)] = Field(
        -1, description="number of this process, from 0, with run.coordinator=HOST:PORT"
    )
    join_seconds: Annotated[float, Field(gt=0, le=1e9)] = Field(
        300.0, description="seconds in which all of several hosts must join"
    )
    accept_changes: bool = Field(
        False, description="resume although the configuration differs from the saved one"
    )
