"""The interface of agents, as training, rollouts, checkpoints and export use it.

Legend: N environments, B sequences, T steps, F row of replay.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax
from jax import Array
from jax.typing import DTypeLike

from dreamer.config.agent import AgentConfig
from dreamer.errors import UserError
from dreamer.nets.spaces import Specs

Params = Mapping[str, Any]  # parameters of each network, by its name
Carry = Any  # pytree, leaves [N, ...]
Actions = Mapping[str, Array]
Latent = Mapping[str, Array]  # what acting adds to replay rows, leaves [N, ...]
Act = Callable[..., tuple[Carry, Actions, Latent]]
TrainStep = Callable[..., tuple[Any, Latent, dict[str, Array]]]
Ended = Sequence[tuple[int, float, int]]  # environment, return and length of each episode


class State(Protocol):
    """What learning changes: a pytree, the same on every device."""

    @property
    def params(self) -> Params: ...

    @property
    def updates(self) -> Array:
        """int32, gradient updates so far."""
        ...


@dataclass(frozen=True)
class Phase:
    """A stage of learning, which ends when each limit that it has is reached.

    Attributes:
      name: for the display and checkpoints.
      act: as `Agent.act`; None where no environment is stepped.
      train_step: as `Agent.train_step`; None where nothing is learned from replay. Without `act`,
        every iteration is one call of updates.
      steps: environment steps of the run at which the phase ends.
      updates: updates of the run at which it ends.
      evolve: maps (state, carry, episodes that ended) to (state, carry), to learn from returns; the
        carry may contain the weights of each environment.
    """

    name: str
    act: Act | None
    train_step: TrainStep | None
    steps: int | None = None
    updates: int | None = None
    evolve: Callable[[Any, Carry, Ended], tuple[Any, Carry]] | None = None

    def over(self, step: int, updates: int) -> bool:
        """Whether the next phase starts; a phase without limits lasts until the run ends."""
        limits = [(self.steps, step), (self.updates, updates)]
        reached = [done >= limit for limit, done in limits if limit is not None]
        return bool(reached) and all(reached)


class Agent(Protocol):
    """Networks and settings, immutable; `State` and `Carry` hold what changes.

    Attributes:
      config: the `agent` section.
      observations: specs by key of the observations it uses; replay stores only these.
      actions: specs by key.
      dtype: of activations.
      acting: names of the networks used by `act`.
    """

    config: AgentConfig
    observations: Specs
    actions: Specs
    dtype: DTypeLike
    acting: tuple[str, ...]

    @property
    def seen(self) -> Specs:
        """The observations used by `act`."""
        return self.observations

    @property
    def latent(self) -> Mapping[str, tuple[tuple[int, ...], Any]]:
        """Shape and dtype per environment of what `act` returns for replay."""
        return {}

    @property
    def phases(self) -> tuple[Phase, ...]:
        """Stages of learning, in order."""
        return (Phase("train", self.act, self.train_step),)

    @property
    def single_phase(self) -> bool:
        """Whether there is one phase, which acts and learns."""
        first = self.phases[0]
        own = (first.act, first.train_step, first.evolve) == (self.act, self.train_step, None)
        return len(self.phases) == 1 and own

    def init(self, key: Array) -> State:
        """An initial `State`; jitted."""
        ...

    def state_of(self, params: Params) -> State:
        """The `State` from which learning starts with these parameters."""
        ...

    def initial_carry(self, num_envs: int) -> Carry:
        """The carry before the first step."""
        ...

    def noise(self, key: Array, num_envs: int, greedy: bool) -> dict[str, Array]:
        """The noise of one step of the policy, leaves [N, ...] by name; less of it if greedy."""
        return {}

    def act_with(
        self,
        params: Params,
        carry: Carry,
        observation: Mapping[str, Array],
        is_first: Array,
        noise: Mapping[str, Array],
    ) -> tuple[Carry, Actions, Latent]:
        """One step of the policy in N environments; a pure function.

        Args:
          params: at least those of `acting`.
          carry: of the last step.
          observation: [N, *shape] by key, at least those of `seen`.
          is_first: [N], whether an episode starts.
          noise: of this step.

        Returns:
          The carry, actions for the environment [N, *shape] by key, and the latent for replay.
        """
        ...

    def act(
        self,
        params: Params,
        carry: Carry,
        observation: Mapping[str, Array],
        is_first: Array,
        key: Array,
        greedy: bool,
        shard: tuple[int, int] = (0, 1),
    ) -> tuple[Carry, Actions, Latent]:
        """`act_with` noise drawn from a random key.

        Args:
          params, carry, observation, is_first: as of `act_with`.
          key: random key of this step.
          greedy: mode of the policy instead of a sample.
          shard: (i, n) where these are the i-th N of n times N environments that draw as one.
        """
        number, count = shard
        size = is_first.shape[0]
        noise = self.noise(key, count * size, greedy)
        if count > 1:
            noise = jax.tree.map(lambda x: x[number * size : (number + 1) * size], noise)
        return self.act_with(params, carry, observation, is_first, noise)

    def train_step(
        self, state: Any, batch: Mapping, key: Array, axis_name: str | None = None
    ) -> tuple[State, Latent, dict[str, Array]]:
        """One gradient update.

        Args:
          state: before it.
          batch: rows of this device's sequences, leaves [B, T + 1, ...].
          key: the run's key.
          axis_name: device axis to average over, if any.

        Returns:
          The new state, latents to write back into replay [B, T, ...], and scalar metrics, of which
          `optimizer/skipped` is 1 where the update was skipped.
        """
        ...

    # ------------------------------------------------------------------------------- exporting

    def compact(self, params: Params) -> Params:
        """Parameters in the dtypes they are used in."""
        return params

    def noise_kind(self, name: str) -> str:
        """The distribution of a part of `noise`, in words."""
        return "standard normal"

    # ---------------------------------------------------------------------- what it can show

    @property
    def images(self) -> tuple[str, ...]:
        """Keys of the images that `open_loop` predicts."""
        return ()

    def open_loop(self, params: Params, batch: Mapping, context: int, key: Array) -> Any:
        """Predictions of observations [B, T, ...] by key; the first `context` steps are observed.

        Raises:
          UserError: the agent predicts no observations.
        """
        raise UserError(f"agent.kind={self.config.kind} predicts no observations")

    def imagine(
        self, params: Params, carry: Carry, horizon: int, key: Array, greedy: bool, decode: bool
    ) -> dict[str, Any]:
        """An imagined future, see `TrainedAgent.imagine`.

        Raises:
          UserError: the agent imagines nothing.
        """
        raise UserError(f"agent.kind={self.config.kind} has no imagination")
