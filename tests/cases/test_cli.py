"""Options, files and surroundings of users: what works at the first try, and what is one line."""

import os
import re
import subprocess
import sys
import threading
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from jax.experimental import compilation_cache
from omegaconf import OmegaConf

import dreamer
from dreamer.agents.dreamer.parts import init, initial_carry
from dreamer.api.agent import Imagination
from dreamer.api.policies import PolicyState
from dreamer.bench import __main__ as bench
from dreamer.cli import eval as evaluation
from dreamer.cli import train
from dreamer.cli.compose import compose
from dreamer.config import Config
from dreamer.config.serialization import HEADER, differences, to_yaml
from dreamer.errors import UserError, exit_on_user_error
from dreamer.rollout.policy import Policy
from tests import tiny_run
from tests.api import agents

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(options: Any) -> str:
    with pytest.raises(UserError) as caught:
        compose(options)
    return str(caught.value)


def saved(folder: Path, *options: str) -> Config:
    """What a run in this folder saves of its configuration."""
    config = compose([*options, f"run.dir={folder}"])
    folder.mkdir()
    (folder / "config.yaml").write_text(HEADER + to_yaml(config))
    return config


# ------------------------------------------------------------------------- a file of one's own

MINE = """
size: 12m
env.task: Acrobot-v1
agent:
  units: 32
  optimizer: {learning_rate: 1e-3}
run: {steps: 5_000}
"""


def test_a_file_is_merged_under_groups_and_values_of_the_command_line() -> None:
    Path("mine.yaml").write_text(MINE)
    config = compose(["config=mine.yaml"])
    assert (config.size, config.env.task, config.run.steps) == ("12m", "Acrobot-v1", 5000)
    assert (config.agent.units, config.agent.rssm.deter) == (32, 2048)
    assert config.agent.optimizer.learning_rate == 1e-3
    assert config.run.dir == "runs/mine-Acrobot-v1-12m-seed0"
    over = compose(["config=mine.yaml", "size=200m", "seed=3", "run.dir=x/${env.task}"])
    assert over.agent == Config().agent  # all that a size says, the file notwithstanding
    assert (over.seed, over.run.steps, over.run.dir) == (3, 5000, "x/Acrobot-v1")
    assert compose({"config": "mine.yaml", "seed": 3}).seed == 3
    suite = compose(["config=mine.yaml", "env=atari100k"])
    assert (suite.env.task, suite.run.steps, suite.agent.units) == ("pong", 110_000, 32)


def test_a_file_may_be_written_as_a_recipe_is() -> None:
    text = "# @package _global_\ndefaults:\n  - override /size: 1m\n  - experiment: pendulum\n"
    Path("recipe.yaml").write_text(f"{text}  - _self_\neval: {{every: 7}}\n")
    config = compose(["config=recipe.yaml"])
    assert (config.size, config.env.task, config.eval.every) == ("1m", "Pendulum-v1", 7)
    Path("suite.yaml").write_text("env: {suite: atari, task: pong}\n")
    assert compose(["config=suite.yaml"]).run.steps == 51_000_000


IN_FILE = {
    "agent: {unts: 3}": "mine.yaml: agent.unts=3: no such key; agent has ",
    "agent: {units: x}": "mine.yaml: agent.units=x: expected integer >= 1",
    "size: 13m": "mine.yaml: size=13m: no such choice; size is one of nano, 1m",
    "run: {dir: 2024}": "mine.yaml: run.dir=2024: expected text; put it in quotes",
    "seed: 1\nseed: 2": "mine.yaml is not yaml: ",
    "[1": "mine.yaml is not yaml: ",
    "": "mine.yaml must be a mapping of keys to values",
    "run: {steps: 1}\nrun.steps: 2": "run.steps is given twice",
    "hydra: {run: {dir: x}}": "mine.yaml: hydra.run.dir=x: the folder of a run is run.dir=x",
    "defaults: [base]": "mine.yaml: defaults: base is not a choice of a group; an entry is",
    "defaults: 3": "mine.yaml: defaults: 3 is not a choice of a group",
    "env: {task: A-v0, entry_point: m:f}": "env.task=A-v0 and env.entry_point=m:f both name",
}


