"""Checkpoints: restored bit for bit, newest and best kept, failures in one line and left clean."""

import errno
import shutil
import subprocess
import sys
import textwrap
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

from dreamer.errors import UserError
from dreamer.replay import host
from dreamer.run import checkpoint
from dreamer.run.checkpoint import Checkpointer


class Statistics(NamedTuple):
    low: Any
    high: Any


@flax.struct.dataclass
class TrainState:
    params: Any
    optimizer: Any
    statistics: Statistics
    updates: Any


def train_state(seed=0, width=3):
    params = {
        "dense": {
            "kernel": jax.random.normal(jax.random.key(seed), (width, 2)),
            "bias": jnp.ones(2),
        },
        "half": jnp.arange(3, dtype=jnp.bfloat16) + seed,
    }
    return TrainState(
        params,
        optax.chain(optax.clip(1.0), optax.adam(1e-3)).init(params),
        Statistics(jnp.float32(seed), jnp.uint8(7)),
        np.array([2**40 + seed], np.int64),
    )


REPLAY = {
    "rings": {
        "observation": {"image": np.arange(24, dtype=np.uint8).reshape(2, 3, 4), "a/b": np.ones(3)},
        "latent": {"deter": np.linspace(0, 1, 5).astype(ml_dtypes.bfloat16)},
    },
    "counters": {"steps": np.array([2**40 + 1], np.int64)},
}
META = {"steps": 2**53 + 1, "envs": [{"episode": 3, "actions": [[0.1], [0.2]]}], "time": 0.1 + 0.2}


@pytest.fixture
def opened(tmp_path):
    made = []

    def make(directory=tmp_path / "checkpoints", **options):
        made.append(Checkpointer(directory, **options))
        return made[-1]

    yield make
    for checkpointer in made:
        checkpointer.close()


