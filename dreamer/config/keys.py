"""The keys of the configuration as the schema declares them, and what each of them takes."""

from collections.abc import Iterator
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

ALIASES = {"env.id": "env.task"}  # another name of a key
ENV_NAMES = {"env.task", "env.entry_point"}  # each says what the environment is
BOUNDS = (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))
NAMES = {
    int: "integer",
    float: "number",
    bool: "true or false",
    str: "text",
    NoneType: "null",
    dict: "mapping such as {size: 5, walls: true}",
}


def suites(schema: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """Returns the sections that `env` may be, by the suite that selects them."""
    for field in schema.model_fields.values():
        if field.discriminator:
            tag = str(field.discriminator)
            return {
                get_args(member.model_fields[tag].annotation)[0]: member
                for member in get_args(field.annotation)
            }
    return {}


def section(schema: type[BaseModel], field: FieldInfo, suite: str) -> type[BaseModel] | None:
    """Returns the section that a field holds, or None where it holds a value."""
    if field.discriminator:
        return suites(schema)[suite]
    annotation: Any = field.annotation
    is_section = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return annotation if is_section else None


def walk(schema: type[BaseModel], suite: str, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yields (path, field) of every section and key below `schema`, outer ones first."""
    for name, field in schema.model_fields.items():
        yield prefix + name, field
        inner = section(schema, field, suite)
        if inner is not None:
            yield from walk(inner, suite, f"{prefix}{name}.")


def leaves(schema: type[BaseModel], suite: str = "gymnasium") -> dict[str, FieldInfo]:
    """Returns every key that holds a value, by its dotted path, for a suite of environments."""
    keys = dict(walk(schema, suite))
    parents = {path.rpartition(".")[0] for path in keys}
    return {path: field for path, field in keys.items() if path not in parents}


@cache
def every(schema: type[BaseModel]) -> dict[str, FieldInfo]:
    """Returns every key that holds a value with any suite of environments, by its dotted path."""
    merged: dict[str, FieldInfo] = {}
    for suite in suites(schema) or ("",):
        merged |= leaves(schema, suite)
    return merged


def sections(schema: type[BaseModel], suite: str = "gymnasium") -> dict[str, list[str]]:
    """Returns the names that can be set below every section, by its dotted path ('' is the top)."""
    names: dict[str, list[str]] = {}
    for path, _ in walk(schema, suite):
        if path == "env.suite":
            continue
        parent, _, name = path.rpartition(".")
        names.setdefault(parent, []).append(name)
    return names


def allowed(annotation: Any, metadata: tuple[Any, ...] = ()) -> str:
    """Returns in words what a key takes, such as 'integer >= 1' or 'one of cpu, gpu'."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        inner = [bound for part in arguments[1:] for bound in getattr(part, "metadata", [part])]
        return allowed(arguments[0], (*inner, *metadata))
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin in (Union, UnionType):
        return " or ".join(map(allowed, arguments))
    if origin is tuple:
        count = "" if arguments[-1] is Ellipsis else f" of {len(arguments)}"
        return f"list{count}, each {allowed(arguments[0])}"
    limits = [
        f"{sign} {getattr(m, name):.10g}"
        for name, sign in BOUNDS
        for m in metadata
        if hasattr(m, name)
    ]
    return " ".join([NAMES[origin or annotation], ", ".join(limits)]).strip()


def choices(annotation: Any) -> tuple[str, ...]:
    """Returns the names that a key takes, or () where it is not a choice of names."""
    return tuple(map(str, get_args(annotation))) if get_origin(annotation) is Literal else ()


def show(value: Any) -> str:
    """Returns a value as one would write it at the command line, shortened to fit in a line."""
    if isinstance(value, list | tuple):
        text = f"[{','.join(map(show, value))}]"
    elif isinstance(value, dict):
        text = f"{{{','.join(f'{name}:{show(inner)}' for name, inner in value.items())}}}"
    elif isinstance(value, bool):
        text = str(value).lower()
    elif isinstance(value, int) and value.bit_length() > 1000:  # which Python may not write out
        text = f"(an integer of {value.bit_length():,} bits)"
    else:
        text = "null" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
