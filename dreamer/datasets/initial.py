"""The initial data of a run: recorded episodes in its replay, weights of another run."""

from dataclasses import dataclass
from typing import Any

from dreamer.agents.interface import Agent
from dreamer.checkpoint import loading
from dreamer.config import Config
from dreamer.datasets import sources
from dreamer.datasets.recorded import Recording
from dreamer.errors import UserError


@dataclass(frozen=True)
class Initial:
    """Recorded episodes and weights; neither by default."""

    recording: Recording | None = None
    params: Any = None  # of every network
    origin: str = ""  # of the parameters, for messages

    def steps(self, num_envs: int) -> int:
        """Steps to add to the replay, equally many for every environment."""
        return self.recording.rows // num_envs * num_envs if self.recording else 0

    def __str__(self) -> str:
        parts = [f"starts from {self.origin}"] if self.origin else []
        if self.recording:
            count, rows = len(self.recording.lengths), self.recording.rows
            parts.append(f"{count:,} episodes, {rows:,} rows, of {self.recording.name}")
        return "; ".join(parts)


NOTHING = Initial()


def choose(config: Config, agent: Agent, params: Any) -> Initial:
    """The initial data that `replay.load` and `run.init_from` name.

    Args:
      config: the whole configuration.
      agent: networks.
      params: fresh parameters, used where no other run provides them.

    Raises:
      UserError: they do not exist, or do not fit.
    """
    recording = None
    if config.replay.load:
        spaces = sources.spaces_of(config.env, config.seed, agent.observations)
        recording = sources.open_recording(config.replay.load, "replay.load", spaces)
        _check_length(config, recording)
    if not config.run.init_from:
        return Initial(recording)
    source, modules = config.run.init_from, config.run.init_modules
    params = loading.load_weights(source, modules, params)
    return Initial(recording, params, f"{', '.join(modules) or 'the weights'} of {source}")


def _check_length(config: Config, recording: Recording) -> None:
    rings, rows = config.env.num_envs, recording.rows
    if rows // rings > config.replay.capacity // rings:
        raise UserError(
            f"replay.load={config.replay.load} has {rows} steps, more than replay.capacity="
            f"{config.replay.capacity}; raise it to at least {rows // rings * rings}"
        )
    window = config.replay.batch_length + 1
    if config.run.offline and rows // rings < window:
        raise UserError(
            f"replay.load={config.replay.load} has {rows} steps, too few for one sequence of "
            f"replay.batch_length + 1 = {window} in each of env.num_envs={rings} rings; record "
            "more, or lower one of both"
        )