def assert_same(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for got, wanted in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert got.dtype == wanted.dtype
        assert isinstance(got, np.ndarray) == isinstance(wanted, np.ndarray)
        np.testing.assert_array_equal(np.asarray(got), np.asarray(wanted))


def save(checkpointer, step, score=None):
    checkpointer.save(step, {"step": np.array([step])}, None, {"step": step}, score)


def folders(checkpointer):
    return sorted(path.name for path in checkpointer.directory.iterdir())


@pytest.mark.parametrize("asynchronous", [True, False])
def test_restores_everything_bit_for_bit(opened, asynchronous):
    state = train_state(seed=1)
    writer = opened(asynchronous=asynchronous)
    writer.save(5, state, REPLAY, META)
    writer.close()
    reader = opened()
    assert reader.latest_step() == 5
    restored, replay, meta = reader.restore(5, train_state(seed=2))
    assert_same(restored, state)
    assert_same(replay, REPLAY)
    assert meta == META
    assert_same(reader.restore(None, state)[0], state)


def test_restores_into_abstract_arrays(opened):
    params = train_state(seed=1).params
    writer = opened()
    writer.save(1, params, None, {})
    writer.wait()
    restored, replay, _ = writer.restore(1, jax.eval_shape(lambda: params))
    assert_same(restored, params)
    assert replay is None


def test_later_changes_do_not_reach_the_checkpoint(opened):
    """The next update donates the state, and the environments go on stepping."""
    state = {"jax": jnp.arange(300_000.0), "numpy": np.arange(300_000)}
    expected = jax.tree.map(lambda x: np.array(x), state)
    meta = {"actions": [1]}
    noise = np.random.default_rng(0).integers(0, 255, 2**24, dtype=np.uint8)
    writer = opened()
    writer.save(1, state, {"noise": noise}, meta)
    assert not (writer.directory / "1").exists()  # the call does not wait for the disk
    meta["actions"].append(2)
    state["numpy"][:] = 0
    for _ in range(3):
        state["jax"] = jax.jit(lambda x: -x, donate_argnums=0)(state["jax"])
    restored, _, meta = writer.restore(1, expected)
    assert_same(restored, expected)
    assert meta == {"actions": [1]}


def test_meta_is_turned_into_json_before_the_call_returns(opened):
    writer = opened()
    with pytest.raises(TypeError, match="not JSON serializable"):
        writer.save(1, {"x": np.zeros(1)}, None, {"x": object()})
    writer.wait()
    assert folders(writer) == []


def test_a_replay_goes_on_as_if_never_stopped(opened):
    spec = {"is_first": ((), bool), "is_last": ((), bool), "latent": {"stoch": ((2,), np.uint8)}}
    rng = np.random.default_rng(0)

    def transition():
        flags = {key: rng.random(2) < 0.1 for key in ("is_first", "is_last")}
        return {**flags, "latent": {"stoch": rng.integers(0, 9, (2, 2)).astype(np.uint8)}}

    original = host.init(spec, 60, 2, 5)
    for _ in range(43):
        original = host.add(original, transition())
    original, _, _ = host.sample(original, (0,), 3)
    writer = opened()
    writer.save(1, {"x": np.zeros(1)}, host.get_state(original), {})
    saved = {path: ring.copy() for path, ring in original.rings.items()}
    last = transition()
    original = host.add(original, last)
    _, state, _ = writer.restore(1, {"x": np.zeros(1)})
    restored = host.set_state(host.init(spec, 60, 2, 5), state)
    for path, ring in saved.items():
        np.testing.assert_array_equal(restored.rings[path], ring)
    restored = host.add(restored, last)
    _, _, index = host.sample(restored, (1,), 9)
    np.testing.assert_array_equal(host.sample(original, (1,), 9)[2], index)
    for path, ring in original.rings.items():
        np.testing.assert_array_equal(restored.rings[path], ring)


def test_keeps_the_newest_and_the_best(opened):
    writer = opened(keep=2)
    for step, score in [(1, None), (2, 9.0), (3, None), (4, 5.0), (5, None), (6, float("nan"))]:
        save(writer, step, score)
    writer.wait()
    assert folders(writer) == ["2", "5", "6"]
    assert (writer.latest_step(), writer.best_step()) == (6, 2)
    reopened = opened(keep=2)  # the scores are on disk
    save(reopened, 7, 9.0)
    reopened.wait()
    assert folders(reopened) == ["6", "7"]
    assert reopened.best_step() == 7


def test_without_scores_only_the_newest_is_kept_and_none_is_best(opened):
    writer = opened()
    for step in (1, 2, 3):
        save(writer, step)
    writer.wait()
    assert folders(writer) == ["3"]
    assert writer.best_step() is None


def test_a_score_can_be_added_to_a_saved_step(opened):
    writer = opened()
    save(writer, 1, 3.0)
    save(writer, 2)
    writer.amend(2, {"step": 3}, 4.0)
    assert writer.best_step() == 2
    writer.amend(2, {"step": 3})  # keeps its score
    save(writer, 3)
    writer.wait()
    assert folders(writer) == ["2", "3"]
    reader = opened(read_only=True)
    assert reader.best_step() == 2
    assert reader.restore(2, {"step": np.array([0])})[2] == {"step": 3}


def test_parameters_alone_are_restored_without_reading_the_rest(opened, tmp_path):
    """Where they were copied to, without a replay and with another optimiser."""
    writer = opened()
    state = train_state(1)
    writer.save(1, state, REPLAY, META)
    writer.wait()
    copy = tmp_path / "copied"
    shutil.copytree(writer.directory / "1", copy)
    shutil.rmtree(copy / "replay")
    assert checkpoint.read_meta(copy) == META
    assert_same(checkpoint.read_params(copy, state.params), state.params)
    with pytest.raises(UserError, match=r"^the checkpoint \S+/copied does not fit the config"):
        checkpoint.read_params(copy, {"more": state.params})
    with pytest.raises(UserError, match=r"is not a checkpoint of a dreamer run: .*/metadata is"):
        checkpoint.read_meta(tmp_path)


def test_a_damaged_replay_is_named(opened):
    writer = opened()
    writer.save(1, train_state(1), REPLAY, META)
    writer.wait()
    for path in sorted((writer.directory / "1" / "replay").rglob("*")):
        if path.is_file():
            path.write_bytes(b"")
    with pytest.raises(UserError, match=r"^cannot read the checkpoint \S+/1; delete that folder"):
        writer.restore(1, train_state(0))


@pytest.mark.parametrize("prepare", ["missing", "empty", "foreign"])
def test_a_folder_without_checkpoints_is_named(tmp_path, opened, prepare):
    directory = tmp_path / "other"
    if prepare != "missing":
        directory.mkdir()
    if prepare == "foreign":
        (directory / "notes.txt").write_text("7")
        (directory / "data").mkdir()
    reader = opened(directory, read_only=True)
    assert reader.latest_step() is None
    assert reader.best_step() is None
    with pytest.raises(UserError, match=f"^no checkpoint in {directory};"):
        reader.restore(None, {})
    with pytest.raises(UserError, match=f"^no checkpoint of step 3 in {directory};"):
        reader.restore(3, {})
    assert directory.exists() == (prepare != "missing")


def test_a_numbered_folder_that_is_no_checkpoint_is_one_readable_line(tmp_path, opened):
    (tmp_path / "12").mkdir()
    with pytest.raises(UserError, match=f"^cannot read the checkpoint {tmp_path}/12; "):
        opened(tmp_path, read_only=True).restore(None, {})


def test_a_temporary_folder_is_no_checkpoint_and_is_cleaned_up(opened):
    writer = opened()
    writer.save(1, train_state(), None, {})
    writer.wait()
    leftover = writer.directory / "7.orbax-checkpoint-tmp"
    leftover.mkdir()
    (leftover / "state").write_text("half")
    assert opened(read_only=True).latest_step() == 1
    assert leftover.exists()  # it may be the work of a run in progress
    reopened = opened()
    assert reopened.latest_step() == 1
    reopened.save(2, train_state(3), None, {})
    reopened.wait()
    assert folders(reopened) == ["2"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.replace(updates=np.array([1], np.int32)),
            r"\.updates is int64\[1\] there and int32\[1\] here",
        ),
        (
            lambda s: s.replace(params={**s.params, "new": jnp.ones(1)}),
            r"\['new'\] is missing there and float32\[1\]",
        ),
        (
            lambda _: train_state(width=4),
            r"kernel'\] is float32\[3, 2\] there and float32\[4, 2\] here",
        ),
        (
            lambda s: s.replace(params={"half": s.params["half"]}),
            r"\['bias'\] is float32\[2\] there and missing here",
        ),
    ],
)
def test_a_checkpoint_of_another_structure_is_refused(opened, change, message):
    writer = opened()
    writer.save(1, train_state(), None, {})
    with pytest.raises(UserError, match=message) as raised:
        writer.restore(1, change(train_state()))
    assert "\n" not in str(raised.value)


