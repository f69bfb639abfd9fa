"""The configuration schema: frozen, closed and validated.

Every default is the published value unless said. Source: Hafner et al. 2025, "Mastering diverse
control tasks through world models", and its reference code. Units: a step is one decision of the
agent in one environment (action repeat not counted); an update is one gradient step.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, le=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Mults = Annotated[tuple[Count, ...], Field(min_length=1)]


class Section(BaseModel):
    """A part of the configuration: immutable, and a key that is not declared is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_boolean_numbers(cls, data: Any) -> Any:
        """Python counts True as 1; as a word it is refused where a number belongs."""
        fields = cls.model_fields if isinstance(data, dict) else {}
        numbers = {name for name, field in fields.items() if field.annotation not in (bool, str)}
        return {n: _as_words(v) if n in numbers else v for n, v in data.items()} if fields else data


def _as_words(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_as_words(part) for part in value]
    return str(value).lower() if isinstance(value, bool) else value


# ------------------------------------------------------------------------------------- environments


class EnvBase(Section):
    """What every suite has."""

    task: str = Field(description="name of the task within the suite")
    num_envs: Count = Field(1, description="environments stepped together for training")
    workers: Literal["auto", "serial", "process"] = Field(
        "auto",
        description="where they run: this process, one process each, or whichever is faster",
    )
    repeat: Count = Field(1, description="raw environment steps per agent step, rewards summed")
    time_limit: Annotated[int, Field(ge=0)] = Field(
        0, description="agent steps until truncation; 0 keeps the environment's own limit"
    )
    image_size: tuple[Count, Count] = Field(
        (64, 64), description="height and width of images, pixels"
    )


class GymnasiumEnv(EnvBase):
    """Any registered id of an installed gymnasium package."""

    suite: Literal["gymnasium"] = "gymnasium"
    task: str = Field("CartPole-v1", description="gymnasium id")
    pixels: bool = Field(
        False, description="learn from the rendered frame instead of the observation"
    )


class AtariEnv(EnvBase):
    """The Arcade Learning Environment as published (Machado et al. 2018; Hafner et al. 2025)."""

    suite: Literal["atari"] = "atari"
    task: str = Field("pong", description="game in snake case")
    repeat: Count = Field(4, description="raw frames per agent step, rewards summed")
    image_size: tuple[Count, Count] = Field(
        (96, 96), description="height and width of images, pixels"
    )
    time_limit: Annotated[int, Field(ge=0)] = Field(
        27_000, description="agent steps until truncation; as published, 108,000 raw frames"
    )
    sticky: Fraction = Field(
        0.25, description="probability that the emulator repeats the last action"
    )
    gray: bool = Field(True, description="one luminance channel instead of RGB")
    actions: Literal["all", "needed"] = Field(
        "all", description="the 18 legal actions or the game's minimal set"
    )
    noops: Annotated[int, Field(ge=0)] = Field(
        30, description="most random no-op frames after a reset"
    )
    lives: Literal["unused", "discount", "reset"] = Field(
        "unused",
        description="what losing a life does: nothing, terminal flag, or end of the episode",
    )
    pooling: Annotated[int, Field(ge=1)] = Field(
        2, description="last raw frames of a step max-pooled into the image"
    )
    clip_reward: bool = Field(False, description="sign of the reward instead of the reward")
    backend: Literal["emulator", "vector"] = Field(
        "emulator",
        description="each game frame by frame as published, or ale_py's own AtariVectorEnv, whose "
        "images differ a little",
    )


class GymnaxEnv(EnvBase):
    """Tasks of gymnax, written in JAX."""

    suite: Literal["gymnax"] = "gymnax"
    task: str = Field("CartPole-v1", description="gymnax id")


class CraftaxEnv(EnvBase):
    """Craftax and Craftax-Classic, written in JAX."""

    suite: Literal["craftax"] = "craftax"
    task: str = Field("Craftax-Classic-Symbolic-v1", description="Craftax id")


class NavixEnv(EnvBase):
    """The grid worlds of NAVIX, written in JAX."""

    suite: Literal["navix"] = "navix"
    task: str = Field("Navix-DoorKey-5x5-v0", description="NAVIX id")
    view: Literal["symbolic", "symbolic_first_person", "rgb", "rgb_first_person"] = Field(
        "symbolic_first_person",
        description="what is seen: the cells as classes or an image, of the whole grid or before "
        "the player",
    )


