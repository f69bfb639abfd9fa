"""The lines at the start of a run, their numbers worked out by hand."""

from types import SimpleNamespace

import numpy as np
import pytest

from dreamer import compose
from dreamer.run.plan import plan

DEVICE = SimpleNamespace(device_kind="Abacus")
# 4 + 7 + 1 = 12 bytes for a step.
SPEC = {
    "reward": ((), np.dtype(np.float32)),
    "image": ((7,), np.dtype(np.uint8)),
    "last": ((), np.dtype(bool)),
}


def rows(*options: str, devices: int = 1) -> dict[str, str]:
    text = plan(compose.compose(list(options)), 1_234_567, SPEC, [DEVICE] * devices)
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
        "updates": "0.25 per environment step from 354 on, 661 in all, "
        "each of 8 x 32 = 256 replayed steps",
        # 12 bytes times 2^18 are 3 times 2^20.
        "replay": "3.0 MiB in host memory for 262,144 steps",
    }


def test_frames_are_counted_after_action_repeat() -> None:
    assert (
        rows("env.repeat=4", "run.steps=1000")["steps"] == "1,000 environment steps (4,000 frames)"
    )


@pytest.mark.parametrize(("devices", "text"), [(1, "1 Abacus device"), (4, "4 Abacus devices")])
def test_devices(devices: int, text: str) -> None:
    assert rows(devices=devices)["agent"].endswith(f"on {text}")


def test_columns_are_aligned() -> None:
    lines = plan(compose.compose([]), 1, SPEC, [DEVICE]).splitlines()
    assert {line[:9].strip() == line.split()[0] and line[9:11] == "  " for line in lines} == {True}
