"""What the functions of the library cannot be given is refused in one line, before anything."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from dreamer.api import arguments
from dreamer.errors import UserError
from tests.api import agents

AGENT, ENV = agents.agent, agents.env


def lists(step: Any) -> Any:
    return step._replace(observation={k: x.tolist() for k, x in step.observation.items()})


def seeing(steps: int) -> Any:
    return agents.seeing().record(agents.Noise(agents.IMAGE, agents.STEERING, 2), steps)


def act(change: Callable[[Any], Any]) -> Any:
    return AGENT().policy(num_envs=2)(change(ENV(2).reset()))


def state() -> Any:
    policy = AGENT().policy(num_envs=2)
    policy(ENV(2).reset())
    return policy.state


def predict(**options: Any) -> Any:
    return AGENT().sb3(agents.Choice()).predict(agents.Choice().reset(seed=0)[0], **options)


MISTAKES: dict[str, tuple[Callable[[], Any], str]] = {
    "no environments": (lambda: AGENT().policy(0), "num_envs=0: expected integer >= 1"),
    "a text": (lambda: AGENT().policy("8"), "num_envs='8': expected integer >= 1"),
    "a truth": (lambda: AGENT().make_env(True), "num_envs=True: expected integer >= 1"),
    "a seed": (lambda: AGENT().policy(seed=-1), "seed=-1: expected integer >= 0, <= 4294967295"),
    "half a step": (lambda: AGENT().imagine(state(), 2.5), "horizon=2.5: expected integer >= 1"),
    "no steps": (lambda: AGENT().record(ENV(2), 0), "steps=0: expected integer >= 1"),
    "others' environment": (
        lambda: AGENT().record(agents.Choice(), 3),
        "env: expected environments of make_env, not <tests.api.agents.Choice",
    ),
    "no time step": (lambda: act(lambda step: None), "time_step: expected one of env.reset() or"),
    "an observation": (
        lambda: act(lambda step: step.observation),
        "time_step: expected one of env.reset() or env.step(action), not {'",
    ),
    "without keys": (
        lambda: act(lambda step: step._replace(observation=step.observation["observation"])),
        "time_step.observation: expected a dict of arrays by key, not array([[",
    ),
    "lists": (
        lambda: act(lists),
        "observation 'observation': the agent expects float32 (2, 3), but got a list, which is no",
    ),
    "kinds in a list": (
        lambda: act(lambda step: step._replace(step_type=[0, 0])),
        "time_step: step_type has shape (), but the policy is for 2 environments; make",
    ),
    "no state": (
        lambda: AGENT().imagine(None),
        "state: expected the carry of a policy, policy.state, not None",
    ),
    "a policy": (lambda: AGENT().imagine(AGENT().policy()), "state: expected the carry of a pol"),
    "a state of another agent": (
        lambda: agents.seeing().imagine(state()),
        "state: it does not fit this agent; use that of one of its policies",
    ),
    "recorded by another agent": (
        lambda: agents.seeing().predict_video(AGENT().record(ENV(2), 4)),
        "sequences: 'action' does not fit this agent; record them with this one",
    ),
    "nothing recorded": (
        lambda: agents.seeing().predict_video({}),
        "sequences: expected all that agent.record gives, not {}",
    ),
    "too few steps": (
        lambda: agents.seeing().predict_video(seeing(2)),
        "sequences have 2 steps, but predictions need 3: the start, an observed step and an",
    ),
    "half a context": (
        lambda: agents.seeing().predict_video(seeing(4), context=1.5),
        "context=1.5: expected integer >= 1, <= 2",
    ),
    "no memory": (
        lambda: predict(state=3),
        "state: expected None or the state that predict returned, not 3",
    ),
    "no spaces": (
        lambda: AGENT().sb3(ENV(2)),
        "env: expected an environment of gymnasium, or a VecEnv, not <tests.api.agents.Noise",
    ),
}


@pytest.mark.parametrize(("call", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        call()
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_whole_numbers_are_those_of_numpy_as_well() -> None:
    assert arguments.whole("n", np.int64(3)) == arguments.whole("n", 3, 3, 3) == 3
    assert isinstance(arguments.whole("n", np.int64(3)), int)
    assert arguments.seed(2**32 - 1) == 2**32 - 1
    for wrong in (2**32, 1.0, None):
        with pytest.raises(UserError, match="expected integer >= 0, <= 4294967295"):
            arguments.seed(wrong)
