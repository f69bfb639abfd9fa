"""Agents by name."""

from collections.abc import Callable

from dreamer.agents.dreamer import dreamer
from dreamer.agents.interface import Agent
from dreamer.config.agent import AgentConfig
from dreamer.errors import UserError, nearest
from dreamer.nets.spaces import Specs

Make = Callable[[AgentConfig, Specs, Specs, int], Agent]

AGENTS: dict[str, Make] = {"dreamer": dreamer.make}


def make_agent(config: AgentConfig, observations: Specs, actions: Specs, updates: int = 0) -> Agent:
    """The agent that `agent.kind` names, for an environment's spaces.

    Args:
      config: the agent's section.
      observations, actions: dm_env specs by key.
      updates: gradient updates of the whole run, for schedules; not needed to act.

    Raises:
      UserError: no such agent, or unsupported spaces.
    """
    if config.kind not in AGENTS:
        close = nearest(config.kind, AGENTS)
        raise UserError(f"agent.kind={config.kind}: expected one of {', '.join(AGENTS)}{close}")
    return AGENTS[config.kind](config, observations, actions, updates)
