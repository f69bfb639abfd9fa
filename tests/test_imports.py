"""Who may import whom, and which package is used where: read from the code itself."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "dreamer"
EVERY = tuple(path.relative_to(PACKAGE).as_posix() for path in sorted(PACKAGE.rglob("*.py")))

# File or folder of dreamer/ -> what of dreamer it may import beside itself; the longest fit counts.
SCHEMA = ("config", "errors", "files")
COMMAND_LINE = (*SCHEMA, "keys", "explain", "compose", "usage", "trust")
MAY_IMPORT = {
    "errors.py": (),
    "streams.py": (),
    "command.py": ("errors", "streams", "run"),
    "files.py": ("errors",),
    "config/": (),
    "keys.py": (),
    "explain.py": ("errors", "keys"),
    "trust.py": SCHEMA,
    "importing.py": (),
    "compose.py": ("keys", "explain", "trust", *SCHEMA),
    "usage.py": ("keys", "compose", "trust", *SCHEMA),
    "allocator.py": (),
    "start.py": ("errors", "allocator"),
    "parallel.py": ("errors",),
    "hosts.py": ("parallel", "run", *SCHEMA),
    "ops/": (),
    "nets/": ("ops", *SCHEMA),
    "agent/": ("nets", "ops", *SCHEMA),
    "envs/": ("trust", "importing", *SCHEMA),
    "envs/__main__.py": ("command", *COMMAND_LINE),
    "replay/": ("allocator", *SCHEMA),
    "run/": ("agent", "envs", "replay", "parallel", "allocator", "streams", *COMMAND_LINE),
    "run/ray_actors.py": ("start", "trust", "importing", *SCHEMA),
    "bench/": (
        "command",
        "run",
        "agent",
        "nets",
        "envs",
        "replay",
        "parallel",
        "allocator",
        "start",
        *COMMAND_LINE,
    ),
    "api/": ("run", "agent", "envs", "parallel", "start", "hosts", *COMMAND_LINE),
    "exporting/": ("api", "run", "agent", "envs", *COMMAND_LINE),
    "export.py": ("command", "exporting", "api", "run", "start", *COMMAND_LINE),
    "sweep.py": ("run", *COMMAND_LINE),
    "train.py": ("command", "api", "run", "start", "hosts", "sweep", *COMMAND_LINE),
    "data.py": ("command", "run", "start", *COMMAND_LINE),
    "eval.py": ("command", "run", "start", *COMMAND_LINE),
    "__init__.py": ("importing", "api", "run", "agent", "envs", "start", *COMMAND_LINE),
}

WITHOUT_JAX = (
    "envs/",
    "allocator.py",
    "replay/host.py",
    "config/",
    "compose.py",
    "keys.py",
    "explain.py",
    "errors.py",
    "files.py",
    "trust.py",
    "importing.py",
)
JAX = {"jax", "jaxlib", "flax", "optax", "distrax", "chex"}
DEVICE_NAMES = {
    *("pmap", "shard_map", "make_mesh", "sharding", "distributed", "devices", "local_devices"),
    *("device_count", "local_device_count", "device_put", "process_index", "process_count"),
    *("jax_utils", "multihost_utils"),
}


def imports(file: str, source: str | None = None) -> Iterator[str]:
    """Yields the full dotted name of everything that a file imports, inside functions too."""
    text = (PACKAGE / file).read_text(encoding="utf-8") if source is None else source
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def device_uses(file: str, source: str | None = None) -> set[str]:
    """Returns the names of jax's device interface that a file uses, such as 'jax.pmap'."""
    text = (PACKAGE / file).read_text(encoding="utf-8") if source is None else source
    attributes = {
        f"{node.value.id}.{node.attr}"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    used = attributes | set(imports(file, text))
    return {
        name
        for name in used
        if name.split(".")[0] in ("jax", "flax") and DEVICE_NAMES & set(name.split(".")[1:])
    }


def rule(file: str) -> str:
    """Returns the longest row of the table that a file falls under."""
    rows = [
        row for row in MAY_IMPORT if file == row or (row.endswith("/") and file.startswith(row))
    ]
    assert rows, f"{file} is in no row of MAY_IMPORT: say what it may import"
    return max(rows, key=len)


def test_the_package_is_found() -> None:
    assert {"config/env.py", "ops/transforms.py", "envs/registry.py"} <= set(EVERY)


@pytest.mark.parametrize("file", EVERY)
def test_a_file_imports_only_what_its_part_may(file: str) -> None:
    row = rule(file)
    own = row.removesuffix(".py").split("/")[0]
    for name in imports(file):
        parts = name.split(".")
        if parts[0] == "dreamer" and file != "__init__.py":
            assert parts[1] in (own, *MAY_IMPORT[row]), f"{file} imports {name}"


@pytest.mark.parametrize(
    "file",
    [f for f in EVERY if f.startswith(WITHOUT_JAX) and not f.startswith("envs/jax/")],
)
def test_a_file_without_jax(file: str) -> None:
    assert not [name for name in imports(file) if name.split(".")[0] in JAX]


@pytest.mark.parametrize(
    ("package", "home"), [("distrax", "ops/distributions.py"), ("ray", "run/ray_actors.py")]
)
def test_only_one_file_imports(package: str, home: str) -> None:
    users = [file for file in EVERY if package in [name.split(".")[0] for name in imports(file)]]
    assert users == [home]


def test_the_process_of_an_actor_settles_its_platform_before_jax() -> None:
    assert not JAX & {name.split(".")[0] for name in imports("run/ray_actors.py")}


def test_only_one_file_knows_devices() -> None:
    users = {file: names for file in EVERY if (names := device_uses(file))}
    assert set(users) == {"parallel.py"}, users


def test_device_names_are_seen_in_every_form() -> None:
    for source in (
        "import jax\njax.pmap(f)",
        "from jax import pmap",
        "from jax.sharding import Mesh",
        "import jax.sharding",
        "from flax import jax_utils",
        "import jax\njax.distributed.initialize()",
    ):
        assert device_uses("config/env.py", source), source
    assert not device_uses("config/env.py", "import jax\njax.jit(f)\nconfig.devices")


@pytest.mark.parametrize(
    "module", ["dreamer.envs.registry", "dreamer.replay.host", "dreamer.compose"]
)
def test_importing_does_not_load_jax(module: str) -> None:
    """What the files import in turn counts as well: worker processes do without jax."""
    code = f"import sys, {module}; print(sorted({JAX!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
