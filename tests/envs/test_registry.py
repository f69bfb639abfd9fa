import importlib
import sys
from types import SimpleNamespace
from typing import get_args

import pytest

from dreamer.config import Env
from dreamer.envs import registry
from dreamer.errors import UserError


def test_every_suite_of_the_schema_is_registered_and_resolves():
    schema = {member.model_fields["suite"].default for member in get_args(get_args(Env)[0])}
    assert schema == registry.SUITES.keys()
    for suite in registry.SUITES.values():
        assert callable(importlib.import_module(suite.module).make)


def test_every_suite_makes_its_default_task():
    for member in get_args(get_args(Env)[0]):
        env = registry.make(member(), 1, 0)
        assert env.reset().step_type.tolist() == [0]
        env.close()


def test_unknown_suite_names_the_nearest():
    with pytest.raises(UserError, match=r"env.suite=atri is unknown; did you mean atari\?"):
        registry.make(SimpleNamespace(suite="atri"), 1, 0)


def test_missing_package_names_the_command(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(sys.modules, "dreamer.envs.atari", raising=False)
    monkeypatch.setitem(sys.modules, "ale_py", None)  # importing it raises ImportError
    config = SimpleNamespace(suite="atari", task="pong")
    with pytest.raises(UserError, match=r'env.suite=atari .*pip install "gymnasium\[atari\]"'):
        registry.make(config, 1, 0)
