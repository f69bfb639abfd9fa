"""The lines at the start of a run, their numbers worked out by hand."""

from types import SimpleNamespace

import numpy as np
import pytest

from dreamer.cli import compose
from dreamer.logs.plan import plan

DEVICE = SimpleNamespace(device_kind="Abacus")
# 4 + 7 + 1 = 12 bytes for a step.
SPEC = {
    "reward": ((), np.dtype(np.float32)),
    "image": ((7,), np.dtype(np.uint8)),
    "last": ((), np.dtype(bool)),
}


def rows(*options: str, devices: int = 1, loaded: int = 0) -> dict[str, str]:
    config = compose.compose(list(options))
    text = plan(config, 1_234_567, SPEC, [DEVICE] * devices, loaded=loaded)
    return dict(line.split(None, 1) for line in text.splitlines())


def test_numbers() -> None:
    found = rows(
        *("env.task=Acrobot-v1", "env.num_envs=3", "run.steps=3000", "replay.train_ratio=64"),
        *("replay.batch_size=8", "replay.batch_length=32", "replay.capacity=262144"),
    )
    assert found == {
        "task": "gymnasium Acrobot-v1, 3 environments",
        "agent": "nano, 1,234,567 parameters, on 1 Abacus device",
        "steps": "3,000 environment steps",
        "replayed": "64 steps per environment step",
        # 64 / 256 = 1 / 4. After 86 + 32 steps of each of the 3 environments there are 3 * 86 = 258
        # sequences of 33 steps; the other 3,000 - 354 steps owe 661.5 updates.
        "updates": "0.25 per environment step from 354 on, 661 in total, "
        "each of 8 x 32 = 256 replayed steps",
        # 12 bytes times 2^18 are 3 times 2^20.
        "replay": "3.0 MiB in host memory for 262,144 steps",
    }


def test_frames_are_counted_after_action_repeat() -> None:
    assert (
        rows("env.repeat=4", "run.steps=1000")["steps"] == "1,000 environment steps (4,000 frames)"
    )


def test_recorded_steps() -> None:
    """With updates of 16 x 64 steps, which need 1,088 steps in the replay."""
    sizes = ("replay.batch_size=16", "replay.batch_length=64", "run.steps=2048")
    found = rows(*sizes, loaded=1000)
    assert " from 88 on" in found["updates"]
    assert found["replay"].endswith("steps, of which 1,000 are recorded")
    found = rows(*sizes, "run.offline=true", "replay.load=x", loaded=1024)
    assert found["updates"] == "2,048, each of 16 x 64 = 1,024 replayed steps"
    assert found["replayed"] == "2,048.0 times each recorded step"
    assert found["task"] == "gymnasium CartPole-v1, offline"
    assert "steps" not in found
    assert " from 0 on" in rows(*sizes, loaded=5000)["updates"]


@pytest.mark.parametrize(("devices", "text"), [(1, "1 Abacus device"), (4, "4 Abacus devices")])
def test_devices(devices: int, text: str) -> None:
    assert rows(devices=devices)["agent"].endswith(f"on {text}")


def test_columns_are_aligned() -> None:
    lines = plan(compose.compose([]), 1, SPEC, [DEVICE]).splitlines()
    assert {line[:9].strip() == line.split()[0] and line[9:11] == "  " for line in lines} == {True}