def test_a_folder_that_cannot_be_written_is_refused_at_once(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError,
        match="^cannot write checkpoints to .*/file/x: Not a directory; .*checkpoint.dir$",
    ):
        Checkpointer(tmp_path / "file" / "x")

    def refuse(*args, **kwargs):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("dreamer.run.folder.probe", refuse)
    with pytest.raises(UserError, match="Read-only file system"):
        Checkpointer(tmp_path)


def run_python(code, *arguments):
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_a_full_disk_is_one_line_and_leaves_the_older_checkpoint(tmp_path):
    """A limit on the size of files stands for the full disk: the error takes the same way."""
    code = """
        import resource, sys
        import numpy as np
        from dreamer.errors import UserError
        from dreamer.run.checkpoint import Checkpointer

        writer = Checkpointer(sys.argv[1])
        writer.save(1, {"x": np.zeros(3)}, None, {})
        writer.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**18, resource.RLIM_INFINITY))
        noise = np.random.default_rng(0).integers(0, 255, 2**22, dtype=np.uint8)
        try:
            writer.save(2, {"x": np.zeros(3)}, {"noise": noise}, {})
            writer.wait()
        except UserError as error:
            print(error)
        print(writer.latest_step(), sorted(path.name for path in writer.directory.iterdir()))
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        writer.save(3, {"x": np.zeros(3)}, {"noise": noise}, {})
        writer.close()
        print(writer.latest_step(), sorted(path.name for path in writer.directory.iterdir()))
    """
    done = run_python(code, tmp_path / "run")
    assert done.returncode == 0, done.stderr
    message, after_failure, after_success = done.stdout.splitlines()
    assert message.startswith(
        f"cannot save a checkpoint in {tmp_path}/run: File too large; make room"
    )
    assert after_failure == "1 ['1']"
    assert after_success == "3 ['3']"
    assert done.stderr == ""


def test_saved_on_several_devices_and_restored_on_one(tmp_path, opened):
    code = """
        import os, sys
        os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
        import jax, jax.numpy as jnp
        from dreamer.run.checkpoint import Checkpointer

        mesh = jax.make_mesh((2,), ("data",))
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
        writer = Checkpointer(sys.argv[1])
        writer.save(1, {"x": jax.device_put(jnp.arange(4.0), sharding)}, None, {})
        writer.close()
    """
    done = run_python(code, tmp_path)
    assert done.returncode == 0, done.stderr
    expected = {"x": jnp.arange(4.0)}
    assert_same(opened(tmp_path).restore(1, jax.eval_shape(lambda: expected))[0], expected)