@pytest.mark.parametrize("text", IN_FILE)
def test_a_mistake_in_a_file_names_the_file(text: str) -> None:
    Path("mine.yaml").write_text(text)
    assert IN_FILE[text] in refused(["config=mine.yaml"])


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    assert "config=no.yaml: cannot be read: No such file" in refused(["config=no.yaml"])
    saved(tmp_path / "run")
    assert "name a file in it, config=run/config.yaml" in refused(["config=run"])
    assert "config is given twice" in refused(["config=a.yaml", "config=b.yaml"])
    Path("mine.yaml").write_bytes(b"\xff\xfe")
    assert "config=mine.yaml: cannot be read" in refused(["config=mine.yaml"])


def test_the_configuration_of_a_run_starts_a_run_of_its_own(tmp_path: Path) -> None:
    given = ("experiment=pendulum", "size=1m", "seed=4", "checkpoint.dir=c")
    config = saved(tmp_path / "run", *given, "run.accept_changes=true")
    copy = compose(["config=run/config.yaml"])
    assert differences(config, copy) == ["checkpoint.dir: c -> "]
    assert copy.run.dir == "runs/config-Pendulum-v1-1m-seed4"
    assert not copy.run.accept_changes
    other = compose(["config=run/config.yaml", "size=200m", "run.dir=new"])
    assert other.agent.units == 1024
    assert (other.env, other.run.dir) == (config.env, "new")
    named = compose(["config=run/config.yaml", "env.entry_point=m:f"])
    assert named.env.name == "m:f"
    Path("runs").mkdir()
    saved(tmp_path / copy.run.dir, *given[:3])
    assert f"run.dir={copy.run.dir} alone" in refused([f"config={copy.run.dir}/config.yaml"])


def test_the_folder_of_a_run_alone_means_its_configuration(tmp_path: Path) -> None:
    kwargs = "env.kwargs={a: '$', b: [1, x]}"
    config = saved(tmp_path / "run", "experiment=pendulum", "size=1m", "checkpoint.dir=c", kwargs)
    for options in (["run.dir=run", "run.steps=7"], {"run": {"dir": tmp_path / "run", "steps": 7}}):
        found = compose(options)
        assert differences(config, found) == []
        assert found.run.steps == 7
    (tmp_path / "run").rename(tmp_path / "moved")
    assert compose(["run.dir='moved'"]).run.dir == "moved"
    assert compose(["run.dir=moved", "seed=0"]).env.task == "CartPole-v1"  # refused as changed
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.yaml").write_text("agent: ppo\n")
    assert compose(["run.dir=other"]).env.task == "CartPole-v1"


# ------------------------------------------------------------------------------ habits of Hydra

HABITS = {
    "-cn mine": "-cn: your own file is an option, config=mine.yaml",
    "--config-dir conf -cn mine": "an option, config=conf/mine.yaml",
    "--config-dir=conf experiment=x": "config=conf/experiment/x.yaml instead of experiment=x",
    "hydra.searchpath=[file://conf] experiment=x": "config=conf/experiment/x.yaml instead of",
    "--config-path conf": "an option, config=FILE.yaml",
    "experiment=mine.yaml": "your own file is config=mine.yaml",
    "experiment=mine": "your own file is config=mine.yaml",
    "--resolve": "leave it out; --cfg job prints",
    "--info": "leave it out; --cfg job prints",
    "--cfg all": "write --cfg job",
    "+foo=1": "foo=1: no such key; the configuration has seed,",
    "++seed=1": "keys are not added; write seed=1",
    "~seed": "keys are not removed; leave it out, or set it by seed=VALUE",
    "+env.kwargs.size=3": "write 'env.kwargs={size: 3}'",
    "env.kwargs.a.b=3": "write 'env.kwargs={a: {b: 3}}'",
    "env.size=5": "arguments of the environment are written env.kwargs={size: 5}",
    "--layers=3": "write agent.encoder.layers=3 or ",
    "hydra.run.dir=x": "the folder of a run is run.dir=x",
    "hydra.run.dir=out/${now:%Y}": "the folder of a run is run.dir=FOLDER",
    "hydra.job.chdir=true": "leave it out; the working folder does not change",
    "hydra/launcher=ray": "add --multirun",
    "hydra.verbose=true": "leave it out",
    "hydra/sweeper=optuna": "leave it out; --multirun runs every combination",
}


@pytest.mark.parametrize("arguments", HABITS)
def test_a_habit_of_hydra_is_answered_by_what_works_here(arguments: str) -> None:
    for name in ("mine", "conf/mine", "conf/experiment/x"):
        file = Path(f"{name}.yaml")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("seed: 3\n")
    advice = refused(arguments.split(" "))
    assert HABITS[arguments] in advice
    for word in advice.split():  # what is advised works
        option = word.strip("',;")
        if option.startswith(("config=", "run.dir=", "env.kwargs={size:")) and "FILE" not in option:
            assert compose([option + (" 3}" if option.endswith(":") else "")])


