"""What an agent sees and does, kept as text and compared."""

import json

import numpy as np
import pytest
from dm_env import specs

from dreamer.agent import agent as networks
from dreamer.agent import interface
from dreamer.errors import UserError
from tests import tiny
from tests.agent.test_masks import masked


def test_networks_from_what_was_kept_are_the_same() -> None:
    """The order of images too, which are the channels of one."""
    images = {key: specs.BoundedArray((8, 8, 3), np.uint8, 0, 255, key) for key in ("left", "eye")}
    small = {"encoder": {"mults": (1,)}, "decoder": {"mults": (1,)}}
    for agent in (masked(), tiny.agent(images | tiny.VECTOR, tiny.CONTINUOUS, **small)):
        saved = json.loads(json.dumps(interface.dump(agent)))
        again = networks.make_agent(agent.config, *interface.load(saved))
        assert list(again.observations) == list(agent.observations)
        for part in ("encoder", "decoder"):
            ours, theirs = (
                [(key, x.shape, x.dtype) for key, x in getattr(made.model, part).observations]
                for made in (again, agent)
            )
            assert ours == theirs
        assert again.behavior.actor.actions[0][0] == agent.behavior.actor.actions[0][0]
        assert interface.dump(again) == interface.dump(agent)
        interface.check(again, agent.observations, agent.actions, whole=True)


def test_only_what_is_seen_must_be_there() -> None:
    agent = tiny.agent(
        tiny.VECTOR | {"other": specs.Array((2,), np.float32)},
        tiny.DISCRETE,
        encoder={"keys": "observation"},
    )
    assert list(interface.seen(agent)) == ["observation"]
    interface.check(agent, tiny.VECTOR, tiny.DISCRETE)
    with pytest.raises(UserError, match=r"'other': the agent expects float32 \(2,\), but .* none"):
        interface.check(agent, tiny.VECTOR, tiny.DISCRETE, whole=True)
    with pytest.raises(UserError, match="'push': the agent expects none, only action, but the env"):
        interface.check(agent, tiny.VECTOR, tiny.DISCRETE | {"push": tiny.CONTINUOUS["action"]})
    four = {"action": specs.DiscreteArray(4, np.int32)}
    with pytest.raises(UserError, match=r"int32 \(\) of 3 classes, but .* int32 \(\) of 4 classes"):
        interface.check(agent, tiny.VECTOR, four)
