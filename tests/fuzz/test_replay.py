"""The host replay, in memory and in files, does what a list of all steps would, in any order of
calls, saves among them."""

import itertools
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from dreamer.replay import host, tree
from tests.fuzz.profiles import examples
from tests.replay.reference import SPEC, Reference, values

COUNTS = st.integers(1, 4)


class Machine(RuleBasedStateMachine):
    """Adds, samples, updates and restores; after every call the windows there are must agree."""

    @initialize(
        num_envs=COUNTS, length=st.integers(2, 5), spare=st.integers(0, 9), online=st.booleans()
    )
    def start(self, num_envs: int, length: int, spare: int, online: bool) -> None:
        self.rng = np.random.default_rng(0)
        self.num_envs, self.length, self.online = num_envs, length, online
        self.slots = length + spare
        self.folders = tempfile.TemporaryDirectory()
        self.numbers = itertools.count()
        self.replay = self.make(False)
        self.model = Reference(num_envs, self.slots, length, online)
        self.late: list[np.ndarray] = []  # windows whose latents are still to come
        self.seed = 0

    def make(self, in_files: bool) -> host.Replay:
        folder = None
        if in_files:
            folder = Path(self.folders.name) / str(next(self.numbers))
            folder.mkdir()
        capacity = self.slots * self.num_envs
        return host.init(SPEC, capacity, self.num_envs, self.length, self.online, folder)

    @rule(count=st.integers(1, 12))
    def add(self, count: int) -> None:
        for _ in range(count):
            transition = values(self.rng, SPEC, (self.num_envs,))
            self.replay = host.add(self.replay, transition)
            self.model.add(transition)

    @precondition(lambda self: self.model.windows())
    @rule(size=COUNTS)
    def sample(self, size: int) -> None:
        self.seed += 1
        queued, self.model.queue = self.model.queue[:size], self.model.queue[size:]
        self.replay, batch, index = host.sample(self.replay, (7, self.seed), size)
        chosen = [tuple(window) for window in index.tolist()]
        assert chosen[: len(queued)] == queued
        assert set(chosen) <= self.model.windows()
        flat = tree.flatten(batch)
        for number, (env, first) in enumerate(chosen):
            for t, row in enumerate(self.model.read(env, first)):
                for path, leaf in row.items():
                    if path[0] != "latent" or t == 0:
                        np.testing.assert_array_equal(flat[path][number, t], leaf)
        self.late.append(index)

    @precondition(lambda self: self.late)
    @rule(data=st.data())
    def update(self, data: st.DataObject) -> None:
        index = self.late.pop(data.draw(st.integers(0, len(self.late) - 1)))
        latent = values(self.rng, SPEC["latent"], (len(index), self.length - 1))
        self.replay = host.update(self.replay, index, latent)
        self.model.update(index.tolist(), latent)

    @rule(copy=st.booleans(), in_files=st.booleans(), filled=st.booleans())
    def restore(self, copy: bool, in_files: bool, filled: bool) -> None:
        other = self.make(in_files)
        if filled:
            other = host.add(other, values(self.rng, SPEC, (self.num_envs,)))
        self.replay = host.set_state(other, host.get_state(self.replay, copy))

    @invariant()
    def the_same_windows_are_there(self) -> None:
        if hasattr(self, "model"):
            assert host.num_items(self.replay) == len(self.model.windows())

    def teardown(self) -> None:
        self.__dict__.pop("replay", None)  # whose files are mapped
        if hasattr(self, "folders"):
            self.folders.cleanup()


def test_any_order_of_calls_agrees_with_a_list_of_all_steps() -> None:
    run_state_machine_as_test(Machine, settings=examples(12))  # type: ignore[no-untyped-call]
