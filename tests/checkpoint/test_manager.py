"""Checkpoints of a run: newest and best kept, damaged ones renamed, failures in one line."""

import errno
import re
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

from dreamer.checkpoint import manager, shared
from dreamer.checkpoint.manager import Checkpointer, SaveError
from dreamer.errors import UserError
from dreamer.replay import host


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
META = {
    "run": "/a",
    "best": 0.1 + 0.2,
    "evaluated": 3,
    "skipped": 0,
    "rollbacks": 0,
    "hosts": 1,
    "loaded": 0,
    "step": 2**53 + 1,
    "learner": {"updates": 2**53 + 1, "owed": 0},
    "ratio": {"step": -1, "remainder": 1, "denominator": 3},
    "env": {
        "episodes": [{"episode": 3, "actions": [[0.1], [0.2]], "ended": False, "digest": "1f"}],
        "step_type": [1],
        "reward": [0.5],
        "discount": [1.0],
    },
    "episodes": {"returns": [0.1], "lengths": [2]},
    "spaces": {
        "observations": {
            "image": {"shape": [8, 8, 3], "dtype": "uint8"},
            "action_mask": {"shape": [3], "dtype": "bool"},
        },
        "actions": {"action": {"shape": [], "dtype": "int32", "classes": 3}},
    },
}


@pytest.fixture
def opened(tmp_path):
    made = []

    def make(directory=tmp_path / "checkpoints", **options):
        made.append(Checkpointer(directory, **options))
        return made[-1]

    yield make
    for each in made:
        each.wait()


