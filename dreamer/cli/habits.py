"""Advice for flags and options that other programs of Hydra have."""

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic.fields import FieldInfo

from dreamer.config.explain import inside_mapping, similar

OWN_FILE = "your own file is an option, {file}"
SEVERAL = "it is for several runs; add --multirun"
EVERY = "leave it out; --multirun runs every combination of the values given"
# Options of Hydra, the longest fit first; {} is the value.
OF_HYDRA = {
    "hydra.run.dir": "the folder of a run is run.dir={}",
    "hydra.searchpath": OWN_FILE,
    "hydra.job.chdir": "leave it out; the working folder does not change",
    "hydra.output_subdir": "leave it out; the folder of a run is run.dir=FOLDER",
    "hydra.mode": "leave it out; several runs are started by --multirun",
    **dict.fromkeys(("hydra/sweeper", "hydra.sweeper"), EVERY),
    **dict.fromkeys(("hydra/launcher", "hydra.launcher", "hydra.sweep."), SEVERAL),
    "hydra": "leave it out; Hydra's own options are those of its launchers, with --multirun",
}
FOLDERS, NAMES = ("-cd", "--config-dir", "-cp", "--config-path"), ("-cn", "--config-name")
FLAGS = {
    **dict.fromkeys((*NAMES, *FOLDERS), OWN_FILE),
    **dict.fromkeys(("-c", "--cfg"), "write --cfg job, which prints the configuration"),
    **dict.fromkeys(
        ("--resolve", "-p", "--package", "-i", "--info"),
        "leave it out; --cfg job prints the whole configuration, resolved",
    ),
    **dict.fromkeys(("--hydra-help", "-sc", "--shell-completion"), "write --help"),
    **dict.fromkeys(("-r", "--run"), "leave it out; without --multirun there is one run"),
    **dict.fromkeys(("-m", "--multirun"), "only python -m dreamer.train starts several runs"),
    "--experimental-rerun": "run.dir=RUN alone resumes a run, config=RUN/config.yaml repeats it",
}


def advice(argv: Sequence[str], index: int, known: Mapping[str, FieldInfo | None]) -> str:
    """Returns what to write instead of a flag, an option of Hydra or one with its signs; '' for
    other arguments.

    Args:
      argv: all arguments.
      index: of the one in question.
      known: names of options, dotted.
    """
    key, equals, value = argv[index].partition("=")
    name = key.lstrip("+~-")
    trains = "run.dir" in known  # other commands have neither files nor groups
    if trains and name.startswith("hydra"):
        return of_hydra(name, value, argv)
    if trains and key in FLAGS:
        return FLAGS[key].format(file=_own_file(argv))
    if name == key:
        return ""
    dashed = key.startswith("-")
    name = name.replace("-", "_") if dashed else name
    same = [path for path in known if path == name or path.endswith(f".{name}")]
    inside = inside_mapping(name, value, known)
    if not same and not inside:  # with a plus it is refused like any other unknown key
        close = similar(name, [], list(known))
        unknown = f"no such key; keys are written KEY=VALUE, and --help lists them{close}"
        return "" if key.startswith("+") else unknown
    if key.startswith("~"):
        return f"keys are not removed; leave it out, or set it by {(same or [name])[0]}=VALUE"
    if dashed and not equals:
        field = known[same[0]] if same else None
        value = "true" if field is not None and field.annotation is bool else "VALUE"
        value = next((one for one in argv[index + 1 : index + 2] if "=" not in one), value)
    why = "options are written without dashes" if dashed else "keys are not added"
    return f"{why}; write {inside or ' or '.join(f'{path}={value}' for path in same[:3])}"


def of_hydra(name: str, value: str, argv: Sequence[str] = ()) -> str:
    """Returns what to write instead of an option of Hydra.

    Args:
      name: of the option.
      value: of the option; may be empty.
      argv: all arguments.
    """
    text = next(text for start, text in OF_HYDRA.items() if name.startswith(start))
    folder = value if value and "${" not in value else "FOLDER"
    return text.format(folder, file=_own_file(argv))


def _own_file(argv: Sequence[str]) -> str:
    """Returns the option for the file that Hydra's flags for folders and names refer to."""
    text = f" {' '.join(argv)} "
    folders = re.findall(rf" (?:{'|'.join(FOLDERS)})[= ](\S+)", text)
    for path in re.findall(r"hydra\.searchpath=\[?(\S*?)\]? ", text):
        folders += [part.strip("'\"").removeprefix("file://") for part in path.split(",")]
    names = dict.fromkeys(re.findall(rf" (?:{'|'.join(NAMES)})[= ](\S+)", text), "")
    for option, group, choice in re.findall(r" (\+?([\w/]+)=(\S+))", text):
        names[f"{group}/{choice}"] = f" instead of {option}"
    for folder, name in itertools.product([*folders, "."], names):
        file = Path(folder, name.removesuffix(".yaml") + ".yaml")
        if file.is_file():
            return f"config={file}{names[name]}"
    return "config=FILE.yaml"
