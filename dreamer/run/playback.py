"""Plays episodes with the agent of a run folder, and writes down how they went."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from dreamer import compose, parallel
from dreamer.agent import agent as agents
from dreamer.agent.agent import Agent
from dreamer.config import Config, EvalOptions
from dreamer.envs import registry
from dreamer.errors import UserError
from dreamer.run import folder, paths, summary
from dreamer.run.checkpoint import Checkpointer
from dreamer.run.evaluate import evaluate, frame
from dreamer.run.policy import Policy
from dreamer.run.reporter import FPS
from dreamer.run.video import write_mp4

EVALUATION = 4  # the purpose of these random numbers, beside those of training


def play(options: EvalOptions) -> dict[str, Any]:
    """Evaluates as asked: prints a table, writes JSON and perhaps a video, and gives the summary.

    Raises:
      UserError: no run, no checkpoint, or a folder that cannot be written.
    """
    parallel.local_devices(options.platform, 1, 1)  # refuses a platform that is not there
    folder_of_run = paths.expand(options.run, "run")
    config = saved_config(folder_of_run)
    config = config.model_copy(update={"run": config.run.model_copy(update={"dir": options.run})})
    agent = agent_for(config, options.video)
    params, step = load_params(config, agent, options.checkpoint)
    mode = "-greedy" if options.greedy else ""
    name = f"evaluation-{step}-seed{options.seed}{mode}.json"
    out = paths.expand(options.out, "out") if options.out else folder_of_run / name
    video = out.with_suffix(".mp4")
    if out == video:
        raise UserError(f"out={options.out} is the name of a video; name the JSON file beside it")
    for path in (out, video) if options.video else (out,):
        summary.check(path)
    policy = Policy(agent, min(options.num_envs, options.episodes), options.greedy)
    # Mixed, so that no seed repeats the episodes of a training run.
    seed = int(np.random.SeedSequence((options.seed, EVALUATION)).generate_state(1)[0])
    result = evaluate(policy, params, config.env, options.episodes, seed, record=options.video)
    assert result is not None, "nothing interrupts it"
    numbers = summary.summarize(result.returns, result.lengths)
    settings = {key: getattr(options, key) for key in ("seed", "greedy", "checkpoint")}
    episodes = {"returns": result.returns, "lengths": result.lengths}
    summary.write_json(out, {"step": step, **settings, **numbers, **episodes})
    if options.video:
        assert result.frames is not None, "refused at the start"
        with summary.explaining_refusal(video):
            write_mp4(video, result.frames, FPS)
    print(summary.render(numbers, f"{config.env.name}, step {step:,}"))
    print(f"written to {out}" + (f", the first episode to {video}" if options.video else ""))
    return numbers


def saved_config(path: Path) -> Config:
    """The configuration that a run folder was made with.

    Raises:
      UserError: if the folder is not one of a run.
    """
    saved = folder.saved_config(path)
    if saved is None:
        raise UserError(f"{path} is not the folder of a run: it has no config.yaml of one")
    return compose.from_yaml(saved)


def agent_for(config: Config, video: bool = False) -> Agent:
    """The networks of a configuration; an environment is made for a moment to know its spaces.

    Raises:
      UserError: a video is wanted of an environment that nothing can be seen of.
    """
    env = registry.make(config.env, 1, config.seed, render=video)
    try:
        if video and frame(env, env.reset()) is None:
            raise UserError(f"{config.env.name} has no images and cannot render; use video=false")
        return agents.make_agent(config.agent, env.observation_spec(), env.action_spec())
    finally:
        env.close()


def load_params(config: Config, agent: Agent, which: str) -> tuple[Any, int]:
    """Parameters and environment steps of the newest or best checkpoint, on the first device.

    Raises:
      UserError: if there is none.
    """
    checkpoints = Checkpointer(paths.checkpoint_folder(config), read_only=True)
    try:
        step = checkpoints.best_step() if which == "best" else checkpoints.latest_step()
        if step is None:
            raise UserError(
                f"no {which} checkpoint in {checkpoints.directory}; train first, with eval.every "
                "set if the best is wanted"
            )
        state = jax.eval_shape(lambda: agents.init(agent, jax.random.key(0)))
        restored, _ = checkpoints.restore_state(step, state)
    finally:
        checkpoints.close()
    return parallel.unreplicate(restored.params), step