class BraxEnv(EnvBase):
    """The robots of Brax, written in JAX."""

    suite: Literal["brax"] = "brax"
    task: str = Field("ant", description="name of the robot")
    physics: Literal["generalized", "positional", "spring", "mjx"] = Field(
        "generalized", description="how bodies move: exactly, or faster by springs or positions"
    )


class PlaygroundEnv(EnvBase):
    """MuJoCo Playground, written in JAX."""

    suite: Literal["playground"] = "playground"
    task: str = Field("WalkerWalk", description="name of the environment")


Env = Annotated[
    GymnasiumEnv | AtariEnv | GymnaxEnv | CraftaxEnv | NavixEnv | BraxEnv | PlaygroundEnv,
    Field(discriminator="suite"),
]

# -------------------------------------------------------------------------------------------- agent


class RSSMConfig(Section):
    """Recurrent state-space model."""

    latent: Literal["categorical", "gaussian"] = Field(
        "categorical", description="distribution of the stochastic state"
    )
    deter: Count = Field(8192, description="size of the deterministic state; divisible by blocks")
    hidden: Count = Field(1024, description="width of the layers inside the RSSM")
    stoch: Count = Field(32, description="latent variables per step")
    classes: Annotated[int, Field(ge=2, le=256)] = Field(
        64, description="classes of a categorical latent"
    )
    blocks: Count = Field(8, description="blocks of the block-diagonal GRU")
    dynamics_layers: Count = Field(1, description="block-diagonal layers before the GRU gates")
    prior_layers: Count = Field(2, description="layers from deter to the prior")
    posterior_layers: Count = Field(1, description="layers from deter and token to the posterior")
    unimix: Fraction = Field(0.01, description="uniform probability mixed into categorical latents")
    min_std: Positive = Field(0.1, description="smallest standard deviation of a gaussian latent")

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.deter % self.blocks:
            raise ValueError(f"deter={self.deter} must be divisible by blocks={self.blocks}")
        return self


class EncoderConfig(Section):
    layers: Count = Field(3, description="layers for vector observations")
    mults: Mults = Field(
        (2, 3, 4, 4), description="channels of each image stage, times agent.depth"
    )
    kernel: Count = Field(5, description="side of the image kernels, pixels")


class DecoderConfig(Section):
    layers: Count = Field(3, description="layers for vector observations")
    mults: Mults = Field(
        (2, 3, 4, 4), description="channels of each image stage, times agent.depth"
    )
    kernel: Count = Field(5, description="side of the image kernels, pixels")
    blocks: Count = Field(
        8, description="blocks of the projection from deter to the smallest image"
    )


class HeadConfig(Section):
    """An MLP and its output."""

    layers: Count = Field(1, description="hidden layers")


class TwoHotHeadConfig(HeadConfig):
    bins: Annotated[int, Field(ge=3)] = Field(
        255, description="symexp-spaced bins of the two-hot distribution"
    )


class ActorConfig(HeadConfig):
    layers: Count = Field(3, description="hidden layers")
    gradient: Literal["auto", "analytic", "reinforce", "mixed"] = Field(
        "auto", description="analytic goes through the model; auto chooses by the kind of action"
    )
    mix: Fraction = Field(0.1, description="share of reinforce in the mixed gradient")
    entropy: NonNegative = Field(3e-4, description="scale of the entropy bonus")
    unimix: Fraction = Field(
        0.01, description="uniform probability mixed into discrete policies (paper; code: 0)"
    )
    min_std: Positive = Field(0.1, description="smallest standard deviation of a continuous policy")
    max_std: Positive = Field(1.0, description="largest standard deviation of a continuous policy")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_std > self.max_std:
            raise ValueError(f"min_std={self.min_std} must be at most max_std={self.max_std}")
        return self


class CriticConfig(TwoHotHeadConfig):
    layers: Count = Field(3, description="hidden layers")
    slow_rate: Rate = Field(
        0.02, description="step of the slow critic toward the critic, every update"
    )
    slow_scale: NonNegative = Field(
        1.0, description="regularisation of the critic toward the slow critic"
    )


