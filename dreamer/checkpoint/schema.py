"""What a checkpoint says beside its arrays: the one schema of `checkpoint.json`."""

import math
import reprlib
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from dreamer.envs import saved_spaces

FORMAT = 3  # that is written and read, and no other

Count = Annotated[int, Field(ge=0, lt=2**63)]
Inside = Annotated[str, Field(pattern=r"^(state|replay)(/[^/\x00]*[^/.\x00][^/\x00]*)+$")]
Positive = Annotated[int, Field(ge=1, lt=2**31)]


class Part(BaseModel):
    """Exactly these fields, of exactly these types."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Form(Part):
    """An observation or action, see `agents.agent_spaces`."""

    shape: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(max_length=3)]
    dtype: Literal["bool", "uint8", "int8", "int16", "int32", "int64", "float32", "float64"]
    classes: Positive | None = None

    @model_validator(mode="after")
    def _can_be(self) -> Self:
        image = self.dtype == "uint8" and len(self.shape) == 3
        if math.prod(self.shape) >= 2**31:
            raise ValueError(f"{self.shape} are too many numbers")
        if len(self.shape) == 3 and not image:
            raise ValueError(f"{self.dtype} of rank 3 is no image")
        if ("int" in self.dtype and not image) != (self.classes is not None):
            raise ValueError(f"classes={self.classes} does not fit {self.dtype} {self.shape}")
        return self


class Action(Form):
    """An action, which is no image and no mask."""

    @model_validator(mode="after")
    def _is_an_action(self) -> Self:
        if len(self.shape) > 2 or self.dtype == "bool":
            raise ValueError(f"{self.dtype} {self.shape} is no action")
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
            raise ValueError(f"{self.remainder} of {self.denominator} is no fraction")
        return self


class Sums(Part):
    """Of the running episodes."""

    returns: list[float]
    lengths: list[Count]

    @model_validator(mode="after")
    def _are_as_many(self) -> Self:
        if len(self.returns) != len(self.lengths):
            raise ValueError(f"{len(self.returns)} returns and {len(self.lengths)} lengths")
        return self


class Episode(Part):
    """Of one environment: what repeats it, and the hash of its observation."""

    episode: Annotated[int, Field(ge=-1, lt=2**63)]
    actions: Any  # as gymnasium writes them
    ended: bool
    digest: str


class Environments(Part):
    """Of a batch of them, or of actors; those written in JAX are arrays."""

    episodes: list[Episode] | None = None
    step_type: list[Annotated[int, Field(ge=0, le=2)]] | None = None
    reward: list[float] | None = None
    discount: list[float] | None = None
    restarts: Annotated[list[list[Any]], Field(max_length=2**20)] | None = None
    actors: Count | None = None

    @field_validator("restarts")
    @classmethod
    def _are_restarts(cls, restarts: list[list[Any]] | None) -> list[list[Any]] | None:
        for one in restarts or ():
            if [type(part) for part in one] != [int, str, bool]:
                raise ValueError(f"{reprlib.repr(one)} is no restart")
        return restarts

    @model_validator(mode="after")
    def _are_whole(self) -> Self:
        rows = (self.episodes, self.step_type, self.reward, self.discount)
        if len({None if row is None else len(row) for row in rows}) > 1:
            raise ValueError("episodes, step_type, reward and discount are of equal lengths")
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
            raise ValueError("step, ratio and episodes are of a run that acts, all of them")
        if self.step is not None and self.ratio is not None and self.ratio.step > self.step:
            raise ValueError(f"ratio.step={self.ratio.step} is after step={self.step}")
        return self


class Document(Part):
    """All of a checkpoint but its arrays."""

    structure: dict[str, str]  # dtype and shape of every array of the state
    meta: dict[str, Any]  # as `Meta`
    score: Annotated[float, Field(allow_inf_nan=False)] | None = None  # of an evaluation
    format: Literal[3] = 3
    # Size and checksum of the files of the arrays, by paths inside.
    files: dict[Inside, Annotated[list[Count], Field(min_length=2, max_length=2)]] = {}

    @field_validator("meta")
    @classmethod
    def _is_meta(cls, meta: dict[str, Any]) -> dict[str, Any]:
        Meta.model_validate(meta)
        return meta


class Wrong(ValueError):
    """A document is not of the schema: what is wrong, in words."""


def validate(content: Any) -> Document:
    """The document of this content.

    Raises:
      Wrong: it is of another format, or of none.
    """
    form = content.get("format") if isinstance(content, dict) else None
    if type(form) is int and form != FORMAT:
        kind = f"newer than the {FORMAT} that is" if form > FORMAT else f"and only {FORMAT} is"
        newer = ", or a newer one" if form > FORMAT else ""
        raise Wrong(
            f"has format {form}, {kind} known here; install the version of dreamer that saved it"
            f"{newer}"
        )
    try:
        return Document.model_validate(content)
    except ValidationError as error:
        problems = error.errors(include_url=False)
    for problem in problems:
        if problem["type"] == "extra_forbidden":
            raise Wrong(
                f"has {_name(problem)}, which is not known here; install the version of dreamer "
                "that saved it, or a newer one"
            )
    first = problems[0]
    value = "" if first["type"] == "missing" else f"={reprlib.repr(first['input'])[:60]}"
    reason = first["msg"].removeprefix("Value error, ")
    raise Wrong(f"cannot be used: {_name(first)}{value}: {reason}")


def _name(problem: Any) -> str:
    return ".".join(map(str, problem["loc"])) or "its content"
