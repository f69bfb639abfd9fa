"""Files of others are numbers and text: nothing that they hold is run."""

import ast
from pathlib import Path
from typing import Any

import pytest

import dreamer
from dreamer.errors import UserError
from tests import tiny_run

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted([*(ROOT / "dreamer").rglob("*.py"), *(ROOT / "experiments").rglob("*.py")])

# By all of these, to read is to run what the file says.
UNSAFE_MODULES = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "_pickle"}
# Between a run and the processes that it starts, through pipes that nobody else can write to.
OWN_PIPES = ROOT / "dreamer" / "envs" / "workers.py"
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__"}
SAFE_YAML = {"safe_load", "safe_dump", "YAMLError"}
SAFE_YAML |= {"parse", "SafeLoader", "AliasEvent", "CollectionStartEvent", "CollectionEndEvent"}


def unsafe(source: str) -> list[str]:
    """What a source file uses of these."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names if name.name in UNSAFE_MODULES]
        elif isinstance(node, ast.ImportFrom) and node.module in {*UNSAFE_MODULES, "yaml"}:
            found.append(f"from {node.module}")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            found += [node.func.id] if node.func.id in UNSAFE_CALLS else []
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = f"{node.value.id}.{node.attr}"
            unsafe_yaml = node.value.id == "yaml" and node.attr not in SAFE_YAML
            found += [name] if unsafe_yaml or name in ("np.save", "torch.load") else []
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            refused = isinstance(node.value, ast.Constant) and node.value.value is False
            found += [] if refused else ["allow_pickle"]
    return found


def test_what_is_looked_for_is_found() -> None:
    source = """
import pickle, dill
from cloudpickle import loads
from yaml import load
yaml.load(file)
yaml.safe_load(file)
eval("1")
np.load(file, allow_pickle=True)
np.load(file, allow_pickle=False)
"""
    expected = ["allow_pickle", "dill", "eval", "from cloudpickle", "from yaml", "pickle"]
    assert sorted(unsafe(source)) == [*expected, "yaml.load"]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_file_reads_what_could_run(path: Path) -> None:
    allowed = ["pickle", "cloudpickle"] if path == OWN_PIPES else []
    assert unsafe(path.read_text(encoding="utf-8")) == allowed


@pytest.fixture(scope="module")
def finished(tmp_path_factory: Any) -> Path:
    return tiny_run.finished(tmp_path_factory)[0]


@pytest.mark.parametrize(
    "line",
    [
        "seed: !!python/object/apply:os.mkdir [{mark}]",
        "seed: ${{oc.env:HOME}}",
        "xla_flags: ${{oc.create:1}}",
    ],
)
def test_a_configuration_runs_nothing(line: str, finished: Path, tmp_path: Path) -> None:
    """Neither objects of Python nor references are resolved."""
    copy, mark = tiny_run.copy(finished, tmp_path / "run"), tmp_path / "mark"
    config = copy / "config.yaml"
    key = line.partition(":")[0]
    kept = [old for old in config.read_text().splitlines() if not old.startswith(f"{key}:")]
    config.write_text("\n".join([*kept, line.format(mark=mark)]))
    if key == "seed":
        with pytest.raises(UserError) as error:
            dreamer.load(copy)
        assert "\n" not in str(error.value)
    else:
        assert dreamer.load(copy).config.xla_flags == "${oc.create:1}"
    assert not mark.exists()