class LossConfig(Section):
    """Scales of the loss terms."""

    reconstruction: NonNegative = Field(1.0, description="scale of every observation's loss")
    reward: NonNegative = Field(1.0, description="scale of the reward loss")
    cont: NonNegative = Field(1.0, description="scale of the continue loss")
    dynamics: NonNegative = Field(1.0, description="scale of the KL that moves the prior")
    representation: NonNegative = Field(0.1, description="scale of the KL that moves the posterior")
    actor: NonNegative = Field(1.0, description="scale of the actor loss")
    critic: NonNegative = Field(1.0, description="scale of the critic loss on imagined states")
    replay_critic: NonNegative = Field(0.3, description="scale of the critic loss on replay")
    free_nats: NonNegative = Field(
        1.0, description="nats of KL per step below which there is no gradient"
    )


class ReturnConfig(Section):
    """Lambda returns and their normaliser."""

    horizon: Annotated[float, Field(ge=1)] = Field(
        333.0, description="steps; the discount is 1 - 1/horizon"
    )
    lam: Fraction = Field(
        0.95, description="lambda of the returns: 0 is one step, 1 is Monte Carlo"
    )
    imagination: Count = Field(15, description="imagined steps H")
    rate: Rate = Field(0.01, description="step of the running percentiles, every update")
    low: Annotated[float, Field(ge=0, le=100)] = Field(5.0, description="lower percentile")
    high: Annotated[float, Field(ge=0, le=100)] = Field(95.0, description="upper percentile")
    floor: Positive = Field(1.0, description="smallest scale that returns are divided by")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low={self.low} must be below high={self.high}")
        return self


class OptimizerConfig(Section):
    """AGC, then RMS scaling, then momentum (LaProp)."""

    learning_rate: Positive = Field(4e-5, description="for every parameter")
    warmup: Annotated[int, Field(ge=0)] = Field(
        1000, description="updates of linear warm-up from 0"
    )
    anneal: Annotated[int, Field(ge=0)] = Field(
        0,
        description="update at which the rate, falling linearly, reaches its last tenth; 0: never",
    )
    agc: Positive = Field(
        0.3, description="largest gradient norm of a tensor as a share of its weight norm"
    )
    beta1: Decay = Field(0.9, description="decay of the momentum")
    beta2: Decay = Field(0.999, description="decay of the mean square")
    eps: Positive = Field(1e-20, description="added to the root mean square")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.anneal and self.anneal <= self.warmup:
            raise ValueError(f"anneal={self.anneal} must be 0 or more than warmup={self.warmup}")
        return self


class AgentConfig(Section):
    compute_dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="activations; auto is bfloat16 on accelerators, float32 on CPU (faster there)",
    )
    backward: Literal["auto", "scan", "batched"] = Field(
        "auto",
        description="gradient of the posterior's loop: jax's own, or with large products outside "
        "the loop for all that can be there; auto is scan on CPU, batched elsewhere",
    )
    units: Count = Field(1024, description="width of every MLP")
    depth: Count = Field(64, description="base channels of the image networks")
    rssm: RSSMConfig = RSSMConfig()
    encoder: EncoderConfig = EncoderConfig()
    decoder: DecoderConfig = DecoderConfig()
    reward: TwoHotHeadConfig = TwoHotHeadConfig()
    cont: HeadConfig = HeadConfig()
    actor: ActorConfig = ActorConfig()
    critic: CriticConfig = CriticConfig()
    losses: LossConfig = LossConfig()
    returns: ReturnConfig = ReturnConfig()
    optimizer: OptimizerConfig = OptimizerConfig()

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        channels = self.depth * self.decoder.mults[-1]
        if channels % self.decoder.blocks:
            raise ValueError(
                f"depth * decoder.mults[-1] = {channels} must be divisible by "
                f"decoder.blocks={self.decoder.blocks}"
            )
        if len(self.encoder.mults) != len(self.decoder.mults):
            raise ValueError(
                f"encoder.mults={self.encoder.mults} and decoder.mults={self.decoder.mults} must "
                "have equally many stages"
            )
        if self.rssm.deter % self.decoder.blocks:
            raise ValueError(
                f"rssm.deter={self.rssm.deter} must be divisible by "
                f"decoder.blocks={self.decoder.blocks}"
            )
        return self


# ----------------------------------------------------------------------------------- replay and run


