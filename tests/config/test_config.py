"""The configuration: what composes, what is refused and how, what a run saves and reads back."""

import ast
import subprocess
import sys
import types
import typing
from functools import partial
from pathlib import Path

import jax
import pydantic
import pytest

from dreamer.agents.dreamer import parts
from dreamer.agents.registry import make_agent
from dreamer.cli import usage
from dreamer.cli.compose import compose, options
from dreamer.cli.groups import GROUPS, choices, config_dir
from dreamer.config import Config, keys
from dreamer.config.env import AtariEnv, GymnasiumEnv
from dreamer.config.section import Section
from dreamer.config.serialization import FREE_ON_RESUME, differences, from_yaml, to_yaml
from dreamer.envs import registry
from dreamer.errors import UserError, exit_on_user_error
from tests.envs import suites

PACKAGE = Path(__file__).resolve().parents[2] / "dreamer"
SUITES = tuple(keys.suites(Config))

# name: deter, hidden, classes, depth, units (Hafner et al. 2025 and the reference code)
PUBLISHED_SIZES = {
    "1m": (512, 64, 4, 4, 64),
    "12m": (2048, 256, 16, 16, 256),
    "25m": (3072, 384, 24, 24, 384),
    "50m": (4096, 512, 32, 32, 512),
    "100m": (6144, 768, 48, 48, 768),
    "200m": (8192, 1024, 64, 64, 1024),
    "400m": (12288, 1536, 96, 96, 1536),
}


def message(*argv: str) -> str:
    with pytest.raises(UserError) as caught:
        compose(list(argv))
    text = str(caught.value)
    assert text == " ".join(text.split()), "an error is one line"
    return text


# ------------------------------------------------------------------------ what composes


@pytest.mark.parametrize(
    "choice", [f"{group}={name}" for group in GROUPS for name in choices(group)]
)
def test_every_choice_builds(choice: str) -> None:
    assert isinstance(compose([choice]), Config)


SPACES = ("env", "experiment")  # the groups that say what is observed


@pytest.mark.parametrize(
    "choice", [f"{group}={name}" for group in SPACES for name in choices(group)]
)
def test_every_environment_fits_its_agent(choice: str) -> None:
    config = compose([choice, "size=nano"] if choice.startswith("env") else [choice])
    if choice.startswith("env"):
        suites.group(choice.removeprefix("env="))
    env = registry.make(config.env, 1, 0)
    try:
        agent = make_agent(config.agent, env.observation_spec(), env.action_spec())
    finally:
        env.close()
    assert jax.eval_shape(partial(parts.init, agent), jax.random.key(0))


def test_every_pair_of_environment_and_size_builds() -> None:
    for env in choices("env"):
        for size in choices("size"):
            config = compose([f"env={env}", f"size={size}", "agent=dreamerv3"])
            assert config.size == size


@pytest.mark.parametrize("name", PUBLISHED_SIZES)
def test_sizes_are_the_published_ones(name: str) -> None:
    agent = compose([f"size={name}"]).agent
    rssm = agent.rssm
    found = (rssm.deter, rssm.hidden, rssm.classes, agent.depth, agent.units)
    assert found == PUBLISHED_SIZES[name]
    assert (rssm.stoch, rssm.blocks, agent.decoder.blocks) == (32, 8, 8)


def test_the_sizes_are_the_published_ones_and_nano() -> None:
    assert choices("size") == ["nano", *PUBLISHED_SIZES]


def test_the_200m_agent_is_the_schema_itself() -> None:
    assert compose(["size=200m", "agent=default"]).agent == Config().agent


def test_the_published_agent() -> None:
    actor = compose(["size=200m", "agent=dreamerv3"]).agent.actor
    assert (actor.gradient, actor.unimix) == ("reinforce", 0.0)


