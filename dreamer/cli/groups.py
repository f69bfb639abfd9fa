"""The yaml files of options: those of the groups, and one of the user's.

Group files have the format of Hydra, but Hydra itself is not started: its state is global and
belongs to the program that imports this library.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf._utils import get_yaml_loader

from dreamer.config import Config, keys, serialization
from dreamer.config.explain import first_line, validate
from dreamer.errors import UserError, nearest
from dreamer.system import files

GROUPS = ("env", "size", "agent", "experiment")
MERGED = ("size", "agent", "env", "experiment")  # later ones override earlier ones
FILE = "config"  # the option that names a file of the user's
CONFIG = "config.yaml"  # the default groups; in a run folder, its saved configuration


def config_dir() -> Path:
    """Returns the folder of the group files: in an installed package, or in a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "_configs"
    return installed if installed.is_dir() else package.parent / "configs"


def choices(group: str) -> list[str]:
    """Returns the names that a group may be set to, in natural order (1m before 12m)."""
    names = [path.stem for path in (config_dir() / group).glob("*.yaml")]
    return sorted(names, key=lambda name: (files.number(name[:-1]) or 0, name))


def one_of(group: str) -> str:
    """Returns the choices of a group in words."""
    return f"one of {', '.join(choices(group))}"


def of_suite(suite: str) -> str:
    """Returns the group file of a suite: of its name, or the first whose name starts with it."""
    names = choices("env")
    return suite if suite in names else next(name for name in names if name.startswith(suite))


def keyed(tree: Mapping[Any, Any]) -> dict[str, Any]:
    """Returns {dotted key: value} of keys that are dotted, nested or both, see `each_once`."""
    return each_once(serialization.flat(tree, whole=frozenset(keys.every(Config))))


def each_once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Returns {key: value} with one name for each key.

    Raises:
      UserError: a key has two values.
    """
    given: dict[str, Any] = {}
    for written, value in pairs:
        key = keys.ALIASES.get(written, written)
        if key in given:
            one, other = f"{key}={keys.show(given[key])}", f"{written}={keys.show(value)}"
            raise UserError(f"{key} is given twice: {one} and {other}; keep one of them")
        given[key] = value
    return given


def read_file(path: Path) -> tuple[dict[str, Any], bool]:
    """Returns {dotted key: value} of a yaml file, its choices of groups included, and whether it is
    the saved configuration of a run.

    Raises:
      UserError: it cannot be read, or is no such file.
    """
    try:
        text = files.read(path.expanduser(), serialization.MOST).decode()
    except (OSError, RuntimeError, ValueError) as error:  # of the disk, of ~NAME, not text
        why = getattr(error, "strerror", None) or first_line(error)
        inside = path / CONFIG
        hint = f"; name a file in it, config={inside}" if inside.is_file() else ""
        raise UserError(
            f"{FILE}={path}: cannot be read: {why}; it is a yaml file of keys as in --cfg job{hint}"
        ) from None
    saved = text.startswith(serialization.HEADER)
    tree = serialization.read_yaml(text, str(path), yaml.SafeLoader if saved else get_yaml_loader())
    entries = tree.pop("defaults", None) or []
    entries = entries if isinstance(entries, list) else [entries]
    chosen = [_choice(entry, path) for entry in entries if entry != "_self_"]
    try:
        return keyed(tree) | dict(chosen), saved
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _choice(entry: Any, path: Path) -> tuple[str, str | None]:
    """Returns group and choice of an entry of Hydra's list of defaults."""
    if isinstance(entry, dict) and len(entry) == 1:
        ((name, choice),) = entry.items()
        group = str(name).removeprefix("override ").strip().removeprefix("/")
        if group in GROUPS:
            return group, choice
    raise UserError(
        f"{path}: defaults: {keys.show(entry)} is not a choice of a group; an entry is "
        f"GROUP: CHOICE, with a group of {', '.join(GROUPS)}"
    )


def pop(given: dict[str, Any]) -> dict[str, str]:
    """Removes the choices of groups from {key: value} and returns them; a suite alone chooses its
    group."""
    chosen = {group: given.pop(group) for group in GROUPS if group in given}
    suite = given.get("env.suite")
    if isinstance(suite, str) and suite in keys.suites(Config):
        chosen.setdefault("env", of_suite(suite))
    return {group: str(choice) for group, choice in chosen.items() if choice is not None}


def defaults() -> dict[str, str]:
    """Returns the choices of a run without options."""
    return pop(read_file(config_dir() / CONFIG)[0])


def with_recipe(chosen: dict[str, str]) -> dict[str, str]:
    """Returns the choices, merged over those of the recipe among them.

    Raises:
      UserError: there is no such choice.
    """
    for group, choice in chosen.items():
        if choice not in choices(group):
            close = nearest(choice, choices(group))
            own = [path for path in (Path(choice), Path(f"{choice}.yaml")) if path.is_file()]
            if own or Path(choice).suffix in (".yaml", ".yml"):
                close = f"; your own file is {FILE}={own[0] if own else choice}"
            raise UserError(f"{group}={choice}: no such choice; {group} is {one_of(group)}{close}")
    recipe = chosen.get("experiment")
    return (pop(_values("experiment", recipe)) if recipe else {}) | chosen


def merge(chosen: dict[str, str], below: dict[str, Any]) -> DictConfig:
    """Returns the chosen groups merged over the defaults of the schema, not validated.

    Args:
      chosen: {group: choice}.
      below: values of the user's file, for the suite where no group chooses it.
    """
    # The keys of env depend on the suite, so validation fills in their defaults.
    tree = OmegaConf.create(Config().model_dump(mode="json", exclude={"env"}))
    if "env" not in chosen:
        env = validate(Config, {"env": {"suite": below.get("env.suite")}}).env
        tree.env = {"suite": env.suite}
    for group in sorted(chosen, key=MERGED.index):
        values = _values(group, chosen[group])
        pop(values)
        for key, value in values.items():
            OmegaConf.update(tree, key, value, merge=False, force_add=True)
    tree.size = chosen.get("size", tree.size)
    return tree


def not_covered(
    below: dict[str, Any], chosen: dict[str, str], given: dict[str, Any]
) -> dict[str, Any]:
    """Returns the values of a file that options do not override: without the keys that any choice
    of a group sets if the options choose one, and without the name of the environment if the
    options have one.

    Args:
      below: values of the file.
      chosen: groups among the options.
      given: values among the options.
    """
    covered = keys.ENV_NAMES if keys.ENV_NAMES & given.keys() else set()
    for group, choice in with_recipe(chosen).items() if below else ():
        for name in [choice] if group == "experiment" else choices(group):
            covered = covered | _values(group, name).keys()
    sections = ("env.",) if "env.suite" in covered else ()
    return {k: v for k, v in below.items() if k not in covered and not k.startswith(sections)}


def _values(group: str, choice: str) -> dict[str, Any]:
    return read_file(config_dir() / group / f"{choice}.yaml")[0]
