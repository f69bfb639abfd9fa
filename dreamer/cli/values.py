"""Values of options, as a command line, a file or a program gives them, and their place in the
configuration."""

from collections.abc import Callable
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from dreamer.cli import groups, habits
from dreamer.config import keys, serialization
from dreamer.config.explain import expected, first_line, joined, unknown_key
from dreamer.errors import UserError

Reader = Callable[[str, Any, FieldInfo], Any]


def assign(
    tree: DictConfig, given: dict[str, Any], schema: type[BaseModel], suite: str, read: Reader
) -> None:
    """Writes each given value into the tree, after all keys are known to exist.

    Raises:
      UserError: there is no such key, or a value cannot be read.
    """
    known = keys.leaves(schema, suite)
    shown = {key: keys.show(value) for key, value in given.items()}
    unknown = [
        f"{key}={shown[key]}: {habits.of_hydra(key, shown[key])}"
        if key.startswith("hydra") and "run.dir" in known
        else unknown_key(key, shown[key], schema, suite)
        for key in given
        if key not in known
    ]
    if unknown:
        raise UserError(joined(unknown))
    for key, value in given.items():
        if key == "env.suite":
            if value != suite or read is from_text:
                raise UserError(
                    f"{key}={shown[key]}: the suite is a group; write env=CHOICE, "
                    f"{groups.one_of('env')}"
                )
            continue
        found = read(key, value, known[key])
        odd = serialization.odd_values(found, key) if isinstance(found, dict) else ()
        for problem in odd:  # the schema does not look inside mappings
            raise UserError(problem)
        try:
            OmegaConf.update(tree, key, found, merge=False, force_add=True)
        except (OmegaConfBaseException, RecursionError) as error:
            raise UserError(f"{key}={shown[key]}: cannot be read: {first_line(error)}") from None


def resolve(tree: DictConfig) -> Any:
    """Returns plain mappings with all references replaced.

    Raises:
      UserError: one refers to nothing.
    """
    try:
        return OmegaConf.to_container(tree, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"a reference ${{...}} cannot be resolved: {first_line(error)}") from None


def from_text(key: str, text: str, field: FieldInfo) -> Any:
    """Reads a value by Hydra's grammar, but text as written: a folder may be named 2024."""
    if field.annotation is str:
        return None if text == "null" else unquoted(text)
    try:
        override = OverridesParser.create().parse_override(f"{key}={text}")
        if not override.is_sweep_override():
            return override.value()
    except (HydraException, ValueError, TypeError, RecursionError):
        quotes = (
            "; text with other characters than letters, digits and /-+.$%*@:?| needs quotes, as in "
            f"'{key}={{name: \"a=b\"}}'"
        )
        raise UserError(
            f"{key}={text}: cannot be read; expected {expected(field)}"
            f"{quotes if text[:1] in ('{', '[') else ''}"
        ) from None
    raise UserError(
        f"{key}={text}: several values; expected {expected(field)} (a list is written [1,2])"
    )


def from_value(key: str, value: Any, field: FieldInfo, literal: bool) -> Any:
    """Returns a value of a file or a program as it is; text for another type is read.

    Args:
      key, field: what it is for.
      value: of any type.
      literal: whether ${...} in it is text, instead of a reference.
    """
    if field.annotation is str and isinstance(value, int | float):
        raise UserError(f"{key}={keys.show(value)}: expected text; put it in quotes")
    if isinstance(value, str) and field.annotation is not str:
        return from_text(key, value, field)
    return serialization.plain(key, value, literal)


def unquoted(text: str) -> str:
    """Returns text without the quotes around it."""
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return text[1:-1] if quoted else text
