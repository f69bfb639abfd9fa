"""The base class of every section of the configuration, and the types of its numbers."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

INT32, INT64 = 2**31 - 1, 2**63 - 1

# int32 for what reaches compiled code or other libraries; only Python counts the long ones.
Count = Annotated[int, Field(ge=1, le=INT32)]
Whole = Annotated[int, Field(ge=0, le=INT32)]
LongCount = Annotated[int, Field(ge=1, le=INT64)]
LongWhole = Annotated[int, Field(ge=0, le=INT64)]
Size = Annotated[int, Field(ge=1, le=2**20)]  # of a layer
Layers = Annotated[int, Field(ge=1, le=100)]
Rate = Annotated[float, Field(gt=0, le=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0, le=1e9)]  # as long as the system can wait
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Mults = Annotated[tuple[Size, ...], Field(min_length=1)]
Platform = Literal["auto", "cpu", "gpu", "tpu"]
Trust = Annotated[
    bool,
    Field(
        description="allow code that the files name, now and later, as does repeating their "
        "env.entry_point, env.id and env.kwargs here"
    ),
]


class Section(BaseModel):
    """A part of the configuration: immutable, and a key that is not declared is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def __repr__(self) -> str:
        """The values that differ from the defaults, shortened to a few lines."""
        changed = [
            f"{name}={value!r}"
            for name, field in type(self).model_fields.items()
            if (value := getattr(self, name)) != field.get_default(call_default_factory=True)
        ]
        text = f"{type(self).__name__}({', '.join(changed)})"
        return text if len(text) <= 200 else f"{text[:197]}..."

    __str__ = __repr__

    def _problems(self) -> dict[str, Any]:
        """Conditions that must be false, by the message for those that are true."""
        return {}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for message, is_wrong in self._problems().items():
            if is_wrong:
                raise ValueError(message)
        return self

    @model_validator(mode="before")
    @classmethod
    def _no_boolean_numbers(cls, data: Any) -> Any:
        """Python counts True as 1; as text it is refused where a number is expected."""
        fields = cls.model_fields if isinstance(data, dict) else {}
        numbers = {name for name, field in fields.items() if field.annotation not in (bool, str)}
        return {n: _as_text(v) if n in numbers else v for n, v in data.items()} if fields else data


def _as_text(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_as_text(part) for part in value]
    return str(value).lower() if isinstance(value, bool) else value
