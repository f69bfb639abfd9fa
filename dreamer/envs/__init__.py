"""Environments as batched dm_env time steps, in numpy.

`registry.make` builds them, `check.check` tests them.

Nothing here imports jax, so worker processes start fast and hold no accelerator memory.
"""

import os
import sys
import warnings

# Third-party messages, silenced before the packages are imported (workers import this file too).
os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
warnings.filterwarnings("ignore", message=".*avx2 capable but pygame", category=RuntimeWarning)
if sys.platform == "linux" and not {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys():
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # else SDL complains that there is no screen
    os.environ.setdefault("SDL_AUDIODRIVER", "dummy")
