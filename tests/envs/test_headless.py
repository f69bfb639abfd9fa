import multiprocessing
import os
import sys
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

from dreamer.config.env import GymnasiumEnv
from dreamer.envs import headless, registry
from dreamer.errors import UserError
from tests.envs import suites

linux = pytest.mark.skipif(sys.platform != "linux", reason="only there is anything chosen")


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets which backends can draw, and returns those that were tried."""
    tried: list[str] = []
    monkeypatch.setattr(headless, "find_spec", lambda name: name)
    monkeypatch.setenv(headless.VARIABLE, "")  # restored after the test
    monkeypatch.delenv(headless.VARIABLE)

    def can(*backends: str) -> list[str]:
        monkeypatch.setattr(headless, "_draws", lambda b: tried.append(b) or b in backends)
        return tried

    return can


@linux
@pytest.mark.parametrize(
    ("able", "chosen"),
    [(("egl", "osmesa"), "egl"), (("osmesa",), "osmesa"), ((), headless.NONE)],
)
def test_egl_is_preferred_to_osmesa(draws: Any, able: tuple, chosen: str) -> None:
    draws(*able)
    headless.choose()
    assert os.environ[headless.VARIABLE] == chosen
    assert headless.can_draw() == bool(able)


@linux
def test_a_backend_set_by_the_user_is_kept_if_it_draws(
    draws: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(headless.VARIABLE, "osmesa")
    tried = draws("egl", "osmesa")
    headless.choose()
    assert (os.environ[headless.VARIABLE], tried) == ("osmesa", ["osmesa"])
    draws("egl")
    with pytest.raises(UserError, match="MUJOCO_GL=osmesa cannot draw on this machine; unset it"):
        headless.choose()


@linux
def test_workers_inherit_the_backend(draws: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(headless.VARIABLE, "egl")
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: "the main one")
    tried = draws()
    headless.choose()
    assert tried == []


@linux
def test_where_nothing_draws_images_are_refused_and_vectors_are_not(draws: Any) -> None:
    draws()
    headless.choose()
    headless.choose()  # by another suite, with the same result
    with pytest.raises(UserError, match=r"env.view=vision must be drawn.*libegl1.*libosmesa6"):
        headless.require("env.view=vision")


@linux
@pytest.mark.parametrize("backend", ["no_such_backend", "glfw"])
@pytest.mark.skipif(not find_spec("mujoco"), reason="its backends are tried")
def test_a_backend_that_cannot_draw_is_refused(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """glfw makes a context without a screen, in which nothing can be drawn."""
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(headless.VARIABLE, backend)
    with pytest.raises(UserError, match=f"MUJOCO_GL={backend} cannot draw on this machine"):
        headless.choose()


@pytest.mark.skipif(not find_spec("mujoco"), reason="its environments need it")
def test_each_of_several_environments_draws_in_its_own_context() -> None:
    suites.drawn()
    config = GymnasiumEnv(task="Hopper-v5", pixels=True, image_size=(16, 16), workers="serial")
    env = registry.make(config, 2, 0)
    seen = [env.reset(), env.step({"action": np.ones((2, 3), np.float32)})]
    for found in seen:
        assert (np.ptp(found.observation["image"], axis=(1, 2, 3)) > 50).all()
    env.close()


@pytest.mark.skipif(not find_spec("mujoco"), reason="its environments need it")
def test_pixels_of_mujoco_are_refused_where_nothing_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(headless.VARIABLE, headless.NONE)
    with pytest.raises(UserError, match="env.pixels=true must be drawn, and neither EGL"):
        registry.make(GymnasiumEnv(task="Hopper-v5", pixels=True), 1, 0)
    env = registry.make(GymnasiumEnv(task="Hopper-v5"), 1, 0, render=True)
    env.reset()
    assert env.render() is None
    env.close()


@linux
def test_nothing_is_tried_where_mujoco_is_not_installed(
    draws: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(headless, "find_spec", lambda name: None)
    tried = draws()
    headless.choose()
    assert tried == []
    assert headless.VARIABLE not in os.environ
