"""The OpenGL backend of MuJoCo on machines without a screen: EGL, else OSMesa, found by a trial.

dm_control reads MUJOCO_GL once, when it is imported, so `choose` runs before that import.
"""

import multiprocessing
import os
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import gymnasium

from dreamer.errors import UserError

VARIABLE = "MUJOCO_GL"
BACKENDS = {"egl": "libegl1", "osmesa": "libosmesa6"}  # and the Debian package of each
NONE = "disabled"
# Without a screen, glfw makes a context, and only drawing fails.
_TRIAL = """
import mujoco
model = mujoco.MjModel.from_xml_string("<mujoco/>")
with mujoco.Renderer(model, 8, 8) as renderer:
    renderer.update_scene(mujoco.MjData(model))
    renderer.render()
"""


def choose() -> None:
    """Sets MUJOCO_GL, unless it is set, to the first backend that draws, or disables drawing.

    On Linux only: elsewhere packages choose. Workers inherit the choice of this process.

    Raises:
      UserError: The variable is set to a backend that cannot draw.
    """
    given = os.environ.get(VARIABLE)
    if sys.platform != "linux" or given in ("", NONE) or not find_spec("mujoco"):
        return  # the next import reports that it is not installed
    if given and (multiprocessing.parent_process() or _draws(given)):
        return
    if given:
        raise UserError(
            f"{VARIABLE}={given} cannot draw on this machine; unset it to choose the first of "
            f"{', '.join(BACKENDS)} that can"
        )
    os.environ[VARIABLE] = next(filter(_draws, BACKENDS), NONE)


def can_draw() -> bool:
    """Whether `choose` found a backend."""
    return os.environ.get(VARIABLE) != NONE


def require(what: str) -> None:
    """Refuses a task that must be drawn where nothing can draw.

    Raises:
      UserError: Naming the packages to install.
    """
    if not can_draw():
        packages = " or ".join(f"{package} ({name})" for name, package in BACKENDS.items())
        raise UserError(
            f"{what} must be drawn, and neither EGL nor OSMesa can on this machine: install the "
            f"Debian package {packages}, and unset {VARIABLE}"
        )


class OwnContext(gymnasium.Wrapper):
    """Draws in the OpenGL context of the environment, and frees its resources there.

    MuJoCo environments of gymnasium do both in the newest context, even of another environment:
    with several in a process, or after another was closed, frames are black.
    """

    def render(self) -> Any:
        self._viewer()
        return self.env.render()

    def close(self) -> None:
        viewer = self._viewer()
        if viewer is not None:
            viewer.con.free()
        self.env.close()

    def _viewer(self) -> Any:
        """Makes the context of the viewer current and returns it; None before the first frame."""
        viewer = getattr(getattr(self.unwrapped, "mujoco_renderer", None), "viewer", None)
        if viewer is not None:
            viewer.make_context_current()
        return viewer


def _draws(backend: str) -> bool:
    """Whether a backend draws, in a process of its own, which a failing driver may end."""
    done = subprocess.run(
        [sys.executable, "-c", _TRIAL], env=os.environ | {VARIABLE: backend}, capture_output=True
    )
    return done.returncode == 0
