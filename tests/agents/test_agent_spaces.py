"""What an agent sees and does, kept as text and compared."""

import json

import numpy as np
import pytest
from dm_env import specs

from dreamer.agents import agent_spaces, registry
from dreamer.errors import UserError
from tests import tiny
from tests.agents.dreamer.test_masks import masked


def test_networks_from_what_was_kept_are_the_same() -> None:
    """The order of images too, which are the channels of one."""
    images = {key: specs.BoundedArray((8, 8, 3), np.uint8, 0, 255, key) for key in ("left", "eye")}
    small = {"encoder": {"mults": (1,)}, "decoder": {"mults": (1,)}}
    for agent in (masked(), tiny.agent(images | tiny.VECTOR, tiny.CONTINUOUS, **small)):
        saved = json.loads(json.dumps(agent_spaces.dump(agent)))
        again = registry.make_agent(agent.config, *agent_spaces.load(saved))
        assert list(again.observations) == list(agent.observations)
        for part in ("encoder", "decoder"):
            ours, theirs = (
                [(key, x.shape, x.dtype) for key, x in getattr(made.model, part).observations]
                for made in (again, agent)
            )
            assert ours == theirs
        assert again.behavior.actor.actions[0][0] == agent.behavior.actor.actions[0][0]
        assert agent_spaces.dump(again) == agent_spaces.dump(agent)
        agent_spaces.check(again, agent.observations, agent.actions, whole=True)


def test_only_what_is_seen_must_be_there() -> None:
    agent = tiny.agent(
        tiny.VECTOR | {"other": specs.Array((2,), np.float32)},
        tiny.DISCRETE,
        encoder={"keys": "observation"},
    )
    assert list(agent.seen) == ["observation"]
    agent_spaces.check(agent, tiny.VECTOR, tiny.DISCRETE)
    with pytest.raises(UserError, match=r"'other': the agent expects float32 \(2,\), but .* none"):
        agent_spaces.check(agent, tiny.VECTOR, tiny.DISCRETE, whole=True)
    with pytest.raises(UserError, match="'push': the agent expects none, only action, but the env"):
        agent_spaces.check(agent, tiny.VECTOR, tiny.DISCRETE | {"push": tiny.CONTINUOUS["action"]})
    four = {"action": specs.DiscreteArray(4, np.int32)}
    with pytest.raises(UserError, match=r"int32 \(\) of 3 classes, but .* int32 \(\) of 4 classes"):
        agent_spaces.check(agent, tiny.VECTOR, four)
