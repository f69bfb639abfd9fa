"""A trained agent: loaded from its run, it acts, imagines and predicts."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import jax
import numpy as np

from dreamer.agents import agent_spaces
from dreamer.agents.interface import Agent, Carry
from dreamer.api import arguments
from dreamer.api.policies import AgentPolicy, GymnasiumPolicy
from dreamer.checkpoint import loading
from dreamer.config import Config
from dreamer.distributed import mesh
from dreamer.envs import registry
from dreamer.envs.base import BatchedEnv
from dreamer.errors import UserError
from dreamer.logs.video import FPS, open_loop_grids, write_mp4
from dreamer.replay import tree
from dreamer.rollout.driver import Driver, play, transition_spec
from dreamer.rollout.policy import Policy, compile_act
from dreamer.system import files

if TYPE_CHECKING:
    from dreamer.training.trainer import Trainer

RECORDED = {"observation", "action", "is_first", "latent"}  # parts of a record for predictions


@dataclass(frozen=True)
class Imagination:
    """N imagined rollouts of H steps.

    `actions[t]` are taken in state t and lead to state t + 1; state 0 is the initial one, and
    `actions[0]` are those that the policy had already chosen there.
    """

    actions: dict[str, np.ndarray]  # [H, N, ...] by key, for environments
    rewards: np.ndarray  # [H, N], on arriving at state t + 1
    continuation: np.ndarray  # [H, N], probability at state t + 1, the discount included
    values: np.ndarray  # [H + 1, N], the critic's, of state t
    observations: dict[str, np.ndarray]  # [H + 1, N, ...] by key, of state t; {} unless decoded

    def __repr__(self) -> str:
        horizon, count = np.shape(self.rewards)
        decoded = f", with {', '.join(self.observations)}" if self.observations else ""
        return f"Imagination({horizon} steps of {count} environments{decoded})"


@dataclass(frozen=True, eq=False)
class TrainedAgent:
    """The networks of a run, their parameters and the configuration."""

    config: Config
    networks: Agent
    params: Any
    step: int  # environment steps of training

    def __repr__(self) -> str:
        count = sum(map(np.size, jax.tree.leaves(self.params)))
        name, size = self.config.env.name, self.config.size
        return f"TrainedAgent({name}, {size}, {count:,} parameters, step {self.step:,})"

    @classmethod
    def of(cls, run: "Trainer") -> Self:
        """The current agent of a run, for callbacks; further training does not change it."""
        params = mesh.copy_to(run.loop.learner.params, run.devices[0])
        return cls(run.config, run.loop.agent, params, run.step)

    def policy(self, num_envs: int = 1, greedy: bool = False, seed: int = 0) -> AgentPolicy:
        """A policy for `num_envs` environments, see `AgentPolicy`.

        Args:
          num_envs: N.
          greedy: mode of the policy instead of a sample; latents are sampled either way.
          seed: of the random numbers.

        Raises:
          UserError: an invalid number or seed.
        """
        policy = self.bare_policy(arguments.whole("num_envs", num_envs), greedy)
        return AgentPolicy(policy, dict(self.networks.seen), self.params, arguments.seed(seed))

    def bare_policy(self, num_envs: int, greedy: bool) -> Policy:
        """A policy without its parameters, compiled once for all of them; `reset` it first."""
        return Policy(self.networks, num_envs, greedy, act=self._acts[bool(greedy)])

    @cached_property
    def _acts(self) -> dict[bool, Any]:
        return {greedy: compile_act(self.networks.act, greedy) for greedy in (False, True)}

    def make_env(self, num_envs: int = 1, seed: int = 0, render: bool = False) -> BatchedEnv:
        """Environments with the settings of training.

        Raises:
          UserError: they cannot be made here, have other spaces than in training, or run code that
            the run names and the user has never named, see `load`.
        """
        num_envs = arguments.whole("num_envs", num_envs)
        env = registry.make(self.config.env, num_envs, arguments.seed(seed), render)
        try:
            agent_spaces.check(self.networks, env.observation_spec(), env.action_spec())
        except UserError:
            env.close()
            raise
        return env

    def sb3(self, env: Any, seed: int = 0) -> GymnasiumPolicy:
        """A model with the interface of stable-baselines3, see `GymnasiumPolicy`.

        Args:
          env: gymnasium environment, vector environment or VecEnv of stable-baselines3; only its
            spaces are read.
          seed: of the random numbers.

        Raises:
          UserError: it has other spaces than the agent.
        """
        return GymnasiumPolicy(self, env, seed)

    def record(
        self, env: BatchedEnv, steps: int, greedy: bool = False, seed: int = 0
    ) -> dict[str, Any]:
        """Plays from a reset and returns the steps in the format of replay.

        Args:
          env: N environments.
          steps: of each environment.
          greedy: mode of the policy instead of a sample.
          seed: of the draws, as in `policy`.

        Returns:
          observation and action by key, reward, is_first, is_last, is_terminal, and the policy's
          latent: leaves [N, steps, ...].

        Raises:
          UserError: the environments have other spaces, or an invalid number or seed.
        """
        steps, key = arguments.whole("steps", steps), jax.random.key(arguments.seed(seed))
        batched = hasattr(env, "num_envs") and hasattr(env, "action_spec")
        arguments.expect(batched, "env", env, "environments of make_env")
        agent_spaces.check(self.networks, env.observation_spec(), env.action_spec(), whole=True)
        policy = self.bare_policy(env.num_envs, greedy)
        policy.reset(key)
        driver = Driver(env, policy, self.networks.observations)
        rows = [jax.device_get(row) for row, _ in islice(play(driver, self.params), steps)]
        return jax.tree.map(lambda *x: np.stack(x, 1), *rows)

    def imagine(
        self,
        state: Carry,
        horizon: int = 50,
        greedy: bool = False,
        decode: bool = False,
        seed: int = 0,
    ) -> Imagination:
        """Imagines rollouts of the policy in the world model.

        Args:
          state: `AgentPolicy.state` after a step in N environments.
          horizon: steps H.
          greedy: modes of the policy instead of samples.
          decode: whether to decode observations.
          seed: of the random numbers.

        Raises:
          UserError: it is no such state, or an invalid number or seed.
        """
        one = jax.eval_shape(lambda: self.networks.initial_carry(1))
        same = bool(jax.tree.structure(state) == jax.tree.structure(one))  # type: ignore[operator]
        arguments.expect(same, "state", state, "the carry of a policy, policy.state")
        shapes = [np.shape(x) for x in jax.tree.leaves(state)]
        num_envs = shapes[0][:1]
        if shapes != [(*num_envs, *x.shape[1:]) for x in jax.tree.leaves(one)] or not num_envs:
            raise UserError("state: it does not fit this agent; use that of one of its policies")
        horizon, key = arguments.whole("horizon", horizon), jax.random.key(arguments.seed(seed))
        found = self._dream(self.params, state, horizon, key, bool(greedy), bool(decode))
        return Imagination(**jax.device_get(found))

    @cached_property
    def _dream(self) -> Any:
        return jax.jit(self.networks.imagine, static_argnums=(2, 4, 5))

    def predict_video(
        self,
        sequences: Mapping[str, Any],
        context: int | None = None,
        path: str | Path | None = None,
        seed: int = 0,
    ) -> dict[str, np.ndarray]:
        """Open-loop predictions beside the truth: rows truth, prediction, error; sequences side by
        side, with a green border while the model observes and a red one while it imagines.

        Args:
          sequences: of `record`, leaves [N, T + 1, ...]; the first step only gives the start.
          context: steps that the model observes, 1 to T - 1; None is half.
          path: mp4 file to write; with several images, their keys are added to the name.
          seed: of the random numbers.

        Returns:
          Frames uint8 [T, H, W, 3] by the key of the image.

        Raises:
          UserError: no images, no sequences, too few steps, or the file cannot be written.
        """
        if not self.networks.images:
            raise UserError("the agent predicts no image, so there is no video of its predictions")
        recorded = isinstance(sequences, Mapping) and sequences.keys() >= RECORDED
        arguments.expect(recorded, "sequences", sequences, "all that agent.record gives")
        spec = transition_spec(self.networks)
        for name in sorted(RECORDED):
            rows, leaves = (tree.flatten({name: nested[name]}) for nested in (sequences, spec))
            found = {path: np.shape(x)[2:] for path, x in rows.items()}
            if found != {path: shape for path, (shape, _) in leaves.items()}:
                raise UserError(
                    f"sequences: {name!r} does not fit this agent; record them with this one"
                )
        steps = sequences["is_first"].shape[1] - 1
        if steps < 2:
            raise UserError(
                f"sequences have {steps + 1} steps, but predictions need 3: the start, an observed "
                "step and an imagined one; record more"
            )
        context = steps // 2 if context is None else context
        context = arguments.whole("context", context, most=steps - 1)
        key = jax.random.key(arguments.seed(seed))
        predictions = self._open_loop(self.params, sequences, context, key)
        grids = open_loop_grids(self.networks, sequences, predictions, context)
        for name, frames in grids.items() if path else ():
            file = Path(path or "")
            file = file if len(grids) == 1 else file.with_stem(f"{file.stem}-{name}")
            with files.explaining_refusal(file):
                write_mp4(file, frames, FPS)
        return grids

    @cached_property
    def _open_loop(self) -> Any:
        return jax.jit(self.networks.open_loop, static_argnums=2)


def load(path: str | Path, which: str = "newest", trust: bool = False) -> TrainedAgent:
    """Loads an agent: its weights and configuration, but neither replay nor optimiser.

    Args:
      path: a run folder; or a folder of checkpoints, or one checkpoint, with config.yaml in it or
        above it.
      which: newest or best checkpoint, where there are several.
      trust: whether `make_env` may run code that the run names and you have never named, such as an
        `env.entry_point`, now and later.

    Raises:
      UserError: there is no run or checkpoint, or one that cannot be read.
    """
    saved = loading.load(path, which, trust)
    return TrainedAgent(saved.config, saved.agent, saved.params, saved.step)
