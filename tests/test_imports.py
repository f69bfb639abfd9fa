"""Who may import whom, and which package is used where: read from the code itself."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "dreamer"
EVERY = tuple(path.relative_to(PACKAGE).as_posix() for path in sorted(PACKAGE.rglob("*.py")))

# Folder or file of dreamer/ -> what of dreamer it may import beside itself; the longest fit counts.
BASE = ("errors", "system", "config")
PARTS = (*BASE, "ops", "nets", "agents", "envs", "replay", "distributed", "rollout", "logs")
TRAINING = (*PARTS, "checkpoint", "datasets", "training")
MAY_IMPORT = {
    "errors.py": (),
    "system/": ("errors",),
    "config/": ("errors", "system"),
    "ops/": (),
    "envs/": BASE,
    "envs/__main__.py": (*BASE, "cli"),
    "replay/": BASE,
    "distributed/": BASE,
    "nets/": (*BASE, "ops"),
    "agents/": (*BASE, "ops", "nets"),
    "rollout/": (*BASE, "ops", "agents", "envs", "replay", "distributed"),
    "logs/": (*BASE, "agents", "replay", "distributed"),
    "checkpoint/": (*BASE, "agents", "envs", "replay", "distributed", "logs"),
    "datasets/": (*PARTS, "checkpoint"),
    "training/": TRAINING,
    "api/": (*TRAINING, "cli"),
    "exporting/": (*TRAINING, "api"),
    "bench/": (*TRAINING, "cli"),
    "cli/": (*TRAINING, "api", "exporting"),
    "train.py": ("cli", "system"),
    "eval.py": ("cli",),
    "export.py": ("cli",),
    "data.py": ("cli",),
    "__init__.py": ("api", "errors", "system", "training"),
}

WITHOUT_JAX = (
    *("envs/", "config/", "errors.py", "replay/host.py", "replay/memory.py", "replay/tree.py"),
    *("system/files.py", "system/allocator.py", "system/importing.py", "system/signals.py"),
    *("cli/compose.py", "cli/sweep.py", "cli/usage.py"),
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


def test_every_file_imports_only_what_its_part_may() -> None:
    found = []
    for file in EVERY:
        row = rule(file)
        own = row.removesuffix(".py").split("/")[0]
        for name in imports(file):
            parts = name.split(".")
            if parts[0] == "dreamer" and parts[1] not in (own, *MAY_IMPORT[row]):
                found.append(f"{file} imports {name}")
    assert not found


def test_environments_configuration_and_host_replay_do_without_jax() -> None:
    found = [
        f"{file} imports {name}"
        for file in EVERY
        if file.startswith(WITHOUT_JAX) and not file.startswith("envs/jax/")
        for name in imports(file)
        if name.split(".")[0] in JAX
    ]
    assert not found


def test_nothing_imports_the_modules_of_commands() -> None:
    commands = {f"dreamer.{name}" for name in ("train", "eval", "export", "data")}
    assert not [file for file in EVERY if commands & set(imports(file))]


@pytest.mark.parametrize(
    ("package", "home"), [("distrax", "ops/distributions.py"), ("ray", "rollout/ray_actors.py")]
)
def test_only_one_file_imports(package: str, home: str) -> None:
    users = [file for file in EVERY if package in [name.split(".")[0] for name in imports(file)]]
    assert users == [home]


def test_the_process_of_an_actor_settles_its_platform_before_jax() -> None:
    assert not JAX & {name.split(".")[0] for name in imports("rollout/ray_actors.py")}


def test_only_one_file_knows_devices() -> None:
    users = {file: names for file in EVERY if (names := device_uses(file))}
    assert set(users) == {"distributed/mesh.py", "distributed/hosts.py"}, users


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
    "module", ["dreamer.envs.registry", "dreamer.replay.host", "dreamer.cli.compose"]
)
def test_importing_does_not_load_jax(module: str) -> None:
    """What the files import in turn counts as well: worker processes do without jax."""
    code = f"import sys, {module}; print(sorted({JAX!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
