"""Options of the commands; those of training are beside the configuration of a run."""

from typing import Literal

from pydantic import Field

from dreamer.config.section import Count, Platform, Section, Seed, Trust, Whole


class TrainOptions(Section):
    """What `python -m dreamer.train` takes beside the configuration."""

    trust: Trust = False


class AgentOptions(Section):
    """What every command that loads an agent takes."""

    run: str = Field(description="run folder")
    checkpoint: Literal["newest", "best"] = Field("newest", description="best is by evaluation")
    num_envs: Count = Field(4, description="environments stepped together")
    greedy: bool = Field(False, description="mode of the policy instead of a sample")
    seed: Seed = Field(1, description="of environments and policy")
    platform: Platform = Field("auto", description="jax platform")
    trust: Trust = False


class EvalOptions(AgentOptions):
    """What `python -m dreamer.eval` takes."""

    episodes: Count = Field(10, description="whole episodes to play")
    video: bool = Field(False, description="write an mp4 of the first episode")
    out: str = Field(
        "", description="JSON file; empty is evaluation-STEP-seedSEED.json in the run folder"
    )


class ExportOptions(AgentOptions):
    """What `python -m dreamer.export` takes."""

    run: str = Field(description="run folder, or a checkpoint with config.yaml beside it")
    out: str = Field("", description="new folder; empty is policy-STEP in the run folder")
    format: Literal["stablehlo", "onnx"] = Field(
        "stablehlo", description="for jax, or for onnxruntime"
    )
    greedy: bool = Field(True, description="mode of the policy instead of a sample")
    num_envs: Whole = Field(0, description="batch size; 0 is any, with onnx 1")
    platforms: str = Field(
        "cpu,cuda", description="platforms that StableHLO runs on: some of cpu, cuda, rocm, tpu"
    )
    steps: Count = Field(
        250, description="observations per environment on which policy and agent are compared"
    )
    seed: Seed = Field(
        1, description="of random observations where the checkpoint has no replay to read"
    )


class CollectOptions(AgentOptions):
    """Plays episodes and saves them."""

    out: str = Field(description="new folder for the episodes")
    run: str = Field(
        "", description="run folder of the agent; empty is random actions in the env of env="
    )
    episodes: Count = Field(100, description="whole episodes to play")


class ToMinariOptions(Section):
    """Saves recorded episodes as a Minari dataset on this machine."""

    source: str = Field(description="folder of saved episodes, or run folder for its replay")
    dataset: str = Field(description="id of the new dataset: NAME-v0, or NAMESPACE/NAME-v0")
    trust: Trust = False


class InfoOptions(Section):
    """Describes recorded episodes."""

    source: str = Field(description="folder of saved episodes, minari:DATASET_ID, or run folder")
    trust: Trust = False
