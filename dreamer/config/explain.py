"""Error messages of the configuration, in one line: full path, value, what is allowed."""

import difflib
import itertools
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from dreamer.config import keys
from dreamer.errors import UserError, nearest

Schema = TypeVar("Schema", bound=BaseModel)


def validate(schema: type[Schema], tree: Any) -> Schema:
    """Returns `tree` as a frozen object of the schema.

    Raises:
        UserError: the first value that the schema does not allow, and how many more there are.
    """
    try:
        return schema.model_validate(tree)
    except ValidationError as error:
        problems = [_explain(problem, schema, tree) for problem in error.errors(include_url=False)]
        raise UserError(joined(list(dict.fromkeys(problems)))) from None


def joined(problems: list[str]) -> str:
    """Returns the first problem and the number of the others."""
    more = len(problems) - 1
    return problems[0] + (f" (and {more} more problem{'s' * (more > 1)})" if more else "")


def unknown_key(path: str, value: str, schema: type[BaseModel], suite: str) -> str:
    """Returns why `path` cannot be set: a section, a key of another suite, or no such key."""
    known, sections = keys.leaves(schema, suite), keys.sections(schema, suite)
    inside = inside_mapping(path, value, known)
    if inside:
        return f"{path}={value}: no such key; write {inside}"
    if path and path in sections:
        inside = ", ".join(f"{path}.{name}" for name in sections[path])
        return f"{path}={value}: a section takes no value; set one of {inside}"
    parent, _, name = path.rpartition(".")
    while parent not in sections:
        parent, _, name = parent.rpartition(".")
    where = f"{parent} (suite {suite})" if parent == "env" else parent or "the configuration"
    hint = similar(name, sections[parent], list(known))
    others = [other for other in keys.suites(schema) if path in keys.leaves(schema, other)]
    if others:
        hint = f"; {name} is a key of env={', env='.join(others)}"
    elif parent == "env" and "env.kwargs" in known:
        hint += f"; arguments of the environment are written env.kwargs={{{name}: {value}}}"
    return f"{path}={value}: no such key; {where} has {', '.join(sections[parent])}{hint}"


def first_line(error: Exception) -> str:
    """Returns the message of another library's error as one short line."""
    return " ".join(str(error).split("full_key")[0].split())[:200]


def inside_mapping(path: str, value: str, known: Mapping[str, FieldInfo | None]) -> str:
    """Returns how to set a key inside of a mapping, env.kwargs={size: 5} for env.kwargs.size; ''
    if there is no such mapping."""
    for key, field in known.items():
        if path.startswith(f"{key}.") and field and get_origin(field.annotation) is dict:
            names = path.removeprefix(f"{key}.").split(".")
            return f"'{key}={{{': {'.join(names)}: {value or 'VALUE'}{'}' * len(names)}'"
    return ""


def similar(name: str, siblings: list[str], paths: list[str]) -> str:
    """Returns '; did you mean ...?': the same name elsewhere, or a similar one, siblings first."""
    last = {path: path.rpartition(".")[2] for path in paths}
    same = [path for path in paths if last[path] == name]
    beside = "" if same else nearest(name, siblings)
    like = difflib.get_close_matches(name, set(last.values()), n=1, cutoff=0.8)
    elsewhere = same or [path for path in paths if last[path] in like]
    return beside or (f"; did you mean {' or '.join(elsewhere[:3])}?" if elsewhere else "")


def _explain(problem: Any, schema: type[BaseModel], tree: Any) -> str:
    """Returns the line for one error of pydantic, whose path has the suite after `env`."""
    suites = keys.suites(schema)
    suite = next((part for part in problem["loc"] if part in suites), next(iter(suites), ""))
    names = [part for part in problem["loc"] if isinstance(part, str) and part not in suites]
    known = keys.leaves(schema, suite)
    paths = list(itertools.accumulate(names, "{}.{}".format))  # outer ones first
    path = next((path for path in paths if path in known), paths[-1] if paths else "")
    value = tree
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    shown = keys.show(value)
    if problem["type"].startswith("union_tag"):
        tag = keys.show(value.get("suite", "") if isinstance(value, dict) else value)
        return f"env.suite={tag}: expected one of {', '.join(suites)}{nearest(tag, suites)}"
    if path in known and problem["type"] == "missing" and value is None:
        return f"{path} is missing; write {path}=VALUE, {keys.expected(known[path])}"
    if path in known:
        field = known[path]
        choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
        return f"{path}={shown}: expected {keys.expected(field)}{nearest(shown, choices)}"
    if problem["type"] == "value_error":
        return ": ".join(filter(None, (path, str(problem["ctx"]["error"]))))
    return unknown_key(path, shown, schema, suite)
