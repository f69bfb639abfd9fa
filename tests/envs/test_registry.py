import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest

from dreamer.config.env import CrafterEnv, Env
from dreamer.envs import registry
from dreamer.errors import UserError
from tests.envs import suites

ROOT = Path(__file__).resolve().parents[2]
MEMBERS = {member.model_fields["suite"].default: member for member in get_args(get_args(Env)[0])}


def test_every_suite_of_the_schema_is_registered():
    assert MEMBERS.keys() == registry.SUITES.keys()


@pytest.mark.parametrize("name", registry.SUITES)
def test_every_suite_resolves_and_makes_its_default_task(name: str):
    module = suites.module(name)
    kind = "make_simulator" if registry.SUITES[name].jax else "make_env"
    assert callable(getattr(module, "make", None) or getattr(module, kind))
    assert MEMBERS[name]().task in module.TASKS
    if name == "memory_maze":
        suites.drawn()
    env = registry.make(MEMBERS[name](), 1, 0)
    assert env.reset().step_type.tolist() == [0]
    env.close()


def test_the_suites_that_every_developer_has_are_not_skipped():
    for name in ("gymnasium", "atari", "gymnax"):
        assert suites.module(name)


def test_a_suite_that_names_a_module_of_ours_which_does_not_exist_is_not_skipped(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setitem(registry.SUITES, "lost", registry.Suite("dreamer.envs.lost", "", ""))
    with pytest.raises(ModuleNotFoundError):
        suites.module("lost")


def test_a_loop_on_the_device_names_the_suites_that_it_can_have():
    with pytest.raises(UserError, match=r"env.suite=atari is not; .* env=gymnax, env=craftax, env"):
        registry.make_jax(SimpleNamespace(suite="atari"))


@pytest.mark.parametrize("name", [n for n in registry.SUITES if n not in ("gymnasium", "atari")])
def test_every_package_has_an_extra_of_its_name(name: str):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    suite, extra = registry.SUITES[name], name.replace("_", "-")
    assert suite.install.startswith(f"pip install 'dreamer[{extra}]'")
    assert project["optional-dependencies"][extra][0].startswith(suite.package)


def test_unknown_suite_names_the_nearest():
    with pytest.raises(UserError, match=r"env.suite=atri is unknown; did you mean atari\?"):
        registry.make(SimpleNamespace(suite="atri"), 1, 0)


def test_missing_package_names_the_command(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(sys.modules, "dreamer.envs.atari", raising=False)
    monkeypatch.setitem(sys.modules, "ale_py", None)  # importing it raises ImportError
    config = SimpleNamespace(suite="atari", task="pong")
    with pytest.raises(UserError, match=r'env.suite=atari .*pip install "gymnasium\[atari\]"'):
        registry.make(config, 1, 0)


@pytest.fixture
def crafter(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A module in place of the suite crafter."""
    module = SimpleNamespace(TASKS=("reward", "noreward"))
    monkeypatch.setitem(sys.modules, "dreamer.envs.crafter_suite", module)
    return module


def test_an_unknown_task_names_the_nearest_and_where_many_are_listed(crafter: SimpleNamespace):
    with pytest.raises(UserError, match="task=rewad is no task of crafter; did you mean reward?"):
        registry.make(CrafterEnv(task="rewad"), 1, 0)
    crafter.TASKS = [f"task{number}" for number in range(31)]
    with pytest.raises(UserError, match="tasks are listed by python -m dreamer.envs crafter$"):
        registry.make(CrafterEnv(task="rewad"), 1, 0)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("it does not work", "^env.task=reward: it does not work$"),
        ("env.image_size=[1, 1] is too small", r"^env.image_size=\[1, 1\] is too small$"),
    ],
)
def test_errors_name_the_task_or_the_key(crafter: SimpleNamespace, message: str, said: str):
    def broken(config: CrafterEnv, render: bool) -> None:
        raise UserError(message)

    crafter.make_env = broken
    with pytest.raises(UserError, match=said):
        registry.make(CrafterEnv(), 1, 0)