def test_atari100k_is_the_published_protocol() -> None:
    config = compose(["env=atari100k", "env.task=breakout", "size=12m"])
    assert config.env == AtariEnv(
        task="breakout", num_envs=1, image_size=(64, 64), gray=False, sticky=0.0, actions="needed"
    )
    assert (config.run.steps, config.replay.train_ratio, config.replay.batch_length) == (
        110_000,
        256,
        64,
    )


def test_atari_is_the_published_protocol() -> None:
    config = compose(["env=atari", "size=200m"])
    assert config.env == AtariEnv(task="pong", num_envs=16)
    assert (config.run.steps, config.replay.train_ratio) == (51_000_000, 32)


# Task, environments, steps, train ratio and keys of env, as published for a suite; where none are
# published, as the file of the group says.
SETTINGS = {
    "dmc_proprio": ("walker_walk", 16, 1_100_000, 1024, {"view": "proprio", "repeat": 1}),
    "dmc_vision": ("walker_walk", 16, 1_100_000, 256, {"view": "vision", "repeat": 1}),
    "crafter": ("reward", 1, 1_100_000, 512, {"image_size": (64, 64)}),
    "bsuite": ("catch/0", 1, 100_000, 1024, {}),
    "memory_maze": ("9x9", 16, 100_000_000, 32, {"image_size": (64, 64)}),
    "vizdoom": ("TakeCover", 16, 1_100_000, 256, {"time_limit": 2100, "image_size": (64, 64)}),
    "car_racing": ("CarRacing-v3", 16, 1_100_000, 256, {"image_size": (64, 64), "time_limit": 0}),
    "metaworld": ("reach-v3", 16, 1_100_000, 1024, {"pixels": False, "repeat": 1}),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_suites_have_the_settings_that_are_published(name: str) -> None:
    config = compose([f"env={name}"])
    task, num_envs, steps, ratio, options = SETTINGS[name]
    assert (config.env.task, config.env.num_envs) == (task, num_envs)
    assert (config.run.steps, config.replay.train_ratio) == (steps, ratio)
    assert {key: getattr(config.env, key) for key in options} == options
    assert config.replay.capacity >= min(steps, 5_000_000)


def test_worlds_without_published_settings_have_those_of_the_same_worlds_in_jax() -> None:
    expected = compose(["env=navix"])
    for name in ("minigrid", "jumanji"):
        config = compose([f"env={name}"])
        assert config.run == expected.run.model_copy(update={"dir": config.run.dir})
        assert config.replay == expected.replay
        assert config.env.num_envs == expected.env.num_envs


def test_without_arguments_it_is_a_small_agent_on_cartpole() -> None:
    config = compose([])
    assert isinstance(config.env, GymnasiumEnv)
    assert (config.env.task, config.size) == ("CartPole-v1", "nano")


def test_the_command_line_wins_over_a_recipe() -> None:
    config = compose(["experiment=cartpole", "size=1m", "eval.episodes=3"])
    assert (config.size, config.agent.rssm.deter, config.eval.episodes) == ("1m", 512, 3)


@pytest.mark.parametrize("name", choices("experiment"))
def test_a_recipe_opens_with_command_time_and_score(name: str) -> None:
    text = (config_dir() / "experiment" / f"{name}.yaml").read_text()
    header = text.split("\ndefaults:")[0]
    for word in (f"# Command: python -m dreamer.train experiment={name}", "# Time:", "# Score:"):
        assert word in header


# key=value -> the value in the configuration
READ = {
    "run.steps=1e6": 1_000_000,
    "run.steps=2_000": 2000,
    "seed='7'": 7,
    "agent.optimizer.learning_rate=1e-4": 1e-4,
    "agent.optimizer.learning_rate=1": 1.0,
    "agent.encoder.mults=[1,2,3,4]": (1, 2, 3, 4),
    "env.image_size=[96, 128]": (96, 128),
    "env.image_size=null": None,
    "env.kwargs={size: 5, walls: true, names: [a, b]}": {
        "size": 5,
        "walls": True,
        "names": ["a", "b"],
    },
    "env.entry_point=my_module:make": "my_module:make",
    "env.pixels=True": True,
    "env.pixels=False": False,
    "env.pixels='False'": False,
    "env.pixels='false'": False,
    "env.pixels=off": False,
    "env.task=1": "1",
    "env.task=ALE/Pong-v5": "ALE/Pong-v5",
    "run.dir=2024": "2024",
    "run.dir=": "runs/gymnasium-CartPole-v1-nano-seed0",
    "run.dir='with space(1), and=more'": "with space(1), and=more",
    "run.dir=runs/${env.task}-${seed}": "runs/CartPole-v1-0",
}


@pytest.mark.parametrize("argument", READ)
def test_a_value_is_read_as_its_type(argument: str) -> None:
    config: object = compose([argument])
    for name in argument.partition("=")[0].split("."):
        config = getattr(config, name)
    assert config == READ[argument]
    assert type(config) is type(READ[argument])


def test_the_id_of_an_environment_has_two_names() -> None:
    config = compose(["env=gymnasium", "env.id=my_package:MyEnv-v0"])
    assert config == compose(["env.task=my_package:MyEnv-v0"])
    assert config.env.name == "my_package:MyEnv-v0"
    assert config.run.dir == "runs/gymnasium-my_package:MyEnv-v0-nano-seed0"


def test_an_entry_point_names_the_environment_and_the_run() -> None:
    config = compose(["env.entry_point=my.module:make", "env.kwargs={size: 5}"])
    assert config.env.name == "my.module:make"
    assert config.run.dir == "runs/gymnasium-my.module:make-nano-seed0"
    assert from_yaml(to_yaml(config)) == config
    assert hash(config) != hash(compose(["env.entry_point=my.module:make", "env.kwargs={size: 6}"]))
    other = compose(["env.entry_point=my.module:make", "env.kwargs={size: 6}"])
    assert differences(config, other) == ["env.kwargs.size: 5 -> 6"]


# ------------------------------------------------------------------------ what is refused

# arguments -> pieces of the message
REFUSED = {
    "env=atary": ["env=atary", "atari, atari100k, brax", "did you mean atari?"],
    "env=": ["env=:", "atari100k"],
    "size=13m": ["size=13m", "nano, 1m, 12m, 25m, 50m, 100m, 200m, 400m"],
    "size=null": ["size=null", "no such choice"],
    "experiment=nope": ["experiment=nope", "cartpole"],
    "env.sticky=0": ["env.sticky=0", "suite gymnasium", "pixels", "sticky is a key of env=atari"],
    "env=atari env.stiky=0": ["env.stiky=0", "suite atari", "did you mean sticky?"],
    "env.suite=atari": ["env.suite=atari", "write env=", "gymnasium"],
    "batch_size=8": ["batch_size=8", "did you mean replay.batch_size?"],
    "env.batch_size=8": ["env.batch_size=8", "did you mean replay.batch_size?"],
    "agnt.units=8": ["agnt.units=8", "no such key", "did you mean agent?"],
    "agent.unts=8": ["agent.unts=8", "compute_dtype, backward, units", "did you mean units?"],
    "agent.units.x=8": ["agent.units.x=8", "no such key", "agent.units"],
    "hydra.run.dir=x": ["the folder of a run is run.dir=x"],
    "a[0]=1": ["a[0]=1", "no such key"],
    "replay=5": ["replay=5", "section", "replay.capacity"],
    "agent.units=abc": ["agent.units=abc", "integer >= 1"],
    "agent.units=0": ["agent.units=0", "integer >= 1"],
    "agent.units=1.5": ["agent.units=1.5", "integer >= 1"],
    "agent.units=true": ["agent.units=true", "integer >= 1"],
    "agent.units=": ["agent.units=:", "integer >= 1"],
    "agent.units=null": ["agent.units=null", "integer >= 1"],
    "agent.units=[1]": ["agent.units=[1]", "integer >= 1"],
    "agent.units={a:1}": ["agent.units={a:1}", "integer >= 1"],
    "agent.units=1,2": ["agent.units=1,2", "several values", "integer >= 1"],
    "agent.units=(((": ["agent.units=(((", "cannot be read", "integer >= 1"],
    "agent.losses.actor=true": ["agent.losses.actor=true", "number >= 0"],
    "agent.returns.lam=2": ["agent.returns.lam=2", "number >= 0, <= 1"],
    "agent.returns.lam=nan": ["agent.returns.lam=nan", "number >= 0, <= 1"],
    "agent.returns.low=96": ["agent.returns", "low=96.0 must be below high=95.0"],
    "agent.optimizer.anneal=4800": ["agent.optimizer.anneal=4800", "number >= 0, <= 1"],
    "agent.actor.min_std=2": ["agent.actor", "min_std=2.0 must be at most max_std=1.0"],
    "agent.actor.gradient=renforce": [
        "auto, analytic, reinforce, mixed",
        "did you mean reinforce?",
    ],
    "agent.encoder.mults=[2,0]": ["agent.encoder.mults=[2,0]", "list, each integer >= 1"],
    "agent.encoder.mults=[2,true]": ["agent.encoder.mults=[2,true]", "list, each integer >= 1"],
    "agent.encoder.mults=[]": ["agent.encoder.mults=[]", "list"],
    "env.image_size=[64]": ["env.image_size=[64]", "list of 2, each integer >= 1, ", " or null"],
    "env.image_size=64,64": ["env.image_size=64,64", "a list is written [1,2]"],
    "env.kwargs=3": ["env.kwargs=3", "expected mapping such as {size: 5, walls: true}"],
    "env.kwargs={1:2}": ["env.kwargs={1:2}", "expected mapping such as {size: 5, walls: true}"],
    "env.kwargs.size=3": ["env.kwargs.size=3", "no such key"],
    "env.id=A-v0 env.task=B-v0": ["env.task is given twice", "env.task=B-v0"],
    "env.task=A-v0 env.entry_point=m:f": ["env.task=A-v0 and env.entry_point=m:f", "keep one"],
    "env.pixels=maybe": ["env.pixels=maybe", "true or false"],
    "env.task=null": ["env.task=null", "text"],
    "run.steps=1e400": ["run.steps=inf", "integer >= 1"],
    "seed=4294967296": ["seed=4294967296", "< 4294967296"],
    "run.dir=${nope}": ["${...}", "nope"],
    "run.dir=${": ["run.dir=${", "cannot be read"],
    "seed=1 seed=2": ["seed is given twice", "seed=1", "seed=2"],
    "size=1m size=12m": ["size is given twice"],
    "+seed=1": ["+seed=1", "write seed=1"],
    "++experiment=cartpole": ["write experiment=cartpole"],
    "~seed": ["~seed", "leave it out, or set it by seed=VALUE"],
    "--seed 3": ["--seed", "seed=3"],
    "--batch-size=3": ["--batch-size=3", "batch_size=3"],
    "seed 3": ["'seed'", "KEY=VALUE"],
    "env": ["'env'", "env=CHOICE", "gymnasium"],
    "=3": ["'=3'", "KEY=VALUE"],
    "agent.rssm.deter=255": ["agent.rssm: deter=255 must be divisible by blocks=4"],
    "replay.capacity=32": ["replay.capacity=32 is too small", "env.num_envs=1", "at least 288"],
    "seed=x agent.units=0 env.num_envs=0": ["seed=x", "(and 2 more problems)"],
    "foo=1 bar=2": ["foo=1", "(and 1 more problem)"],
}


@pytest.mark.parametrize("arguments", REFUSED)
def test_a_mistake_is_one_line_with_key_value_and_choices(arguments: str) -> None:
    text = message(*arguments.split(" "))
    for piece in REFUSED[arguments]:
        assert piece in text
    assert "Value error" not in text
    assert "pydantic" not in text


@pytest.mark.parametrize("arguments", ["agent.units=0", "env=nope", "--seed 3"])
def test_a_mistake_exits_with_status_2_and_no_traceback(arguments: str) -> None:
    code = (
        "import sys; from dreamer.cli.compose import compose; "
        "from dreamer.errors import exit_on_user_error; "
        "sys.exit(exit_on_user_error(lambda: bool(compose(sys.argv[1:]))))"
    )
    command = [sys.executable, "-c", code, *arguments.split(" ")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_a_right_configuration_passes_through(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_on_user_error(lambda: int(compose([]).seed)) == 0
    assert capsys.readouterr().err == ""


class Small(Section):
    run: str
    episodes: int = pydantic.Field(10, ge=1)


def test_options_of_a_small_schema() -> None:
    assert options(["run=runs/a", "episodes=3"], Small) == Small(run="runs/a", episodes=3)
    for argv, piece in (
        (["episodes=3"], "run is missing; write run=VALUE"),
        (["run=a", "episodes=0"], "episodes=0: expected integer >= 1"),
        (["run=a", "episods=1"], "did you mean episodes?"),
    ):
        with pytest.raises(UserError, match=piece.replace("?", r"\?")):
            options(argv, Small)


# ------------------------------------------------------------------------ the schema


@pytest.mark.parametrize("suite", SUITES)
def test_every_default_has_its_declared_type(suite: str) -> None:
    for path, field in keys.leaves(Config, suite).items():
        kind = typing.get_origin(field.annotation) or field.annotation
        default = field.get_default()
        if kind is typing.Literal:
            assert default in typing.get_args(field.annotation), path
        elif kind is types.UnionType:
            assert type(default) in typing.get_args(field.annotation), path
        else:
            assert type(default) is kind, path
    defaults = Config(env=keys.suites(Config)[suite]())
    assert Config.model_validate(defaults.model_dump()) == defaults, "defaults are within bounds"


@pytest.mark.parametrize("suite", SUITES)
def test_every_key_is_described(suite: str) -> None:
    for path, field in keys.leaves(Config, suite).items():
        assert field.description or path == "env.suite", f"{path} has no description for --help"


def test_the_configuration_is_frozen_and_closed() -> None:
    config = compose([])
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        config.seed = 1
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        config.agent.rssm.deter = 1
    with pytest.raises(pydantic.ValidationError, match="Extra inputs"):
        Config.model_validate({"agent": {"rssm": {"detr": 1}}})
    assert hash(config) == hash(compose([]))


GENERAL = ("config", "settings")  # what a section is called where it is passed to


def _last_name(node: ast.AST) -> str:
    """`b` of the expression `a.b`, and `a` of `a`."""
    return getattr(node, "attr", getattr(node, "id", ""))


def test_every_key_is_read_somewhere() -> None:
    """As an attribute of its section, or of something whose name ends in config or settings; or by
    its name in quotes where its section is dumped to a dict."""
    ours = ("config",)
    files = [
        path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).parts[0] not in ours
    ]
    nodes = [node for path in files for node in ast.walk(ast.parse(path.read_text("utf-8")))]
    attributes = [node for node in nodes if isinstance(node, ast.Attribute)]
    read = {(_last_name(node.value), node.attr) for node in attributes}
    quoted = {node.value for node in nodes if isinstance(node, ast.Constant)}
    dumped = {_last_name(node.value) for node in attributes if node.attr == "model_dump"}
    unread = []
    for path in sorted({path for suite in SUITES for path in keys.leaves(Config, suite)}):
        *sections, name = path.split(".")
        section = sections[-1] if sections else "config"
        by_name = section in dumped and name in quoted
        owners = {owner for owner, attribute in read if attribute == name}
        if not by_name and not any(o == section or o.endswith(GENERAL) for o in owners):
            unread.append(path)
    assert not unread, f"accepted but never read: {', '.join(unread)}"


# ------------------------------------------------------------------------ saved and resumed


@pytest.mark.parametrize("argv", [[], ["env=atari100k", "size=400m", "agent=dreamerv3"]])
def test_yaml_round_trip(argv: list[str]) -> None:
    config = compose([*argv, "run.dir=1e3", "agent.optimizer.eps=1.5e-20"])
    assert from_yaml(to_yaml(config)) == config


def test_saved_yaml_names_every_key() -> None:
    text = to_yaml(compose([]))
    for path in keys.leaves(Config, "gymnasium"):
        assert f"{path.rpartition('.')[2]}:" in text


@pytest.mark.parametrize(
    ("text", "piece"),
    [
        ("seed: 1\nfoo: 2", "foo=2: no such key"),
        ("agent: {units: x}", "agent.units=x: expected integer >= 1"),
        ("env: {suite: nope}", "env.suite=nope: expected one of gymnasium, atari"),
        ("env: {suite: atari, pixels: true}", "env.pixels=true: no such key"),
        ("env: {task: x}", "env.suite=: expected one of"),
        ("replay: 5", "replay=5: a section takes no value"),
        ("[1]", "must be a mapping"),
        ("", "must be a mapping"),
        ("a: [", "is not yaml"),
    ],
)
def test_a_foreign_saved_configuration_is_refused(text: str, piece: str) -> None:
    with pytest.raises(UserError) as caught:
        from_yaml(text)
    assert piece in str(caught.value)


def test_differences_name_key_and_both_values() -> None:
    saved = compose([])
    assert differences(saved, compose([])) == []
    assert differences(saved, compose(["agent.units=128", "env.pixels=true"])) == [
        "env.pixels: false -> true",
        "agent.units: 64 -> 128",
    ]
    other = differences(saved, compose(["env=atari", "size=nano"]))
    assert {"env.suite: gymnasium -> atari", "env.pixels: false -> absent"} <= set(other)


def test_what_a_resumed_run_may_change() -> None:
    saved = compose([])
    free = ["run.steps=5", "run.dir=x", "eval.every=9", "log.every_seconds=1", "platform=cpu"]
    assert differences(saved, compose(free)) == []
    assert differences(saved, compose(["seed=1", "run.updates_per_call=2"])) == [
        "seed: 0 -> 1",
        "run.updates_per_call: 1 -> 2",
    ]
    known = {*keys.leaves(Config), *keys.sections(Config)}
    assert set(FREE_ON_RESUME) <= known


# ------------------------------------------------------------------------ help


def test_help_names_every_group_choice_and_key_within_the_width() -> None:
    text = usage.help_text()
    lines = text.splitlines()
    assert max(map(len, lines)) <= usage.WIDTH
    for group in GROUPS:
        for choice in choices(group):
            about = usage.description(config_dir() / group / f"{choice}.yaml")
            assert about, f"{group}/{choice}.yaml has no comment to describe it"
            assert any(line.startswith(f"    {choice} ") and about[:30] in line for line in lines)
    for suite in SUITES:
        for path, field in keys.leaves(Config, suite).items():
            if path not in ("size", "env.suite"):
                about = str(field.description).split()[0]
                pairs = zip(lines, lines[1:], strict=False)  # a long default has its own line
                assert any(a.startswith(f"    {path} ") and about in a + b for a, b in pairs), path


def test_help_shows_the_defaults_of_the_default_run() -> None:
    (line,) = [
        line for line in usage.help_text().splitlines() if line.startswith("    agent.units ")
    ]
    assert f" {compose([]).agent.units} " in line
    assert "width of every MLP" in line


@pytest.mark.parametrize(
    ("argv", "requested"), [(["--help"], True), (["seed=1", "-h"], True), (["seed=1"], False)]
)
def test_help_is_requested(
    argv: list[str], requested: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert usage.answered(argv, lambda: "the help") is requested
    assert capsys.readouterr().out == "the help\n" * requested