def assert_same(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for got, wanted in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert got.dtype == wanted.dtype
        assert isinstance(got, np.ndarray) == isinstance(wanted, np.ndarray)
        np.testing.assert_array_equal(np.asarray(got), np.asarray(wanted))


def save(writer, step, score=None):
    writer.save(step, {"step": np.array([step])}, None, META | {"step": step}, score)


def restore_newest(writer, pattern):
    restored = shared.restore(writer, pattern, fresh=False)
    assert restored is not None
    return restored


def folders(writer):
    return sorted(path.name for path in writer.directory.iterdir())


def test_restores_everything_bit_for_bit(opened):
    state = train_state(seed=1)
    writer = opened()
    writer.save(5, state, REPLAY, META)
    writer.wait()
    reader = opened()
    assert reader.latest_step() == 5
    restored, replay, meta = reader.restore(5, train_state(seed=2))
    assert_same(restored, state)
    assert_same(replay, REPLAY)
    assert meta == META
    assert_same(restore_newest(reader, state)[0], state)


def test_restores_into_abstract_arrays(opened):
    params = train_state(seed=1).params
    writer = opened()
    writer.save(1, params, None, META)
    writer.wait()
    restored, replay, _ = writer.restore(1, jax.eval_shape(lambda: params))
    assert_same(restored, params)
    assert replay is None


def test_later_changes_do_not_reach_the_checkpoint(opened):
    """The next update donates the state, and the environments continue to step."""
    state = {"jax": jnp.arange(300_000.0), "numpy": np.arange(300_000)}
    expected = jax.tree.map(lambda x: np.array(x), state)
    returns = [1.0]
    meta = META | {"episodes": {"returns": returns, "lengths": [1]}}
    noise = np.random.default_rng(0).integers(0, 255, 2**24, dtype=np.uint8)
    writer = opened()
    writer.save(1, state, {"noise": noise}, meta)
    assert not (writer.directory / "1").exists()  # the call does not wait for the disk
    returns[0] = 2.0
    state["numpy"][:] = 0
    for _ in range(3):
        state["jax"] = jax.jit(lambda x: -x, donate_argnums=0)(state["jax"])
    restored, _, meta = writer.restore(1, expected)
    assert_same(restored, expected)
    assert meta["episodes"]["returns"] == [1.0]


def test_meta_is_converted_to_json_before_the_call_returns(opened):
    writer = opened()
    with pytest.raises(TypeError, match="not JSON serializable"):
        writer.save(1, {"x": np.zeros(1)}, None, {"x": object()})
    writer.wait()
    assert folders(writer) == []


def test_a_replay_resumes_exactly(opened):
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
    writer.save(1, {"x": np.zeros(1)}, host.get_state(original), META)
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
    assert (writer.latest_step(), manager.best(writer.directory)) == (6, 2)
    reopened = opened(keep=2)  # the scores are on disk
    save(reopened, 7, 9.0)
    reopened.wait()
    assert folders(reopened) == ["6", "7"]
    assert manager.best(reopened.directory) == 7


def test_without_scores_only_the_newest_is_kept_and_none_is_best(opened):
    writer = opened()
    for step in (1, 2, 3):
        save(writer, step)
    writer.wait()
    assert folders(writer) == ["2", "3"]
    assert manager.best(writer.directory) is None


def test_a_score_can_be_added_to_a_saved_step(opened):
    writer = opened(keep=1)
    save(writer, 1, 3.0)
    save(writer, 2)
    writer.amend(2, {"skipped": 3}, 4.0)
    assert manager.best(writer.directory) == 2
    writer.amend(2, {"skipped": 4})  # keeps its score and all else
    save(writer, 3)
    writer.wait()
    assert folders(writer) == ["2", "3"]
    assert manager.best(writer.directory) == 2
    assert writer.restore(2, {"step": np.array([0])})[2] == META | {
        "step": 2,
        "skipped": 4,
    }


def damage(path):
    file = next(path for path in (path / "state").rglob("*") if path.is_file())
    file.write_bytes(file.read_bytes()[:-1])
    return f"{file.relative_to(path)} has {file.stat().st_size:,} bytes"


def test_the_newest_undamaged_one_is_restored_and_damaged_ones_are_renamed(opened, capsys):
    writer = opened(keep=4)
    for step in (1, 2, 3, 40):
        save(writer, step)
    writer.wait()
    found = {step: damage(writer.directory / str(step)) for step in (3, 40)}
    (writer.directory / "3.damaged").mkdir()  # of an earlier start
    assert restore_newest(writer, {"step": np.array([0])})[2]["step"] == 2
    first, second = capsys.readouterr().err.splitlines()
    path = writer.directory / "40"
    assert first.startswith(f"warning: the checkpoint {path} is damaged: {found[40]} of ")
    assert first.endswith("; it is now named 40.damaged, and training rolls back to step 2")
    assert "now named 3.damaged1, and" in second
    assert folders(writer) == ["1", "2", "3.damaged", "3.damaged1", "40.damaged"]
    for step in (3, 4):
        save(writer, step)
    writer.wait()
    assert restore_newest(writer, {"step": np.array([0])})[2]["step"] == 4
    assert capsys.readouterr().err == ""


def test_if_all_are_damaged_none_is_renamed(opened):
    writer = opened()
    for step in (1, 2):
        save(writer, step)
    writer.wait()
    for step in (1, 2):
        damage(writer.directory / str(step))
    for _ in range(2):
        with pytest.raises(UserError, match=r"/2 is damaged: .*/1 is damaged: .*; put back "):
            restore_newest(writer, {"step": np.array([0])})
    assert folders(writer) == ["1", "2"]


def test_a_partly_deleted_checkpoint_does_not_count(opened, monkeypatch):
    """The next start deletes the rest."""
    writer = opened(keep=1)
    with monkeypatch.context() as patch:
        patch.setattr("dreamer.system.files.remove", lambda _: None)
        patch.setattr(manager.time, "sleep", lambda _: None)
        for step in (1, 2):
            save(writer, step)
        writer.wait()
        names = [re.sub(r"\.[0-9a-f]{16}\.", ".", name) for name in folders(writer)]
        assert names == ["1.tmp", "2"]
        assert manager.steps(writer.directory) == [2]
    assert folders(opened()) == ["2"]


def test_a_folder_without_checkpoints_has_none(tmp_path):
    (tmp_path / "notes.txt").write_text("7")
    for directory in (tmp_path, tmp_path / "other"):
        assert manager.newest(directory) is None
        assert manager.best(directory) is None
    assert not (tmp_path / "other").exists()


def test_a_failure_is_raised_once_by_the_next_call(opened):
    writer = opened()
    save(writer, 1)
    writer.wait()
    (writer.directory / "2").mkdir()
    (writer.directory / "2" / "in the way").mkdir()
    save(writer, 2)
    refusal = pytest.raises(
        SaveError, match="^cannot save a checkpoint in .*: Directory not empty;"
    )
    with refusal as error:
        save(writer, 3)
    assert error.value.__context__ is error.value.__cause__ is None  # they would hold the arrays
    assert writer.completed == 1
    save(writer, 3)
    writer.wait()
    assert not writer.busy
    assert writer.completed == 2


def test_temporary_folders_do_not_count_and_are_removed(opened):
    writer = opened()
    writer.save(1, train_state(), None, META)
    writer.wait()
    leftovers = [writer.directory / f"7.{name}" for name in ("tmp", "orbax-checkpoint-tmp-12")]
    for leftover in leftovers:
        leftover.mkdir()
        (leftover / "state").write_text("half")
    assert manager.newest(writer.directory) == 1
    assert all(leftover.exists() for leftover in leftovers)  # of a run in progress, maybe
    reopened = opened()
    assert reopened.latest_step() == 1
    assert folders(reopened) == ["1"]


def test_a_folder_that_cannot_be_written_is_refused_at_once(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError,
        match="^checkpoint.dir=.*/file/x cannot be written: Not a directory; .*checkpoint.dir=PATH",
    ):
        Checkpointer(tmp_path / "file" / "x")

    def refuse(*args, **kwargs):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("dreamer.system.files.probe", refuse)
    with pytest.raises(UserError, match="Read-only file system"):
        Checkpointer(tmp_path)


def run_python(code, *arguments):
    code = f"META = {META!r}\n{textwrap.dedent(code)}"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_a_full_disk_is_one_line_and_leaves_the_older_checkpoint(tmp_path):
    """Simulated by a limit on the size of files, which fails in the same way."""
    code = """
        import resource, sys
        import numpy as np
        from dreamer.checkpoint.manager import Checkpointer, SaveError

        writer = Checkpointer(sys.argv[1])
        writer.save(1, {"x": np.zeros(3)}, None, META)
        writer.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**18, resource.RLIM_INFINITY))
        noise = np.random.default_rng(0).integers(0, 255, 2**22, dtype=np.uint8)
        try:
            writer.save(2, {"x": np.zeros(3)}, {"noise": noise}, META)
            writer.wait()
        except SaveError as error:
            print(error)
        print(writer.latest_step(), sorted(path.name for path in writer.directory.iterdir()))
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        writer.save(3, {"x": np.zeros(3)}, {"noise": noise}, META)
        writer.wait()
        print(writer.latest_step(), sorted(path.name for path in writer.directory.iterdir()))
    """
    done = run_python(code, tmp_path / "run")
    assert done.returncode == 0, done.stderr
    message, after_failure, after_success = done.stdout.splitlines()
    assert message.startswith(
        f"cannot save a checkpoint in {tmp_path}/run: File too large; make room"
    )
    assert after_failure == "1 ['1']"
    assert after_success == "3 ['1', '3']"
    assert done.stderr == ""


def test_saved_on_several_devices_and_restored_on_one(tmp_path, opened):
    code = """
        import os, sys
        os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
        import jax, jax.numpy as jnp
        from dreamer.checkpoint.manager import Checkpointer

        mesh = jax.make_mesh((2,), ("data",))
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
        writer = Checkpointer(sys.argv[1])
        writer.save(1, {"x": jax.device_put(jnp.arange(4.0), sharding)}, None, META)
        writer.wait()
    """
    done = run_python(code, tmp_path)
    assert done.returncode == 0, done.stderr
    expected = {"x": jnp.arange(4.0)}
    assert_same(opened(tmp_path).restore(1, jax.eval_shape(lambda: expected))[0], expected)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (ValueError("ABORTED: x [source locations='y' os_error_code='27']"), "File too large"),
        (
            ValueError('NOT_FOUND: Error writing "params/0" in OCDBT database'),
            'NOT_FOUND: Error writing "params/0" in OCDBT database',
        ),
        (
            ValueError("Save failed: 3/65 missing:\n a \n b" + "c" * 99),
            "Save failed: 3/65 missing: a",
        ),
    ],
)
def test_the_reason_of_a_failed_write_is_short(error, reason):
    assert manager.reason(error).startswith(reason)
    assert len(manager.reason(error)) <= 100
