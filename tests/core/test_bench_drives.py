from __future__ import annotations

import errno
from contextlib import closing
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lohan_core.backend import Kind
from lohan_core.bench.drives import IN_FLIGHT, DrivesAlone, mixed_order
from lohan_core.errors import StorageError
from lohan_core.reference.memory_storage import MEMORY
from lohan_core.registry import load_registry

REQUEST_BYTES = 16 << 10


@given(share=st.floats(0.0, 1.0), length=st.integers(1, 500))
def test_at_every_point_the_mix_is_the_steps(share, length):
    reads = 0
    for done, is_read in enumerate(islice(mixed_order(share), length), start=1):
        reads += is_read
        assert abs(reads - share * done) <= 1.0


def test_only_reads_and_only_writes_are_mixes_too():
    assert all(islice(mixed_order(1.0), 50))
    assert not any(islice(mixed_order(0.0), 50))


def open_storage(name, directory):
    registry = load_registry()
    config = registry.find(Kind.STORAGE, name).config()
    return registry.open_backend(Kind.STORAGE, name, config, namespace="bench", default_directory=directory)


@pytest.mark.parametrize("name", [MEMORY.name, "aio"])
def test_bytes_go_both_ways_in_proportion_and_extents_are_given_back(tmp_path, name, monkeypatch):
    monkeypatch.setattr("lohan_core.bench.drives.EXTENT_BYTES", 64 * REQUEST_BYTES)
    storage = open_storage(name, tmp_path)
    drives = DrivesAlone(lambda: storage, request_bytes=REQUEST_BYTES, seconds=0.05)
    with closing(drives):
        for _ in range(2):
            drives.turn(300, 100)
        read, written = storage.bytes_moved()
        filled = 2 * 64 * REQUEST_BYTES
        assert read >= 2 * IN_FLIGHT * 3 // 4 * REQUEST_BYTES
        assert abs(read - 3 * (written - filled)) <= 2 * 4 * REQUEST_BYTES
        assert 0 < drives.bytes_per_second <= (read + written - filled) / 0.1
        assert drives.failure is None
    reopened = open_storage(name, tmp_path)
    assert not reopened.extents()
    reopened.close()


def test_of_nothing_nothing_is_opened():
    with closing(DrivesAlone(pytest.fail, request_bytes=REQUEST_BYTES, seconds=0.05)) as drives:
        drives.turn(0, 0)
    assert drives.failure is None


def test_drives_that_fail_are_not_asked_again():
    asked = []

    def refuse():
        asked.append(1)
        raise StorageError(errno.ENOSPC, "full")

    with closing(DrivesAlone(refuse, request_bytes=REQUEST_BYTES, seconds=0.05)) as drives:
        drives.turn(300, 100)
        drives.turn(300, 100)
    assert drives.failure == "full"
    assert asked == [1]
