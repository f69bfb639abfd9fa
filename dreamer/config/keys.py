"""The keys of the configuration as the schema declares them, and the values that each allows."""

from collections.abc import Iterator
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from dreamer.config.env import SUITES

ALIASES = {"env.id": "env.task"}  # another name of a key
ENV_NAMES = {"env.task", "env.entry_point"}  # each names the environment
BOUNDS = (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))
NAMES = {
    int: "integer",
    float: "number",
    bool: "true or false",
    str: "text",
    NoneType: "null",
    dict: "mapping such as {size: 5, walls: true}",
}


def suites(schema: type[BaseModel]) -> dict[str, Any]:
    """Returns the sections that `env` may be, by suite; none in a schema without `env`."""
    return SUITES if "env" in schema.model_fields else {}


def walk(schema: type[BaseModel], suite: str, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yields (path, field) of every section and key below `schema`, outer ones first."""
    for name, field in schema.model_fields.items():
        yield prefix + name, field
        inner: Any = SUITES[suite] if field.discriminator else field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from walk(inner, suite, f"{prefix}{name}.")


def leaves(schema: type[BaseModel], suite: str = "gymnasium") -> dict[str, FieldInfo]:
    """Returns every key that holds a value, by its dotted path, for a suite of environments."""
    keys = dict(walk(schema, suite))
    parents = {path.rpartition(".")[0] for path in keys}
    return {path: field for path, field in keys.items() if path not in parents}


@cache
def every(schema: type[BaseModel]) -> dict[str, FieldInfo]:
    """Returns every key that holds a value with any suite of environments, by its dotted path."""
    return {
        path: field
        for suite in suites(schema) or ("",)
        for path, field in leaves(schema, suite).items()
    }


def sections(schema: type[BaseModel], suite: str = "gymnasium") -> dict[str, list[str]]:
    """Returns the names that can be set below every section, by its dotted path ('' is the top)."""
    names: dict[str, list[str]] = {}
    for path in (path for path, _ in walk(schema, suite) if path != "env.suite"):
        parent, _, name = path.rpartition(".")
        names.setdefault(parent, []).append(name)
    return names


def expected(field: FieldInfo) -> str:
    """Returns in words what a key allows, such as 'integer >= 1' or 'one of cpu, gpu'."""
    return _allowed(field.annotation, tuple(field.metadata))


def _allowed(annotation: Any, metadata: tuple[Any, ...] = ()) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        inner = [bound for part in arguments[1:] for bound in getattr(part, "metadata", [part])]
        return _allowed(arguments[0], (*inner, *metadata))
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin in (Union, UnionType):
        return " or ".join(map(_allowed, arguments))
    if origin is tuple:
        count = "" if arguments[-1] is Ellipsis else f" of {len(arguments)}"
        return f"list{count}, each {_allowed(arguments[0])}"
    limits = [
        f"{sign} {getattr(m, name):.10g}"
        for name, sign in BOUNDS
        for m in metadata
        if hasattr(m, name)
    ]
    return " ".join([NAMES[origin or annotation], ", ".join(limits)]).strip()


def show(value: Any) -> str:
    """Returns a value as one would write it at the command line, shortened to fit in a line."""
    if isinstance(value, list | tuple):
        text = f"[{','.join(map(show, value))}]"
    elif isinstance(value, dict):
        text = f"{{{','.join(f'{name}:{show(inner)}' for name, inner in value.items())}}}"
    elif isinstance(value, bool):
        text = str(value).lower()
    elif isinstance(value, int) and value.bit_length() > 1000:  # Python may refuse to print it
        text = f"(an integer of {value.bit_length():,} bits)"
    else:
        text = "null" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
