"""The configuration schema: frozen, closed and validated.

Every default is the published value unless said. Source: Hafner et al. 2025, "Mastering diverse
control tasks through world models", and its reference code. Units: a step is one decision of the
agent in one environment (action repeat not counted); an update is one gradient step.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from dreamer.config.agent import AgentConfig
from dreamer.config.env import Env, GymnasiumEnv
from dreamer.config.run import CheckpointConfig, EvalConfig, LogConfig, ReplayConfig, RunConfig
from dreamer.config.section import Count, Section, Whole, Word


class Config(Section):
    """The whole configuration of a run."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(0, description="of everything random")
    platform: Literal["auto", "cpu", "gpu", "tpu"] = Field(
        "auto", description="what to train on; auto is the best that is present"
    )
    devices: Whole = Field(0, description="local devices to train on; 0 is all")
    xla_flags: str = Field(
        "",
        description="flags for jax's compiler, such as --xla_gpu_graph_min_graph_size=5; those of "
        "the environment's XLA_FLAGS win",
    )
    size: str = Field("200m", description="name of the chosen size, for display")
    env: Env = GymnasiumEnv()
    agent: AgentConfig = AgentConfig()
    replay: ReplayConfig = ReplayConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()
    run: RunConfig = RunConfig()

    def __repr__(self) -> str:
        where = f", run.dir={self.run.dir}" if self.run.dir else ""
        return f"Config({self.env.suite} {self.env.name}, {self.size}, seed={self.seed}{where})"

    __str__ = __repr__

    @property
    def first_update(self) -> int:
        """Environment step from which updates are owed: when the replay holds batch_size *
        batch_length different sequences of batch_length + 1 steps."""
        sequences = self.replay.batch_size * self.replay.batch_length
        of_each = -(-sequences // self.env.num_envs)  # rounded up
        return self.env.num_envs * (of_each + self.replay.batch_length)

    @property
    def updates(self) -> int:
        """Gradient updates of the whole run."""
        if self.run.offline:
            return self.run.steps
        per_step = self.replay.train_ratio / (self.replay.batch_size * self.replay.batch_length)
        return int(max(0, self.run.steps - self.first_update) * per_step)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for message, is_wrong in self._rules().items():
            if is_wrong:
                raise ValueError(message)
        return self

    def _rules(self) -> dict[str, Any]:
        """Conditions under which sections do not go together, by what is wrong then."""
        run, replay, num_envs = self.run, self.replay, self.env.num_envs
        remote = run.actors != "local"
        acting = {  # options of runs that act in this process
            "run.loop=device": run.loop == "device",
            f"run.seeds={run.seeds}": run.seeds > 1,
            f"run.policy_device={run.policy_device}": run.policy_device != "train",
            f"run.policy_lag={run.policy_lag}": run.policy_lag > 0,
        }
        return {
            f"replay.capacity={replay.capacity} is too small: training starts when the replay "
            f"holds batch_size * batch_length = {replay.batch_size * replay.batch_length} "
            f"sequences of batch_length + 1 = {replay.batch_length + 1} steps, with "
            f"env.num_envs={num_envs}; raise it to at least {self.first_update}": (
                replay.capacity < self.first_update
            ),
            f"replay.folder={replay.folder} is for a replay on the host, not for "
            "replay.where=device; leave out one of them": (
                replay.folder and replay.where == "device"
            ),
            f"run.init_modules=[{','.join(run.init_modules)}] come from another run; name it with "
            "run.init_from=PATH": run.init_modules and not run.init_from,
            "run.offline=true learns from recorded episodes alone; name them with "
            "replay.load=minari:DATASET_ID or replay.load=FOLDER": run.offline and not replay.load,
            **{
                f"{option} is for runs that act, which run.offline=true does not; leave out one of "
                "them": run.offline and given
                for option, given in acting.items()
            },
            f"run.num_actors={run.num_actors} is for run.actors=ray; add it": (
                not remote and run.num_actors > 1
            ),
            f"env.num_envs={num_envs} cannot be split over run.num_actors={run.num_actors}; make "
            "it a multiple of them": remote and num_envs % run.num_actors,
            **{
                f"{option} does not go with run.actors={run.actors}, whose actors act on CPU while "
                "the learner learns; leave out one of them": remote and given
                for option, given in {**acting, "run.offline=true": run.offline}.items()
            },
        }


class TrainOptions(Section):
    """What `python -m dreamer.train` takes beside the configuration."""

    trust: Word = False


class EvalOptions(Section):
    """What `python -m dreamer.eval` takes."""

    run: str = Field(description="run folder")
    episodes: Count = Field(10, description="whole episodes to play")
    num_envs: Count = Field(4, description="environments stepped together")
    greedy: bool = Field(False, description="mode of the policy instead of a sample")
    checkpoint: Literal["newest", "best"] = Field("newest", description="best is by evaluation")
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(1, description="of environments and policy")
    video: bool = Field(False, description="write an mp4 of the first episode")
    out: str = Field(
        "", description="JSON file; empty is evaluation-STEP-seedSEED.json in the run folder"
    )
    platform: Literal["auto", "cpu", "gpu", "tpu"] = Field("auto", description="jax platform")
    trust: Word = False


class ExportOptions(Section):
    """What `python -m dreamer.export` takes."""

    run: str = Field(description="run folder, or a checkpoint with config.yaml beside it")
    out: str = Field("", description="folder to make; empty is policy-STEP in the run folder")
    checkpoint: Literal["newest", "best"] = Field("newest", description="best is by evaluation")
    format: Literal["stablehlo", "onnx"] = Field(
        "stablehlo", description="for jax, or for onnxruntime"
    )
    greedy: bool = Field(True, description="mode of the policy instead of a sample")
    num_envs: Whole = Field(
        0, description="environments acted in together; 0 is any number, with onnx 1"
    )
    platforms: str = Field(
        "cpu,cuda", description="what StableHLO may run on: some of cpu, cuda, rocm, tpu"
    )
    steps: Count = Field(
        250, description="observations of each environment on which policy and agent are compared"
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(
        1, description="of these observations where the checkpoint has no replay to take them from"
    )
    platform: Literal["auto", "cpu", "gpu", "tpu"] = Field("auto", description="jax platform")
    trust: Word = False
