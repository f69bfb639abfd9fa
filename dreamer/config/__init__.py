"""The configuration schema: frozen, closed and validated.

Every default is the published value unless said. Source: Hafner et al. 2025, "Mastering diverse
control tasks through world models", and its reference code. Units: a step is one decision of the
agent in one environment (action repeat not counted); an update is one gradient step.
"""

from typing import Any

from pydantic import Field

from dreamer.config.agent import AgentConfig
from dreamer.config.env import Env, GymnasiumEnv
from dreamer.config.run import CheckpointConfig, EvalConfig, LogConfig, ReplayConfig, RunConfig
from dreamer.config.section import Platform, Section, Seed, Whole


class Config(Section):
    """The whole configuration of a run."""

    seed: Seed = Field(0, description="of everything random")
    platform: Platform = Field(
        "auto", description="what to train on; auto is the best that is available"
    )
    devices: Whole = Field(0, description="local devices to train on; 0 is all")
    xla_flags: str = Field(
        "",
        description="flags of XLA, such as --xla_gpu_graph_min_graph_size=5; those of the variable "
        "XLA_FLAGS win",
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
        """Environment step of the first update: when the replay holds batch_size * batch_length
        different sequences of batch_length + 1 steps."""
        sequences = self.replay.batch_size * self.replay.batch_length
        per_env = -(-sequences // self.env.num_envs)  # rounded up
        return self.env.num_envs * (per_env + self.replay.batch_length)

    @property
    def updates(self) -> int:
        """Gradient updates of the whole run; recorded steps in the replay add some."""
        if self.run.offline:
            return self.run.steps
        per_step = self.replay.train_ratio / (self.replay.batch_size * self.replay.batch_length)
        return int(max(0, self.run.steps - self.first_update) * per_step)

    def _problems(self) -> dict[str, Any]:
        run, replay, num_envs = self.run, self.replay, self.env.num_envs
        remote = run.actors != "local"
        acting = {  # options of runs that act in this process
            "run.loop=device": run.loop == "device",
            f"run.seeds={run.seeds}": run.seeds > 1,
            f"run.policy_device={run.policy_device}": run.policy_device != "train",
            f"run.policy_lag={run.policy_lag}": run.policy_lag > 0,
        }
        optimizer = self.agent.optimizer
        return {
            f"agent.optimizer.anneal={optimizer.anneal} of {self.updates} updates ends before "
            f"agent.optimizer.warmup={optimizer.warmup}; lower warmup, or raise run.steps": (
                0 < optimizer.anneal * self.updates <= optimizer.warmup < self.updates
            ),
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