def test_cfg_job_prints_the_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    for flags in (["--cfg", "job", "--resolve"], ["-c", "job"], ["--cfg=job"]):
        assert train.main(["size=12m", *flags, "seed=3"]) == 0
        assert capsys.readouterr().out == to_yaml(compose(["size=12m", "seed=3"]))
    for main in (train.main, bench.main):
        assert main(["--version"]) == 0
        assert capsys.readouterr().out.startswith("dreamer ")


def test_commands_about_a_run_take_dashes_for_what_they_have() -> None:
    for argv, piece in (
        (["--run=x"], "--run=x: options are written without dashes; write run=x"),
        (["run=x", "--video"], "write video=true"),
        (["run=x", "hydra.run.dir=y"], "hydra.run.dir=y: no such key"),
        (["run=x", "-cn", "y"], "-cn: no such key"),
        (["run=x", "+greedy=true"], "keys are not added; write greedy=true"),
    ):
        with pytest.raises(UserError, match=re.escape(piece)):
            evaluation.main(argv)
    with pytest.raises(UserError, match="leave out --multirun"):
        train.main(["-m", "seed=0,1", "--cfg", "job"])


def test_a_value_that_needs_quotes_says_so() -> None:
    assert "needs quotes, as in 'env.kwargs={name: \"a=b\"}'" in refused(
        ["env.kwargs={path: /a/b=c.txt}"]
    )
    assert compose(['env.kwargs={name: "a=b"}']).env.kwargs == {"name": "a=b"}
    for digit in ("²", "１", "٣"):
        for key in ("agent.units", "seed", "eval.episodes"):
            assert f"{key}={digit}: cannot be read; expected integer" in refused([f"{key}={digit}"])


# --------------------------------------------------------------------------------- from programs

EXACTLY = {
    "a": "x=1, {y}: [z] '\"",
    "b": "${seed} \\${x}",
    "c": "äß 你",
    "d": None,
    "e": True,
    "f": 1e-3,
    "g": [1, {"h": " "}],
    "i": "???",
    "j": "",
}


def test_what_hydra_gives_its_programs_is_a_mapping_too() -> None:
    given = OmegaConf.create(
        {
            "env": {"image_size": [64, 32]},
            "agent": {n: {"mults": [1, 2]} for n in ("encoder", "decoder")},
        }
    )
    config = compose(given)
    assert (config.env.image_size, config.agent.encoder.mults) == ((64, 32), (1, 2))


def test_values_of_a_mapping_arrive_exactly(tmp_path: Path) -> None:
    odd = {"number": np.float32(0.5), "count": np.int64(3), "path": tmp_path, "pair": (1, 2)}
    nested = {
        "env": {"kwargs": EXACTLY | odd, "time_limit": np.int64(9)},
        "run": {"dir": "'a=b,c'"},
    }
    config = compose(nested | {"agent.encoder.mults": (1, 2, 3, 4)})
    plain = {"number": 0.5, "count": 3, "path": str(tmp_path), "pair": [1, 2]}
    assert config.env.kwargs == EXACTLY | plain
    assert (config.env.time_limit, config.run.dir) == (9, "'a=b,c'")
    assert config.agent.encoder.mults == (1, 2, 3, 4)
    assert compose(config.model_dump()) == config
    assert compose({"env": "atari", "env.task": "pong"}).env.task == "pong"
    assert compose({"run": {}, "experiment": None}) == compose([])


MAPPINGS = {
    "unknown": ({"agent": {"unts": 3}}, "agent.unts=3: no such key"),
    "twice": ({"run": {"dir": "x"}, "run.dir": "y"}, "run.dir is given twice"),
    "section": ({"run": 3}, "run=3: a section takes no value"),
    "type": ({"seed": "x"}, "seed=x: expected integer"),
    "function": ({"env.kwargs": {"f": print}}, "cannot be saved in a file"),
    "suites": ({"env": "atari", "env.suite": "gymnasium"}, "the suite is a group"),
    "number": ({"run.dir": 2024}, "run.dir=2024: expected text; put it in quotes"),
}