class ReplayConfig(Section):
    capacity: Count = Field(
        5_000_000, description="steps over all environments; the oldest are dropped"
    )
    batch_size: Count = Field(16, description="sequences per update over all devices")
    batch_length: Annotated[int, Field(ge=2)] = Field(
        64, description="steps trained per sequence, the context step not counted"
    )
    online: bool = Field(
        True, description="train on every new sequence once before uniform sampling"
    )
    train_ratio: Positive = Field(32.0, description="replayed steps per environment step")
    where: Literal["auto", "device", "host"] = Field(
        "auto",
        description="whose memory holds it; auto is the device if it has memory of its own and "
        "the capacity fits",
    )
    folder: str = Field(
        "", description="for a replay on the host in files of this folder; empty is in memory"
    )
    prefetch: Literal["auto", "thread", "none"] = Field(
        "auto",
        description="take batches from a replay on the host one call ahead in a thread; auto does "
        "for accelerators",
    )


class EvalConfig(Section):
    every: Annotated[int, Field(ge=0)] = Field(
        0, description="environment steps between evaluations; 0 is never"
    )
    episodes: Count = Field(10, description="episodes of one evaluation")
    num_envs: Count = Field(
        4, description="environments stepped together; at most episodes of them are used"
    )
    greedy: bool = Field(
        False, description="mode of the policy instead of a sample (the reference samples)"
    )


class CheckpointConfig(Section):
    dir: str = Field("", description="folder; empty is `checkpoints` inside the run folder")
    every_seconds: NonNegative = Field(
        900.0, description="seconds between saves; 0 saves at every step of the loop"
    )
    every_steps: Annotated[int, Field(ge=0)] = Field(
        0, description="environment steps between saves; 0 is by time only"
    )
    keep: Count = Field(1, description="newest checkpoints kept beside the best by evaluation")


class LogConfig(Section):
    every_seconds: NonNegative = Field(10.0, description="seconds between lines of metrics")
    video_every: Annotated[int, Field(ge=0)] = Field(
        0, description="environment steps between videos; 0 is never"
    )
    tensorboard: bool = Field(True, description="write TensorBoard events beside metrics.jsonl")
    progress: Literal["auto", "bar", "plain", "none"] = Field(
        "auto", description="what is shown while training; auto is a bar in a terminal"
    )


class RunConfig(Section):
    dir: str = Field(
        "", description="run folder; empty is named after what was chosen; the same folder resumes"
    )
    steps: Count = Field(
        1_000_000, description="environment steps in all, rounded up to whole turns of the loop"
    )
    updates_per_call: Count = Field(1, description="gradient updates compiled into one call")
    loop: Literal["auto", "host", "device"] = Field(
        "auto",
        description="where environments step; auto is device for suites in JAX",
    )
    policy_device: Literal["train", "cpu"] = Field(
        "train", description="where the host loop computes actions: the first that trains, or CPU"
    )
    policy_lag: Annotated[int, Field(ge=0, le=100)] = Field(
        0,
        description="turns with updates whose weights the host loop's actions do not wait for, "
        "with policy_device=cpu",
    )
    seeds: Count = Field(
        1,
        description="runs of the device loop, of seed, seed + 1, ..., that are computed together; "
        "each has its own folder, run.dir with -seedN after it",
    )
    accept_changes: bool = Field(
        False, description="resume although the configuration differs from the saved one"
    )


class Config(Section):
    """The whole configuration of a run."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(0, description="of everything random")
    platform: Literal["auto", "cpu", "gpu", "tpu"] = Field(
        "auto", description="what to train on; auto is the best that is present"
    )
    devices: Annotated[int, Field(ge=0)] = Field(
        0, description="local devices to train on; 0 is all"
    )
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

    @property
    def first_update(self) -> int:
        """Environment step from which updates are owed: when the replay holds batch_size *
        batch_length different sequences of batch_length + 1 steps."""
        sequences = self.replay.batch_size * self.replay.batch_length
        of_each = -(-sequences // self.env.num_envs)  # rounded up
        return self.env.num_envs * (of_each + self.replay.batch_length)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.replay.capacity < self.first_update:
            raise ValueError(
                f"replay.capacity={self.replay.capacity} is too small: training starts when the "
                "replay holds batch_size * batch_length = "
                f"{self.replay.batch_size * self.replay.batch_length} sequences of batch_length + "
                f"1 = {self.replay.batch_length + 1} steps, with env.num_envs={self.env.num_envs}; "
                f"raise it to at least {self.first_update}"
            )
        if self.replay.folder and self.replay.where == "device":
            raise ValueError(
                f"replay.folder={self.replay.folder} is for a replay on the host, not for "
                "replay.where=device; leave out one of them"
            )
        return self


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
