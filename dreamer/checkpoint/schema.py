"""The schema of `checkpoint.json`: everything in a checkpoint but its arrays."""

import math
import reprlib
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from dreamer.envs import saved_spaces
from dreamer.errors import UserError

FORMAT = 4  # the only one that is written and read

Count = Annotated[int, Field(ge=0, lt=2**63)]
Inside = Annotated[str, Field(pattern=r"^(state|replay)(/[^/\x00]*[^/.\x00][^/\x00]*)+$")]
Positive = Annotated[int, Field(ge=1, lt=2**31)]
Restart = Annotated[tuple[int, str, bool], Field(strict=False)]  # JSON has lists


class Part(BaseModel):
    """A part with exactly these fields, of exactly these types."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Form(Part):
    """One observation or action, see `agents.agent_spaces`."""

    shape: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(max_length=3)]
    dtype: Literal["bool", "uint8", "int8", "int16", "int32", "int64", "float32", "float64"]
    classes: Positive | None = None

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        image = self.dtype == "uint8" and len(self.shape) == 3
        if math.prod(self.shape) >= 2**31:
            raise ValueError(f"{self.shape} is too many numbers")
        if len(self.shape) == 3 and not image:
            raise ValueError(f"{self.dtype} of rank 3 is not an image")
        if ("int" in self.dtype and not image) != (self.classes is not None):
            raise ValueError(f"classes={self.classes} does not fit {self.dtype} {self.shape}")
        return self


class Action(Form):
    """An action: neither an image nor a mask."""

    @model_validator(mode="after")
    def _is_an_action(self) -> Self:
        if len(self.shape) > 2 or self.dtype == "bool":
            raise ValueError(f"{self.dtype} {self.shape} is not an action")
        return self


class Spaces(Part):
    observations: Annotated[dict[str, Form], Field(min_length=1)]
    actions: Annotated[dict[str, Action], Field(min_length=1)]
    native: Any = None  # the environment's own action space, see `envs.saved_spaces`

    @field_validator("native")
    @classmethod
    def _is_a_space(cls, native: Any) -> Any:
        saved_spaces.load_space(native)
        return native


class Learner(Part):
    updates: Count
    owed: Annotated[int, Field(ge=0, lt=2**20)]


class Ratio(Part):
    step: Annotated[int, Field(ge=-1, lt=2**63)]
    remainder: Count
    denominator: Annotated[int, Field(ge=1, lt=2**63)]

    @model_validator(mode="after")
    def _is_less_than_one(self) -> Self:
        if self.remainder >= self.denominator:
            raise ValueError(f"{self.remainder} of {self.denominator} is not a fraction below 1")
        return self


class Sums(Part):
    """Returns and lengths of the running episodes."""

    returns: list[float]
    lengths: list[Count]

    @model_validator(mode="after")
    def _are_as_many(self) -> Self:
        if len(self.returns) != len(self.lengths):
            raise ValueError(f"{len(self.returns)} returns and {len(self.lengths)} lengths")
        return self


class Episode(Part):
    """The running episode of one environment: what replays it, and a hash of its observation."""

    episode: Annotated[int, Field(ge=-1, lt=2**63)]
    actions: Any  # in the JSON form of gymnasium
    ended: bool
    digest: str


class Environments(Part):
    """A batch of environments, or actors. Environments written in JAX are saved as arrays."""

    episodes: list[Episode] | None = None
    step_type: list[Annotated[int, Field(ge=0, le=2)]] | None = None
    reward: list[float] | None = None
    discount: list[float] | None = None
    restarts: Annotated[list[Restart], Field(max_length=2**20)] | None = None
    actors: Count | None = None

    @model_validator(mode="after")
    def _are_whole(self) -> Self:
        rows = (self.episodes, self.step_type, self.reward, self.discount)
        if len({None if row is None else len(row) for row in rows}) > 1:
            raise ValueError("episodes, step_type, reward and discount must have equal lengths")
        return self


class Meta(Part):
    """The counters of a run and of its loop."""

    run: str
    best: float | None
    evaluated: Count
    skipped: Count
    rollbacks: Count
    spaces: Spaces
    hosts: Positive
    learner: Learner
    loaded: Count
    offline: bool = False
    phase: Annotated[int, Field(ge=0, lt=2**10)] = 0
    step: Count | None = None
    ratio: Ratio | None = None
    env: Environments | None = None
    episodes: Sums | None = None

    @model_validator(mode="after")
    def _is_of_a_loop(self) -> Self:
        acting = (self.step, self.ratio, self.episodes)
        if any((part is None) != self.offline for part in acting):
            raise ValueError("only a run that acts has step, ratio and episodes, all of them")
        if self.step is not None and self.ratio is not None and self.ratio.step > self.step:
            raise ValueError(f"ratio.step={self.ratio.step} is after step={self.step}")
        return self


class Document(Part):
    """Everything in a checkpoint but its arrays."""

    structure: dict[str, str]  # dtype and shape of every array of the state
    meta: dict[str, Any]  # in the form of `Meta`
    score: Annotated[float, Field(allow_inf_nan=False)] | None = None  # of an evaluation
    format: Literal[4] = 4
    # Size and checksum of each file of the arrays, by its path inside.
    files: dict[Inside, Annotated[list[Count], Field(min_length=2, max_length=2)]] = {}

    @field_validator("meta")
    @classmethod
    def _is_meta(cls, meta: dict[str, Any]) -> dict[str, Any]:
        Meta.model_validate(meta)
        return meta


def validate(content: Any, name: str) -> Document:
    """The document with this content.

    Args:
      content: what JSON can hold.
      name: of the checkpoint, for messages.

    Raises:
      UserError: it has another format, or does not fit the schema.
    """
    form = content.get("format") if isinstance(content, dict) else None
    if type(form) is int and form != FORMAT:
        newer = ", or a newer one" if form > FORMAT else ""
        raise UserError(
            f"{name} has format {form}; this version of dreamer reads format {FORMAT}; install the "
            f"version that saved it{newer}"
        )
    try:
        return Document.model_validate(content)
    except ValidationError as error:
        problems = error.errors(include_url=False)
    # Fields of a newer version explain whatever else is wrong.
    first = next((one for one in problems if one["type"] == "extra_forbidden"), problems[0])
    key = ".".join(map(str, first["loc"])) or "its content"
    if first["type"] == "extra_forbidden":
        raise UserError(
            f"{name} has {key}, which is not known here; install the version of dreamer that saved "
            "it, or a newer one"
        )
    value = "" if first["type"] == "missing" else f"={reprlib.repr(first['input'])[:60]}"
    reason = first["msg"].removeprefix("Value error, ")
    raise UserError(f"{name} cannot be used: {key}{value}: {reason}")
