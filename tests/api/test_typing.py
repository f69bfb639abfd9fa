"""The public API is typed: a user's script passes mypy --strict, and nothing in it is Any."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
from pathlib import Path
import jax
import dreamer

class Stop(dreamer.Callback):
    def on_episode(self, run: dreamer.Trainer, score: float, length: int) -> None:
        if score >= 450 and run.step > 1000:
            run.request_stop()

    def on_checkpoint(self, run: dreamer.Trainer, path: Path) -> None:
        reveal_type(run.metrics)
        reveal_type(run.updates)

reveal_type(dreamer.train({"run.steps": 100}, callbacks=[Stop()]))
agent = dreamer.load("runs/cartpole")
env = agent.make_env(num_envs=8)
reveal_type(dreamer.make_env("gymnasium", "CartPole-v1", num_envs=8))
policy = agent.policy(num_envs=8, greedy=True)
time_step = env.reset()
action = policy(time_step)
reveal_type(action)
time_step = env.step(action)
reveal_type(time_step.reward)
reveal_type(time_step.last())
reveal_type(time_step.observation)
imagination = agent.imagine(policy.state, horizon=50, decode=True)
reveal_type(imagination.rewards)
reveal_type(imagination.actions)
reveal_type(agent.record(env, steps=17))
reveal_type(agent.config.agent.actor.gradient)
untrained = dreamer.make_agent(env, ["size=nano"])
reveal_type(untrained)
reveal_type(untrained.init(jax.random.key(0)).params)
reveal_type(untrained.train_step)
"""


@pytest.mark.slow
def test_a_script_passes_strict_and_sees_no_any(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    options = ["--strict", "--follow-imports=silent", f"--config-file={ROOT / 'pyproject.toml'}"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, f"--cache-dir={tmp_path}", str(script)],
        **{"cwd": ROOT, "capture_output": True, "text": True, "check": False},
    )
    assert "error:" not in done.stdout, done.stdout
    text = " ".join(done.stdout.split())
    revealed = re.findall(r'Revealed type is "(.*?)"', text)
    assert len(revealed) == SCRIPT.count("reveal_type(")
    assert "Any" not in revealed
