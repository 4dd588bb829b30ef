"""A store against a model of it, with crashes at any instant: inside a commit too, and with writes that were lost."""

import os
import tempfile
from pathlib import Path
from unittest import mock

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from store_doubles import ForgetfulStorage, aligned

from lohan_core.store import Store, StoreDirectory

SECTOR = 4096
SIZES = {"a": 1, "b": 3}
IDENTITY = {"model": "tiny"}


class Crash(BaseException):
    """The process dies here."""


class StoreMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.temporary = tempfile.TemporaryDirectory()
        self.path = Path(self.temporary.name) / "store"
        self.storage = ForgetfulStorage()
        self.counter = 0

    def teardown(self):
        self.store.close()
        self.temporary.cleanup()

    @initialize(versions=st.sampled_from((2, 3)))
    def create(self, versions):
        sizes = {name: n * SECTOR for name, n in SIZES.items()}
        self.store = Store.create(StoreDirectory.at(self.path), self.storage, sizes, IDENTITY, versions=versions)
        self.newest = {name: [0] * n for name, n in SIZES.items()}
        for name in SIZES:
            self.write_whole(name)
        self.store.commit(0, {})
        self.committed = self.current = self.copy_of_newest()
        self.step = 0

    def copy_of_newest(self):
        return {name: list(values) for name, values in self.newest.items()}

    @rule(name=st.sampled_from(sorted(SIZES)))
    def write_whole(self, name):
        self.counter = (self.counter + 1) % 256
        for i in range(SIZES[name]):
            self.store.write(name, i * SECTOR, aligned(SECTOR, self.counter))
            self.newest[name][i] = self.counter

    @rule()
    def finish_step(self):
        self.store.finish_step()
        self.current = self.copy_of_newest()

    @precondition(lambda self: self.store.versions == 3)
    @rule(names=st.sets(st.sampled_from(sorted(SIZES))), wrote_in_part=st.booleans())
    def take_back(self, names, wrote_in_part):
        if wrote_in_part and "b" in names:
            self.store.write("b", SECTOR, aligned(SECTOR, 254))
        self.store.take_back(names)
        for name in names:
            self.newest[name] = list(self.current[name])

    @rule()
    def commit(self):
        self.step += 1
        self.store.commit(self.step, {"counter": self.counter})
        self.committed = self.current = self.copy_of_newest()

    @rule(part=st.integers(1, 2), keep=st.randoms(use_true_random=False))
    def crash_in_the_middle_of_a_step(self, part, keep):
        for i in range(part):
            self.store.write("b", i * SECTOR, aligned(SECTOR, 255))
        self.restart(keep)

    @rule(
        call=st.sampled_from(["fsync", "replace"]), countdown=st.integers(0, 2), keep=st.randoms(use_true_random=False)
    )
    def crash_in_a_commit(self, call, countdown, keep):
        real_fsync, real_replace = os.fsync, Path.replace
        renamed = False
        left = countdown

        def tick(kind):
            nonlocal left
            if kind == call:
                if left == 0:
                    raise Crash
                left -= 1

        def fsync(descriptor):
            tick("fsync")
            real_fsync(descriptor)

        def replace(source, target):
            nonlocal renamed
            tick("replace")
            renamed = True
            return real_replace(source, target)

        self.step += 1
        try:
            with mock.patch("os.fsync", fsync), mock.patch.object(Path, "replace", replace):
                self.store.commit(self.step, {})
        except Crash:
            pass
        if renamed:
            self.committed = self.copy_of_newest()
        else:
            self.step -= 1
        self.restart(keep)

    def restart(self, keep):
        self.store._directory.close()  # what the kernel does for a process that dies
        self.storage.crash(lambda: keep.random() < 0.5)
        self.store = Store.open(StoreDirectory.existing(self.path), self.storage, IDENTITY)
        self.newest = {name: list(values) for name, values in self.committed.items()}
        self.current = self.copy_of_newest()
        assert self.store.committed_step == self.step

    @precondition(lambda self: hasattr(self, "committed"))
    @invariant()
    def reads_see_the_newest(self):
        for name, values in self.newest.items():
            buffer = aligned(len(values) * SECTOR)
            self.store.read(name, 0, buffer).wait()
            assert buffer.view(-1, SECTOR)[:, 0].tolist() == values


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
