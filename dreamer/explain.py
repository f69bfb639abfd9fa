"""What is wrong with a configuration, in one line: the full path, the value, what is allowed."""

import difflib
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from dreamer import keys
from dreamer.errors import UserError, nearest

Schema = TypeVar("Schema", bound=BaseModel)

# What to write instead of options of Hydra, the longest fit first; {} is the value.
OF_HYDRA = {
    "hydra.run.dir": "the folder of a run is run.dir={}",
    "hydra.searchpath": "a file of your own is given whole, as {file}",
    "hydra.job.chdir": "leave it out; the working folder is never changed",
    "hydra.output_subdir": "leave it out; the folder of a run is run.dir=FOLDER",
    "hydra.mode": "leave it out; several runs are made by --multirun",
    "hydra/sweeper": "leave it out; --multirun runs every combination of the values given",
    "hydra.sweeper": "leave it out; --multirun runs every combination of the values given",
    "hydra/launcher": "it is for several runs; add --multirun",
    "hydra.launcher": "it is for several runs; add --multirun",
    "hydra.sweep.": "it is for several runs; add --multirun",
    "hydra": "leave it out; Hydra's own options are those of its launchers, with --multirun",
}
OWN_FILE = "a file of your own is given whole, as {file}"
FLAGS = {
    **dict.fromkeys(
        ("-cn", "--config-name", "-cd", "--config-dir", "-cp", "--config-path"), OWN_FILE
    ),
    **dict.fromkeys(("-c", "--cfg"), "write --cfg job, which prints the configuration"),
    **dict.fromkeys(
        ("--resolve", "-p", "--package", "-i", "--info"),
        "leave it out; --cfg job prints the whole configuration, resolved",
    ),
    **dict.fromkeys(("--hydra-help", "-sc", "--shell-completion"), "write --help"),
    **dict.fromkeys(("-r", "--run"), "leave it out; without --multirun there is one run"),
    **dict.fromkeys(("-m", "--multirun"), "several runs are made by python -m dreamer.train alone"),
    "--experimental-rerun": "run.dir=RUN alone resumes a run, config=RUN/config.yaml repeats it",
}


def validate(schema: type[Schema], tree: Any) -> Schema:
    """Returns `tree` as a frozen object of the schema.

    Raises:
        UserError: the first thing that the schema does not allow, and how many more there are.
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


def habit(argv: Sequence[str], index: int, known: Mapping[str, FieldInfo | None]) -> str:
    """Returns what to write instead of a flag, or of an option of Hydra or with its signs; '' where
    the argument is none.

    Args:
      argv: all arguments.
      index: of the one in question.
      known: names of options, dotted.
    """
    key, equals, value = argv[index].partition("=")
    name = key.lstrip("+~-")
    trains = "run.dir" in known  # other commands take neither files nor groups
    if name.startswith("hydra") and trains:
        return _of_hydra(name, value, argv)
    if key in FLAGS and trains:
        return FLAGS[key].format(file=_own_file(argv))
    if name == key:
        return ""
    name = name.replace("-", "_") if key.startswith("-") else name
    same = [path for path in known if path == name or path.endswith(f".{name}")]
    inside = _inside(name, value, known)
    if not same and not inside and key.startswith("+"):
        return ""  # as any other key that there is not
    if not same and not inside:
        close = _did_you_mean(name, [], list(known))
        return f"no such key; keys are written KEY=VALUE, and --help lists them{close}"
    if key.startswith("~"):
        return f"keys are not removed; leave it out, or set it by {(same or [name])[0]}=VALUE"
    if key.startswith("-") and not equals:
        field = known[same[0]] if same else None
        value = "true" if field is not None and field.annotation is bool else "VALUE"
        following = argv[index + 1 : index + 2]
        value = following[0] if following and "=" not in following[0] else value
    why = "options are written without dashes" if key.startswith("-") else "keys are not added"
    return f"{why}; write {inside or ' or '.join(f'{path}={value}' for path in same[:3])}"


def unknown_key(path: str, value: str, schema: type[BaseModel], suite: str) -> str:
    """Returns why `path` cannot be set: a section, a key of another suite, or nothing at all."""
    sections = keys.sections(schema, suite)
    if path.startswith("hydra") and "run" in sections:
        return f"{path}={value}: {_of_hydra(path, value, ())}"
    inside = _inside(path, value, keys.leaves(schema, suite))
    if inside:
        return f"{path}={value}: no such key; write {inside}"
    if path and path in sections:
        inside = ", ".join(f"{path}.{name}" for name in sections[path])
        return f"{path}={value}: a section takes no value; set one of {inside}"
    parent, _, name = path.rpartition(".")
    while parent not in sections:
        parent, _, name = parent.rpartition(".")
    where = f"{parent} (suite {suite})" if parent == "env" else parent or "the configuration"
    homes = [other for other in keys.suites(schema) if path in keys.leaves(schema, other)]
    if homes:
        hint = f"; {name} is a key of env={', env='.join(homes)}"
    else:
        known = keys.leaves(schema, suite)
        hint = _did_you_mean(name, sections[parent], list(known))
        if parent == "env" and "env.kwargs" in known:
            hint += f"; arguments of the environment are written env.kwargs={{{name}: {value}}}"
    return f"{path}={value}: no such key; {where} has {', '.join(sections[parent])}{hint}"


def expected(field: FieldInfo) -> str:
    """Returns in words what a key takes."""
    return keys.allowed(field.annotation, tuple(field.metadata))


def first_line(error: Exception) -> str:
    """Returns the message of another library's error as one short line."""
    return " ".join(str(error).split("full_key")[0].split())[:200]


