"""Weights of another run: which are loaded, where they are found, and what is refused."""

import re
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from dreamer.checkpoint import loading
from dreamer.errors import UserError
from dreamer.training.trainer import Trainer
from tests import tiny_run
from tests.probe_envs import task


@pytest.fixture(scope="module")
def source(tmp_path_factory: Any) -> tuple[Path, Any]:
    """A finished run, and its weights."""
    folder, state = tiny_run.finished(tmp_path_factory)
    return folder, state["train"].params


def fresh(params: Any) -> Any:
    return jax.tree.map(np.zeros_like, params)


def same(ours: Any, theirs: Any) -> bool:
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("place", ["", "checkpoints", "checkpoints/100"])
def test_a_checkpoint_is_found(place: str, source: tuple[Path, Any]) -> None:
    folder, params = source
    assert same(loading.load_weights(str(folder / place), (), fresh(params)), params)


def test_only_named_networks_are_loaded(source: tuple[Path, Any]) -> None:
    folder, params = source
    found = loading.load_weights(str(folder), ("encoder", "rssm"), fresh(params))
    for name, part in found.items():
        assert same(part, params[name]) == (name in ("encoder", "rssm")), name


def test_other_shapes_are_refused_with_the_networks_that_fit(source: tuple[Path, Any]) -> None:
    folder, params = source
    wider = fresh(params)
    wider["actor"]["params"]["logits_action"]["bias"] = np.zeros(4, np.float32)
    with pytest.raises(UserError) as caught:
        loading.load_weights(str(folder), (), wider)
    fitting = "encoder,rssm,decoder,reward,cont,critic"
    assert re.sub(r"^run.init_from=\S+: ", "", str(caught.value)) == (
        "actor does not fit: params.logits_action.bias is float32[3] in the checkpoint and "
        "float32[4] in this run; "
        "give this run the same sizes and spaces, or take those that fit, "
        f"run.init_modules=[{','.join(n for n in wider if n in fitting.split(','))}]"
    )
    assert same(loading.load_weights(str(folder), ("rssm",), wider)["rssm"], params["rssm"])
    wider["encoder"]["params"]["more"] = np.zeros(1, np.float32)
    with pytest.raises(UserError, match=r"encoder does not fit: params.more is missing in the ch"):
        loading.load_weights(str(folder), ("encoder",), wider)


def test_unknown_networks_are_refused(source: tuple[Path, Any]) -> None:
    folder, params = source
    with pytest.raises(UserError, match="run.init_modules names mask, .*; it has "):
        loading.load_weights(str(folder), ("mask",), params)


def test_a_folder_without_checkpoints_is_refused(source: tuple[Path, Any], tmp_path: Path) -> None:
    folder, params = source
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=f"run.init_from={place} holds no checkpoint; name"):
            loading.load_weights(str(place), (), params)
    broken = tmp_path / "checkpoints" / "100"
    shutil.copytree(folder / "checkpoints" / "100", broken)
    shutil.rmtree(broken / "state")
    with pytest.raises(UserError, match=f"^the checkpoint {broken} is damaged: state/"):
        loading.load_weights(str(tmp_path / "checkpoints"), (), params)


def test_a_run_starts_from_them_and_so_does_its_slow_critic(
    source: tuple[Path, Any], tmp_path: Path
) -> None:
    """Also with replay in device memory; the optimizer starts from scratch."""
    folder, params = source
    for number, where in enumerate(("host", "device")):
        changes = (f"run.init_from={folder}", f"replay.where={where}")
        with Trainer(tiny_run.config(tmp_path / str(number), *changes)) as trainer:
            assert trainer.checkpoints.origin == f"starts from the weights of {folder}"
            state = jax.device_get(trainer.loop.learner.state)
            acting = trainer.loop.learner.params
        assert same(state.params, params)
        assert same(acting, params)
        assert same(state.slow_critic, params["critic"])
        assert state.updates == 0
        assert not any(np.any(x) for x in jax.tree.leaves(state.optimizer[:-1]))


@pytest.mark.slow
def test_a_resumed_run_does_not_read_them_again(source: tuple[Path, Any], tmp_path: Path) -> None:
    moved = tiny_run.copy(source[0], tmp_path / "source")
    changes = (f"run.init_from={moved}", "run.init_modules=[rssm]")
    first = tiny_run.train(tmp_path / "run", *changes, "run.steps=40")
    shutil.rmtree(moved)
    again = tiny_run.train(tmp_path / "run", *changes, "run.steps=60")
    assert again["train"].updates > first["train"].updates


def test_a_mistake_fails_before_a_folder_is_created(
    source: tuple[Path, Any], tmp_path: Path
) -> None:
    changes = (task("Steered"), f"run.init_from={source[0]}")
    with pytest.raises(UserError, match=r"actor does not fit: .*init_modules=\[cont,critic"):
        Trainer(tiny_run.config(tmp_path / "run", *changes))
    assert not (tmp_path / "run").exists()
