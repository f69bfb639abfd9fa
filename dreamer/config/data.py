"""What the verbs of `python -m dreamer.data` take."""

from typing import Annotated, Literal

from pydantic import Field

from dreamer.config.section import Count, Section, Word


class CollectOptions(Section):
    """Plays episodes and saves them."""

    out: str = Field(description="new folder for the episodes")
    run: str = Field(
        "", description="run folder whose agent plays; empty is random actions in the env of env="
    )
    episodes: Count = Field(100, description="whole episodes to play")
    num_envs: Count = Field(4, description="environments stepped together")
    greedy: bool = Field(False, description="mode of the policy instead of a sample")
    checkpoint: Literal["newest", "best"] = Field("newest", description="best is by evaluation")
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(1, description="of environments and policy")
    platform: Literal["auto", "cpu", "gpu", "tpu"] = Field("auto", description="jax platform")
    trust: Word = False


class ToMinariOptions(Section):
    """Saves recorded episodes as a Minari dataset on this machine."""

    source: str = Field(description="folder of saved episodes, or of a run for those in its replay")
    dataset: str = Field(description="id of the new dataset: NAME-v0, or NAMESPACE/NAME-v0")
    trust: Word = False


class InfoOptions(Section):
    """Describes recorded episodes."""

    source: str = Field(description="folder of saved episodes, minari:DATASET_ID, or run folder")
    trust: Word = False