def _explain(problem: Any, schema: type[BaseModel], tree: Any) -> str:
    """Returns the line for one error of pydantic, whose path names the suite after `env`."""
    suites = keys.suites(schema)
    suite = next((part for part in problem["loc"] if part in suites), next(iter(suites), ""))
    names = [part for part in problem["loc"] if isinstance(part, str) and part not in suites]
    known = keys.leaves(schema, suite)
    while names[:-1] and ".".join(names[:-1]) in known:  # inside of a value
        names.pop()
    path = ".".join(names)
    value = _lookup(tree, names)
    if problem["type"].startswith("union_tag"):
        tag = value.get("suite", "") if isinstance(value, dict) else value
        close = nearest(keys.show(tag), suites)
        return f"env.suite={keys.show(tag)}: expected one of {', '.join(suites)}{close}"
    if path in known and problem["type"] == "missing" and value is None:
        return f"{path} is missing; write {path}=VALUE, {expected(known[path])}"
    if path in known:
        close = nearest(keys.show(value), keys.choices(known[path].annotation))
        return f"{path}={keys.show(value)}: expected {expected(known[path])}{close}"
    if problem["type"] == "value_error":
        return ": ".join(filter(None, (path, str(problem["ctx"]["error"]))))
    return unknown_key(path, keys.show(value), schema, suite)


def _inside(path: str, value: str, known: Mapping[str, FieldInfo | None]) -> str:
    """Returns how to set a key inside of a mapping, env.kwargs={size: 5} for env.kwargs.size; ''
    where there is no such mapping."""
    for key, field in known.items():
        if path.startswith(f"{key}.") and field and get_origin(field.annotation) is dict:
            names = path.removeprefix(f"{key}.").split(".")
            return f"'{key}={{{': {'.join(names)}: {value or 'VALUE'}{'}' * len(names)}'"
    return ""


def _of_hydra(name: str, value: str, argv: Sequence[str]) -> str:
    advice = next(text for start, text in OF_HYDRA.items() if name.startswith(start))
    folder = value if value and "${" not in value else "FOLDER"
    return advice.format(folder, file=_own_file(argv))


def _own_file(argv: Sequence[str]) -> str:
    """Returns the option for the file that flags of Hydra for folders and names mean."""
    folders, names, instead = [], [], {}
    for argument, following in zip(argv, [*argv[1:], ""], strict=False):
        key, equals, value = argument.partition("=")
        value = value if equals else following
        if key in ("-cd", "--config-dir", "-cp", "--config-path"):
            folders.append(value)
        elif key.lstrip("+") == "hydra.searchpath":
            folders += [
                part.strip("'\" ").removeprefix("file://") for part in value.strip("[]").split(",")
            ]
        elif key in ("-cn", "--config-name"):
            names.append(value)
        elif equals and "." not in key:
            names.append(f"{key.lstrip('+')}/{value}")
            instead[names[-1]] = f" instead of {argument}"
    for folder, name in itertools.product([*folders, "."], names):
        file = Path(folder, name.removesuffix(".yaml") + ".yaml")
        if file.is_file():
            return f"config={file}{instead.get(name, '')}"
    return "config=FILE.yaml"


def _did_you_mean(name: str, siblings: list[str], paths: list[str]) -> str:
    """Returns '; did you mean ...?': the same name elsewhere, or a like one, first beside it."""
    last = {path: path.rpartition(".")[2] for path in paths}
    same = [path for path in paths if last[path] == name]
    beside = "" if same else nearest(name, siblings)
    like = difflib.get_close_matches(name, set(last.values()), n=1, cutoff=0.8)
    elsewhere = same or [path for path in paths if last[path] in like]
    return beside or (f"; did you mean {' or '.join(elsewhere[:3])}?" if elsewhere else "")


def _lookup(tree: Any, names: list[str]) -> Any:
    for name in names:
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree
