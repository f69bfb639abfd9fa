"""Whatever is given as an option is either taken or refused in one line."""

from functools import partial
from typing import Any

import jax
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from dreamer.agents.dreamer import learning, parts
from dreamer.bench import subject as subjects
from dreamer.cli import compose, groups
from dreamer.config import Config, keys, serialization
from tests.fuzz.one_line import one_line
from tests.fuzz.profiles import examples

SUITES = sorted(keys.suites(Config))
ODD = (
    *("", " ", "null", "None", "~", "nan", "inf", "-inf", "-1", "0", "1e400", "1_0", "0x10", "1e3"),
    *("1.5", "true", "True", "yes", "9" * 400, "[]", "[1,2]", "[[]]", "[,", "{}", "{a: 1}"),
    *("{a: }", "${seed}", "${env.task}", "${no.such}", "${oc.env:HOME}", "${", "}", "'", "'a'"),
    *('"', "a=b", "../x", "/", "a b", "a,b", "1,2", "choice(1,2)", "range(3)", "\\", "\n", "\0"),
    *("é", "𝟙", "#", "!", "!!python/object/apply:os.system [exit]", "&a", "*a", "@", "`", "%"),
    *("-", "--", "?", ":", ": a"),
)


@st.composite
def values(draw: Any, path: str, fields: dict[str, Any]) -> str:
    """Text for a key, more often than not such as it might take."""
    kind = draw(st.sampled_from(["odd", "text", "number", "like"]))
    if kind == "odd":
        return draw(st.sampled_from(ODD))
    if kind == "text":
        return draw(st.text(max_size=8))
    if kind == "number":
        return keys.show(draw(st.one_of(st.integers(), st.floats())))
    default = fields[path].get_default(call_default_factory=True)
    return keys.show(default)


@st.composite
def commands(draw: Any) -> list[str]:
    """Options of a training run."""
    suite = draw(st.sampled_from(groups.choices("env")))
    chosen = [f"env={suite}"] * draw(st.booleans())
    chosen += [f"size={draw(st.sampled_from(groups.choices('size')))}"]
    fields = keys.leaves(Config, draw(st.sampled_from(SUITES)))
    paths = draw(st.lists(st.sampled_from(sorted(fields)), max_size=4, unique=True))
    return chosen + [f"{path}={draw(values(path, fields))}" for path in paths]


@examples(30)
@given(commands())
@example(["run.seeds="])
def test_a_command_is_taken_or_refused_in_one_line(argv: list[str]) -> None:
    with one_line():
        config = compose.compose(argv)
        again = serialization.from_yaml(serialization.to_yaml(config))
        assert serialization.differences(again, config) == []
        assert repr(again) == repr(config)  # where not a number equals itself


@examples(200)
@given(st.lists(st.one_of(st.text(max_size=12), st.sampled_from(ODD)), min_size=1, max_size=3))
def test_any_words_are_refused_in_one_line(argv: list[str]) -> None:
    with one_line():
        compose.compose(argv)


TREES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner)
    ),
    max_leaves=6,
)


@examples(100)
@given(st.sampled_from(sorted(keys.sections(Config))), TREES)
def test_a_saved_configuration_is_taken_or_refused_in_one_line(section: str, content: Any) -> None:
    """With anything at all in place of one of its sections."""
    tree = Config().model_dump(mode="json")
    *outer, last = section.split(".")
    part = tree
    for name in outer:
        part = part[name]
    part[last] = content
    with one_line():
        serialization.from_yaml(yaml.safe_dump(tree))


@examples(200)
@given(st.text(max_size=30))
def test_any_text_in_place_of_one_is_refused_in_one_line(text: str) -> None:
    with one_line():
        serialization.from_yaml(text)


VALUES: dict[type, Any] = {
    int: st.integers(0, 40),
    float: st.floats(0, 2),
    bool: st.booleans(),
    tuple: st.lists(st.integers(1, 4), max_size=5),
}
AGENT = {
    path: VALUES[kind]
    for path, field in keys.leaves(Config).items()
    if path.startswith("agent.")
    and (kind := type(field.get_default(call_default_factory=True))) in VALUES
}


@pytest.mark.slow
@examples(40)
@given(st.data())
def test_an_agent_is_made_or_refused_in_one_line(data: st.DataObject) -> None:
    """And learns, as far as shapes tell."""
    chosen = data.draw(st.lists(st.sampled_from(sorted(AGENT)), max_size=4, unique=True))
    argv = [f"{path}={keys.show(data.draw(AGENT[path]))}" for path in chosen]
    with one_line():
        config = compose.compose(argv)
        subject = subjects.make(config, "image")
        state = jax.eval_shape(partial(parts.init, subject.agent), subject.key)
        step = partial(learning.train_step, subject.agent)
        jax.eval_shape(step, state, trained(subject.rows(2, 5)), subject.key)


def trained(rows: dict[str, Any]) -> dict[str, Any]:
    """Sequences as the replay gives them: the latent of the first step alone."""
    return rows | {"latent": jax.tree.map(lambda x: x[:, :1], rows["latent"])}
