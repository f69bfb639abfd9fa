"""The agents by name."""

from collections.abc import Callable

from dreamer.agents.dreamer import dreamer
from dreamer.agents.interface import Agent
from dreamer.config.agent import AgentConfig
from dreamer.errors import UserError, nearest
from dreamer.nets.spaces import Specs

Make = Callable[[AgentConfig, Specs, Specs], Agent]

AGENTS: dict[str, Make] = {"dreamer": dreamer.make}


def make_agent(config: AgentConfig, observations: Specs, actions: Specs) -> Agent:
    """The agent that `agent.kind` names, for an environment's spaces.

    Args:
      config: the agent's section.
      observations, actions: dm_env specs by key.

    Raises:
      UserError: there is no such agent, or the spaces do not suit it.
    """
    if config.kind not in AGENTS:
        close = nearest(config.kind, AGENTS)
        raise UserError(f"agent.kind={config.kind}: expected one of {', '.join(AGENTS)}{close}")
    return AGENTS[config.kind](config, observations, actions)
