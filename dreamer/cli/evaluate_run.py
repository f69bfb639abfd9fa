"""Evaluates the agent of a run folder: plays episodes and writes a summary."""

from typing import Any

import numpy as np

from dreamer.agents import agent_spaces
from dreamer.checkpoint import loading, paths
from dreamer.checkpoint.loading import Saved
from dreamer.config.env import Env
from dreamer.config.options import EvalOptions
from dreamer.distributed import mesh
from dreamer.envs import registry
from dreamer.errors import UserError, describe, printable
from dreamer.logs import summary
from dreamer.logs.video import FPS, write_mp4
from dreamer.rollout.evaluate import evaluate, frame
from dreamer.rollout.policy import Policy
from dreamer.system import files

EVALUATION = 4  # the purpose of these random numbers, beside those of training


def evaluate_run(options: EvalOptions, named: Env | None = None) -> dict[str, Any]:
    """Prints a table, writes JSON and on request a video, and returns the summary.

    Args:
      options: of the command.
      named: the environment that the user named beside the run, see `loading.load`.

    Raises:
      UserError: no run, no checkpoint, a folder that cannot be written; or at the end, no video.
    """
    mesh.local_devices(options.platform, 1, 1)  # refuses a platform that is not available
    saved = loading.load(options.run, options.checkpoint, options.trust, named)
    env, step = saved.config.env, saved.step
    _check(saved, options.video)
    mode = "-greedy" if options.greedy else ""
    name = f"evaluation-{step}-seed{options.seed}{mode}.json"
    out = paths.expand(options.out, "out") if options.out else saved.folder / name
    video = out.with_suffix(".mp4")
    if out == video:
        raise UserError(f"out={options.out} is the name of a video; name the JSON file beside it")
    for path in (out, video) if options.video else (out,):
        files.check_writable(path)
    policy = Policy(saved.agent, min(options.num_envs, options.episodes), options.greedy)
    # Mixed, so that no seed repeats the episodes of a training run.
    seed = int(np.random.SeedSequence((options.seed, EVALUATION)).generate_state(1)[0])
    result = evaluate(policy, saved.params, env, options.episodes, seed, record=options.video)
    assert result is not None, "nothing interrupts it"
    for restart in result.restarts:
        print(restart.line)
    numbers = summary.summarize(result.returns, result.lengths)
    settings = options.model_dump(include={"seed", "greedy", "checkpoint"})
    episodes = {"returns": result.returns, "lengths": result.lengths}
    summary.write_json(out, {"step": step, **settings, **numbers, **episodes})
    print(summary.render(numbers, f"{printable(env.name)}, step {step:,}"))
    if options.video:
        try:
            if result.frames is None:
                raise UserError(result.not_drawn or "nothing was rendered")
            with files.explaining_refusal(video):
                write_mp4(video, result.frames, FPS)
        except Exception as error:
            why = f"no video of the first episode: {describe(error)}"
            raise UserError(f"{why}; the results are written to {out}") from error
    print(f"written to {out}" + (f", the first episode to {video}" if options.video else ""))
    return numbers


def _check(saved: Saved, video: bool) -> None:
    """Makes one environment to check that it fits the agent.

    Raises:
      UserError: it has other spaces, or a video is requested and it cannot be rendered.
    """
    env = registry.make(saved.config.env, 1, saved.config.seed, render=video)
    try:
        agent_spaces.check(saved.agent, env.observation_spec(), env.action_spec())
        if video and frame(env, env.reset()) is None:
            name = saved.config.env.name
            raise UserError(f"{name} has no images and cannot render; use video=false")
    finally:
        env.close()