@pytest.mark.parametrize(("given", "message"), MAPPINGS.values(), ids=MAPPINGS)
def test_a_mapping_with_a_mistake_is_refused(given: dict[str, Any], message: str) -> None:
    assert message in refused(given)


def test_hydra_of_the_program_is_left_as_it_is(tmp_path: Path) -> None:
    store = ConfigStore.instance()
    for name in ("base", "config"):
        store.store(name=name, node={"theirs": 1})
    (tmp_path / "mine.yaml").write_text("a: 1\n")
    try:
        with initialize_config_dir(str(tmp_path), version_base=None):
            before = GlobalHydra.instance().hydra
            assert compose(["size=1m"]).size == "1m"
            dreamer.make_env("gymnasium", "CartPole-v1").close()
            assert GlobalHydra.instance().hydra is before
            assert hydra_compose("mine") == {"a": 1}
        assert not GlobalHydra.instance().is_initialized()
        assert store.load("base.yaml").node == {"theirs": 1}
    finally:
        for name in ("base", "config"):
            del store.repo[f"{name}.yaml"]


def test_threads_compose_at_once() -> None:
    found: dict[int, Any] = {}

    def use(seed: int) -> None:
        options = [f"seed={seed}", "env.kwargs={a: [1, {b: 'x y'}]}", "run.dir=x/${seed}"]
        found[seed] = compose(options)

    threads = [threading.Thread(target=use, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[seed].run.dir for seed in range(6)] == [f"x/{seed}" for seed in range(6)]


def test_whatever_the_library_gives_has_a_short_repr() -> None:
    agent = agents.agent()
    zeros = np.zeros((5, 2))
    policy = agent.policy(num_envs=2)
    state = jax.eval_shape(partial(init, agent.networks), jax.random.key(0))
    config = compose(["agent=dreamerv3", "experiment=pendulum_pixels", "env.kwargs={a: [1,2,3]}"])
    made = dreamer.make_env("gymnasium", "CartPole-v1", num_envs=3)
    made.close()
    shown = {
        r"TrainedAgent\(CartPole-v1, 200m, [\d,]+ parameters, step 7\)": agent,
        r"Dreamer\(sees .*; acts .*\)": agent.networks,
        r"AgentPolicy\(2 environments, step 0\)": policy,
        r"Carry\(2 environments\)": initial_carry(agent.networks, 2),
        r"Imagination\(5 steps of 2 environments\)": Imagination({}, zeros, zeros, zeros, {}),
        r"Config\(gymnasium Pendulum-v1, nano, seed=0, run.dir=.*\)": config,
        r"AgentConfig\(units=64, .*": config.agent,
        r"GymnasiumEnv\(.*kwargs=.*": config.env,
        r"VectorEnv\(3 environments, observation float32 \(4,\), action int32 \(\)\)": made,
        r".*Policy object .*": Policy(agent.networks, 2),
        r"GymnasiumPolicy\(TrainedAgent\(.*\)\)": agent.sb3(agents.Choice()),
        r"PolicyState\(2 environments, step 3\)": PolicyState(initial_carry(agent.networks, 2), 3),
        r"State\([\d,]+ parameters\)": state,
    }
    for pattern, thing in shown.items():
        for text in (repr(thing), str(thing)):
            assert re.fullmatch(pattern, text), text
            assert len(text) <= 200


# --------------------------------------------------------------- what libraries and systems raise


def fail(error: BaseException) -> int:
    raise error


ENDINGS = {
    "numpy": (lambda: np.empty((10**7, 10**7)), 2, "error: not enough memory: ", "size="),
    "jax": (
        lambda: fail(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nallocating 9")),
        2,
        "error: not enough memory: ",
        "Out of memory allocating 9; choose",
    ),
    "disk": (
        lambda: fail(OSError(28, "No space left on device", "x")),
        2,
        "error: OSError",
        "room",
    ),
    "package": (
        lambda: __import__("nosuchpackage"),
        2,
        "error: ModuleNotFoundError",
        "pip install n",
    ),
    "other": (lambda: fail(TypeError("no\nway")), 1, "error: TypeError: no way (", "test_cli.py:"),
    "exit": (lambda: sys.exit(0), 1, "error: SystemExit: 0 (", "DREAMER_TRACEBACK=1 prints"),
    "deep": (
        lambda: fail(RecursionError("too deep")),
        1,
        "error: RecursionError: too deep",
        ".py:",
    ),
    "user": (lambda: fail(UserError("seed=x: no")), 2, "error: seed=x: no", ""),
    "stop": (lambda: fail(KeyboardInterrupt()), 130, "interrupted", ""),
    "pipe": (lambda: fail(BrokenPipeError(32, "Broken pipe")), 1, "error: BrokenPipeError", ".py:"),
}


@pytest.mark.parametrize(("main", "status", "start", "piece"), ENDINGS.values(), ids=ENDINGS)
def test_what_ends_a_command_is_one_line(
    main: Any, status: int, start: str, piece: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_on_user_error(main) == status
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert out == ""
    assert line.startswith(start)
    assert piece in line


@pytest.mark.parametrize("error", [UserError("seed=x: no"), TypeError("no")])
def test_the_whole_trace_is_shown_on_request(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DREAMER_TRACEBACK", "1")
    exit_on_user_error(lambda: fail(error))
    *trace, line = capsys.readouterr().err.splitlines()
    assert trace[0] == "Traceback (most recent call last):"
    assert any("in fail" in one for one in trace)
    assert line.startswith("error: ")


SIZES = {
    "agent.units=1e11": "agent.units=100000000000.0: expected integer >= 1, <= 1048576",
    "agent.actor.layers=1e9": "agent.actor.layers=1000000000.0: expected integer >= 1, <= 100",
    "agent.units=1e6 agent.actor.layers=2": "agent.units=1000000, ",
    "agent.rssm.deter=1048576": "agent.rssm.deter=1048576, ",
    "agent.returns.imagination=1e6 agent.rssm.stoch=512 agent.rssm.classes=255": (
        "agent.returns.imagination=1000000 from replay.batch_size=4 times replay.batch_length=4 "
    ),
}


@pytest.mark.parametrize("options", SIZES)
def test_sizes_that_fit_no_memory_are_refused_at_the_start(
    options: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = tiny_run.argv(tmp_path / "run", *options.split(" "))
    assert exit_on_user_error(lambda: train.main(argv)) == 2
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert SIZES[options] in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["damaged", "file"])
def test_a_cache_that_cannot_be_used_is_one_line(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of programs that were compiled before, or where there is no folder for any."""
    settings = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = [getattr(jax.config, name) for name in settings]
    cache = tmp_path / "cache"

    def use() -> int:
        warnings.simplefilter("default")
        compilation_cache.compilation_cache.reset_cache()
        jax.clear_caches()
        for count in (2, 3):
            jax.jit(lambda x, count=count: x * count)(np.arange(count))
        return 0

    try:
        jax.config.update(settings[0], str(cache))
        jax.config.update(settings[1], 0.0)
        if kind == "file":
            cache.write_text("")
        else:
            use()
            entries = [path for path in cache.iterdir() if path.name.endswith("-cache")]
            assert len(entries) >= 2
            for path in entries:
                path.write_bytes(b"garbage")
        capsys.readouterr()
        assert exit_on_user_error(use) == 0
        out, err = capsys.readouterr()
        (line,) = err.splitlines()
        assert line.startswith("warning: compiled programs cannot be ")
        assert str(cache) in line
        assert out == ""
    finally:
        for name, value in zip(settings, before, strict=True):
            jax.config.update(name, value)
        compilation_cache.compilation_cache.reset_cache()


def test_help_to_a_reader_that_is_gone_is_quiet() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "dreamer.train", "--help"]
    done = subprocess.run(command, cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_platform_that_jax_does_not_have_is_one_line(tmp_path: Path) -> None:
    """In a process of its own, where jax is not initialised yet."""
    done = subprocess.run(
        [sys.executable, "-m", "dreamer.train", f"run.dir={tmp_path / 'run'}"],
        **{"cwd": ROOT, "capture_output": True, "text": True, "timeout": 120},
        env=os.environ | {"JAX_PLATFORMS": "nope"},
    )
    assert (done.returncode, done.stdout) == (2, "dreamer: starting\n")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: JAX_PLATFORMS=nope: ")
    assert line.endswith("; unset it, or write some of cpu, cuda, tpu")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_inside_a_program_of_hydra(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import hydra, dreamer\n"
        "@hydra.main(version_base=None, config_path=None)\n"
        "def main(config):\n"
        "    print(dreamer.make_env('gymnasium', 'CartPole-v1'))\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, str(program)],
        **{"cwd": tmp_path, "capture_output": True, "text": True, "timeout": 120},
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.stdout.startswith("VectorEnv(1 environments, "), done.stderr
