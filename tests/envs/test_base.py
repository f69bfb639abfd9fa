import subprocess
import sys

import numpy as np
from dm_env import specs

from dreamer.envs.base import episode_seed, mask_key, random_action
from dreamer.nets import spaces


def test_episode_seeds_differ_by_every_part_and_repeat():
    cases = [(seed, i, k) for seed in (0, 1) for i in range(3) for k in range(50)]
    seeds = [episode_seed(*case) for case in cases]
    assert len(set(seeds)) == len(cases)
    assert seeds == [episode_seed(*case) for case in cases]
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_random_actions_cover_the_spec():
    spec = {
        "move": specs.BoundedArray((2,), np.float32, -1, 1),
        "push": specs.DiscreteArray(3),
        "pick": specs.BoundedArray((2,), np.int32, 0, 3),
    }
    action = random_action(spec, 500, np.random.default_rng(0))
    assert {key: value.shape for key, value in action.items()} == {
        "move": (500, 2),
        "push": (500,),
        "pick": (500, 2),
    }
    for key, leaf in spec.items():
        assert action[key].dtype == leaf.dtype
        for row in action[key]:
            leaf.validate(row)
    assert set(action["push"]) == {0, 1, 2}
    assert set(action["pick"].ravel()) == {0, 1, 2, 3}
    assert action["move"].min() < -0.9
    assert action["move"].max() > 0.9


def test_random_actions_respect_masks():
    spec = {"action": specs.DiscreteArray(4), "pick": specs.BoundedArray((2,), np.int32, 0, 2)}
    rng = np.random.default_rng(0)
    seen = {
        "action_mask": np.tile([True, False, True, False], (500, 1)),
        "action_mask_pick": np.tile([[False, True, False], [False, False, False]], (500, 1, 1)),
    }
    action = random_action(spec, 500, rng, seen)
    assert {key: value.dtype for key, value in action.items()} == dict.fromkeys(spec, np.int32)
    assert set(action["action"]) == {0, 2}
    assert 200 < (action["action"] == 0).sum() < 300
    assert set(action["pick"][:, 0]) == {1}
    assert set(action["pick"][:, 1]) == {0, 1, 2}, "where nothing is valid, everything is"


def test_masks_are_named_as_the_agent_looks_for_them():
    for action in ("action", "pick"):
        assert mask_key(action) == spaces.mask_key(action)


def test_environments_import_no_jax():
    modules = "base check episodes gymnasium_suite images registry spaces vector wrappers atari"
    code = f"""
import importlib, sys
for name in "{modules}".split():
    importlib.import_module("dreamer.envs." + name)
loaded = {{"jax", "jaxlib", "flax"}} & sys.modules.keys()
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
