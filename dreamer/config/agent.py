"""The agent: its networks, losses and optimiser.

Every default is the published value unless said. Source: Hafner et al. 2025, "Mastering diverse
control tasks through world models", and its reference code.
An update is one gradient step.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from dreamer.config.section import (
    Decay,
    Fraction,
    Layers,
    Mults,
    NonNegative,
    Positive,
    Rate,
    Section,
    Size,
    Whole,
)

Kernel = Annotated[int, Field(ge=1, le=255)]
NO_CLASS = 255  # class number of the zero state, where no latent is stored

Module = Literal["encoder", "rssm", "decoder", "reward", "cont", "mask", "actor", "critic"]


class RSSMConfig(Section):
    """Recurrent state-space model."""

    latent: Literal["categorical", "gaussian"] = Field(
        "categorical", description="distribution of the stochastic state"
    )
    deter: Size = Field(8192, description="size of the deterministic state; divisible by blocks")
    hidden: Size = Field(1024, description="width of the layers inside the RSSM")
    stoch: Size = Field(32, description="latent variables per step")
    classes: Annotated[int, Field(ge=2, le=NO_CLASS)] = Field(
        64, description="classes of a categorical latent"
    )
    blocks: Size = Field(8, description="blocks of the block-diagonal GRU")
    dynamics_layers: Layers = Field(1, description="block-diagonal layers before the GRU gates")
    prior_layers: Layers = Field(2, description="layers from deter to the prior")
    posterior_layers: Layers = Field(1, description="layers from deter and token to the posterior")
    unimix: Fraction = Field(0.01, description="uniform probability mixed into categorical latents")
    min_std: Positive = Field(0.1, description="smallest standard deviation of a gaussian latent")

    def _problems(self) -> dict[str, Any]:
        return {
            f"deter={self.deter} must be divisible by blocks={self.blocks}": (
                self.deter % self.blocks
            )
        }


class EncoderConfig(Section):
    keys: str = Field(
        ".*",
        description="regular expression of the observations to encode, matched against whole keys",
    )
    layers: Layers = Field(3, description="layers for vector observations")
    mults: Mults = Field(
        (2, 3, 4, 4),
        description="channels of each image stage, times agent.depth; fewer or more are used where "
        "the smallest image would be under 3 or over 16 pixels",
    )
    kernel: Kernel = Field(5, description="side of the image kernels, pixels")


class DecoderConfig(Section):
    keys: str = Field(
        ".*",
        description="regular expression of the observations to predict, matched against whole keys",
    )
    layers: Layers = Field(3, description="layers for vector observations")
    mults: Mults = Field(
        (2, 3, 4, 4),
        description="channels of each image stage, times agent.depth; fewer or more are used where "
        "the smallest image would be under 3 or over 16 pixels",
    )
    kernel: Kernel = Field(5, description="side of the image kernels, pixels")
    blocks: Size = Field(8, description="blocks of the projection from deter to the smallest image")


class HeadConfig(Section):
    """An MLP and its output."""

    layers: Layers = Field(1, description="hidden layers")


class TwoHotHeadConfig(HeadConfig):
    bins: Annotated[int, Field(ge=3, le=2**20)] = Field(
        255, description="symexp-spaced bins of the two-hot distribution"
    )


class ActorConfig(HeadConfig):
    layers: Layers = Field(3, description="hidden layers")
    gradient: Literal["auto", "analytic", "reinforce", "mixed"] = Field(
        "auto", description="analytic is through the model; auto chooses by the kind of action"
    )
    mix: Fraction = Field(0.1, description="fraction of reinforce in the mixed gradient")
    entropy: NonNegative = Field(3e-4, description="scale of the entropy bonus")
    unimix: Fraction = Field(
        0.01, description="uniform probability mixed into discrete policies (paper; code: 0)"
    )
    min_std: Positive = Field(0.1, description="smallest standard deviation of a continuous policy")
    max_std: Positive = Field(1.0, description="largest standard deviation of a continuous policy")

    def _problems(self) -> dict[str, Any]:
        return {
            f"min_std={self.min_std} must be at most max_std={self.max_std}": (
                self.min_std > self.max_std
            )
        }


class CriticConfig(TwoHotHeadConfig):
    layers: Layers = Field(3, description="hidden layers")
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
    mask: NonNegative = Field(1.0, description="scale of the loss of predicted action masks")
    dynamics: NonNegative = Field(1.0, description="scale of the KL that moves the prior")
    representation: NonNegative = Field(0.1, description="scale of the KL that moves the posterior")
    actor: NonNegative = Field(1.0, description="scale of the actor loss")
    critic: NonNegative = Field(1.0, description="scale of the critic loss on imagined states")
    replay_critic: NonNegative = Field(0.3, description="scale of the critic loss on replay")
    free_nats: NonNegative = Field(
        1.0, description="KL per step in nats below which there is no gradient"
    )


class ReturnConfig(Section):
    """Lambda returns and their normaliser."""

    horizon: Annotated[float, Field(ge=1)] = Field(
        333.0, description="steps; the discount is 1 - 1/horizon"
    )
    lam: Fraction = Field(
        0.95, description="lambda of the returns: 0 is one step, 1 is Monte Carlo"
    )
    imagination: Size = Field(15, description="imagined steps H")
    rate: Rate = Field(0.01, description="step of the running percentiles, every update")
    low: Annotated[float, Field(ge=0, le=100)] = Field(5.0, description="lower percentile")
    high: Annotated[float, Field(ge=0, le=100)] = Field(95.0, description="upper percentile")
    floor: Positive = Field(1.0, description="smallest scale that returns are divided by")

    def _problems(self) -> dict[str, Any]:
        return {f"low={self.low} must be below high={self.high}": self.low >= self.high}


class OptimizerConfig(Section):
    """AGC, then RMS scaling, then momentum (LaProp)."""

    learning_rate: Positive = Field(4e-5, description="for every parameter")
    warmup: Whole = Field(1000, description="updates of linear warm-up from 0")
    anneal: Fraction = Field(
        0.0,
        description="share of the run's updates over which the rate falls linearly to a tenth, "
        "from the end of the warm-up on; 0: never",
    )
    agc: Positive = Field(
        0.3, description="largest ratio of the gradient norm of a tensor to its weight norm"
    )
    beta1: Decay = Field(0.9, description="decay of the momentum")
    beta2: Decay = Field(0.999, description="decay of the mean square")
    eps: Positive = Field(1e-20, description="added to the root mean square")


class AgentConfig(Section):
    kind: str = Field("dreamer", description="which agent: dreamer")
    kernels: Literal["auto", "plain", "cpu", "accelerator"] = Field(
        "auto",
        description="implementation of convolutions and of the RSSM step: plain, or faster on one "
        "kind of device, equal up to rounding; auto chooses by platform",
    )
    compute_dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="activations; auto is bfloat16 on accelerators, float32 on CPU (faster there)",
    )
    backward: Literal["auto", "scan", "batched"] = Field(
        "auto",
        description="gradient of the posterior scan: jax's own, or with large matrix products "
        "batched outside of the loop; auto is scan on CPU, batched elsewhere",
    )
    units: Size = Field(1024, description="width of every MLP")
    depth: Size = Field(64, description="base channels of the image networks")
    frozen: tuple[Module, ...] = Field((), description="networks that are not trained")
    rssm: RSSMConfig = RSSMConfig()
    encoder: EncoderConfig = EncoderConfig()
    decoder: DecoderConfig = DecoderConfig()
    reward: TwoHotHeadConfig = TwoHotHeadConfig()
    mask: HeadConfig = HeadConfig()
    cont: HeadConfig = HeadConfig()
    actor: ActorConfig = ActorConfig()
    critic: CriticConfig = CriticConfig()
    losses: LossConfig = LossConfig()
    returns: ReturnConfig = ReturnConfig()
    optimizer: OptimizerConfig = OptimizerConfig()

    def _problems(self) -> dict[str, Any]:
        encoder, decoder = self.encoder, self.decoder
        channels = self.depth * decoder.mults[-1]
        return {
            f"depth * decoder.mults[-1] = {channels} must be divisible by "
            f"decoder.blocks={decoder.blocks}": channels % decoder.blocks,
            f"encoder.mults={encoder.mults} and decoder.mults={decoder.mults} must have equally "
            "many stages": len(encoder.mults) != len(decoder.mults),
            f"rssm.deter={self.rssm.deter} must be divisible by "
            f"decoder.blocks={decoder.blocks}": self.rssm.deter % decoder.blocks,
        }
