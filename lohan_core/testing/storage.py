"""Conformance suite for storage backends.

A plugin's whole test file::

    from lohan_core.testing.storage import StorageSuite
    from my_plugin import BACKEND


    class TestMyStorage(StorageSuite):
        backend = BACKEND

Override the fixture ``config`` if the backend needs more than its default config, and the method ``damage`` if its
extents are not files below the default directory.
"""

from __future__ import annotations

import errno
import gc
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from lohan_core.errors import StorageError
from lohan_core.interfaces.storage import Storage, StorageBackend
from lohan_core.testing.suite import ConformanceSuite

__all__ = ["StorageSuite", "aligned_buffer", "random_buffer"]

OpenStorage = Callable[..., Storage]


def aligned_buffer(storage: Storage, units: int) -> torch.Tensor:
    """Make a host buffer of ``units`` times the storage's alignment, at an aligned address."""
    size = units * storage.alignment
    raw = torch.zeros(size + storage.alignment, dtype=torch.uint8)
    start = -raw.data_ptr() % storage.alignment
    return raw[start : start + size]


def random_buffer(storage: Storage, units: int, seed: int) -> torch.Tensor:
    """Make a host buffer of random bytes."""
    buffer = aligned_buffer(storage, units)
    generator = torch.Generator().manual_seed(seed)
    return buffer.random_(0, 256, generator=generator)


def write(storage: Storage, name: str, buffer: torch.Tensor, offset: int = 0) -> None:
    """Write and wait."""
    storage.write(name, offset, buffer).wait()


def read(storage: Storage, name: str, units: int, offset: int = 0) -> torch.Tensor:
    """Read and wait."""
    buffer = aligned_buffer(storage, units)
    storage.read(name, offset, buffer).wait()
    return buffer


class StorageSuite(ConformanceSuite):
    """What every storage does. Sizes are in units of the backend's alignment."""

    backend: ClassVar[StorageBackend]

    @pytest.fixture
    def config(self) -> Any:
        """Give the config to open the backend with."""
        return self.backend.config()

    @pytest.fixture
    def directory(self, tmp_path: Path) -> Path:
        """Give the default directory, which the backend makes."""
        return tmp_path / "storage"

    @pytest.fixture
    def open_storage(self, config: Any, directory: Path) -> Iterator[OpenStorage]:
        """Give a function that opens the backend, by default in one namespace; closes what is left open."""
        opened: list[Storage] = []

        def open_one(namespace: str = "suite") -> Storage:
            storage = self.backend.open(config, namespace=namespace, default_directory=directory)
            opened.append(storage)
            return storage

        yield open_one
        for storage in opened:
            storage.close()

    @pytest.fixture
    def storage(self, open_storage: OpenStorage) -> Storage:
        """Give an open, empty storage."""
        return open_storage()

    def damage(self, directory: Path) -> None:
        """Make reading any extent fail or fall short: by default, empty all files that hold extents."""
        files = [path for path in directory.rglob("*") if path.is_file() and path.stat().st_size >= Storage.alignment]
        assert files, "found no files to damage; override damage(), or declare a deviation"
        for path in files:
            with path.open("r+b") as file:
                file.truncate(0)

    def test_probe_finds_it_usable(self) -> None:
        """The suite runs where the backend works."""
        assert self.backend.probe() is None

    def test_satisfies_the_interface(self, storage: Storage) -> None:
        """It is a Storage with a sane alignment, and says what it is in one line."""
        assert isinstance(storage, Storage)
        assert storage.alignment > 0
        assert storage.alignment & (storage.alignment - 1) == 0
        assert storage.describe().strip()
        assert "\n" not in storage.describe()

    @pytest.mark.parametrize("units", [1, 2, 3, 255, 256, 257, 1031])
    def test_round_trip(self, storage: Storage, units: int) -> None:
        """What is written is read, whatever number of stripes it takes."""
        storage.allocate("extent", units * storage.alignment)
        written = random_buffer(storage, units, seed=units)
        write(storage, "extent", written)
        assert torch.equal(read(storage, "extent", units), written)

    def test_round_trip_of_parts(self, storage: Storage) -> None:
        """A range inside an extent is written and read without touching its neighbours."""
        storage.allocate("extent", 64 * storage.alignment)
        whole = random_buffer(storage, 64, seed=1)
        write(storage, "extent", whole)
        part = random_buffer(storage, 7, seed=2)
        start, end = 29 * storage.alignment, 36 * storage.alignment
        write(storage, "extent", part, start)
        expected = whole.clone()
        expected[start:end] = part
        assert torch.equal(read(storage, "extent", 64), expected)
        assert torch.equal(read(storage, "extent", 7, start), part)

    def test_overwrite(self, storage: Storage) -> None:
        """The last write wins."""
        storage.allocate("extent", 33 * storage.alignment)
        for seed in range(4):
            last = random_buffer(storage, 33, seed)
            write(storage, "extent", last)
        assert torch.equal(read(storage, "extent", 33), last)

    @pytest.mark.parametrize("seed", range(3))
    def test_random_reads_and_writes_agree_with_memory(self, storage: Storage, seed: int) -> None:
        """Any sequence of writes and reads of any ranges leaves what plain memory would hold."""
        units = 97
        storage.allocate("extent", units * storage.alignment)
        expected = random_buffer(storage, units, seed)
        write(storage, "extent", expected)
        dice = random.Random(seed)  # noqa: S311  # reproducible dice, not secrets
        for turn in range(60):
            start = dice.randrange(units)
            length = dice.randint(1, units - start)
            offset, end = start * storage.alignment, (start + length) * storage.alignment
            if dice.random() < 0.5:
                piece = random_buffer(storage, length, seed=turn)
                write(storage, "extent", piece, offset)
                expected[offset:end] = piece
            else:
                assert torch.equal(read(storage, "extent", length, offset), expected[offset:end])

    def test_transfers_in_flight_together(self, storage: Storage) -> None:
        """Reads of some extents and writes of others overlap without harm; waiting out of order and twice is fine."""
        old = [random_buffer(storage, 40, seed) for seed in range(6)]
        new = [random_buffer(storage, 40, seed + 100) for seed in range(6)]
        for number, buffer in enumerate(old):
            storage.allocate(f"old{number}", 40 * storage.alignment)
            storage.allocate(f"new{number}", 40 * storage.alignment)
            write(storage, f"old{number}", buffer)
        found = [aligned_buffer(storage, 40) for _ in old]
        transfers = []
        for number in range(6):
            transfers.append(storage.write(f"new{number}", 0, new[number]))
            transfers.append(storage.read(f"old{number}", 0, found[number]))
        for transfer in reversed(transfers):
            transfer.wait()
            assert transfer.done()
            transfer.wait()
        for number in range(6):
            assert torch.equal(found[number], old[number])
            assert torch.equal(read(storage, f"new{number}", 40), new[number])

    def test_threads_share_it(self, storage: Storage) -> None:
        """Several threads allocate, write and read their own extents at once."""

        def work(number: int) -> bool:
            name = f"thread{number}"
            storage.allocate(name, 20 * storage.alignment)
            for turn in range(5):
                written = random_buffer(storage, 20, seed=number * 10 + turn)
                write(storage, name, written)
                if not torch.equal(read(storage, name, 20), written):
                    return False
            return True

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(work, range(8)))

    def test_misalignment_is_refused(self, storage: Storage) -> None:
        """Offset, length and address are checked before anything moves."""
        unit = storage.alignment
        storage.allocate("extent", 4 * unit)
        buffer = aligned_buffer(storage, 4)
        for start in (storage.read, storage.write):
            with pytest.raises(ValueError, match="multiples of"):
                start("extent", unit // 2, buffer[:unit])
            with pytest.raises(ValueError, match="multiples of"):
                start("extent", 0, buffer[: unit + 1])
            with pytest.raises(ValueError, match="multiples of"):
                start("extent", 0, buffer[1 : unit + 1])
        with pytest.raises(ValueError, match="multiple of"):
            storage.allocate("odd", unit + 1)

    def test_outside_is_refused(self, storage: Storage) -> None:
        """A range must lie inside its extent."""
        unit = storage.alignment
        storage.allocate("extent", 4 * unit)
        buffer = aligned_buffer(storage, 2)
        for start in (storage.read, storage.write):
            for offset in (-unit, 3 * unit, 4 * unit):
                with pytest.raises(ValueError, match="lie outside"):
                    start("extent", offset, buffer)
        with pytest.raises(ValueError, match="positive"):
            storage.allocate("empty", 0)

    def test_a_dropped_write_is_still_written(self, storage: Storage) -> None:
        """Neither the transfer nor the buffer has to be kept by the caller."""
        storage.allocate("extent", 512 * storage.alignment)
        storage.write("extent", 0, random_buffer(storage, 512, seed=5))
        gc.collect()
        scribble = [torch.full((512 * storage.alignment,), 7, dtype=torch.uint8) for _ in range(4)]
        while storage.bytes_moved()[1] < 512 * storage.alignment:
            time.sleep(0.001)
        assert torch.equal(read(storage, "extent", 512), random_buffer(storage, 512, seed=5))
        assert all(bool((other == 7).all()) for other in scribble)

    def test_a_dropped_read_corrupts_nothing(self, storage: Storage) -> None:
        """The memory of a read that nobody waits for is not handed to anyone else while it is filled."""
        storage.allocate("extent", 512 * storage.alignment)
        write(storage, "extent", random_buffer(storage, 512, seed=6))
        for _ in range(8):
            storage.read("extent", 0, aligned_buffer(storage, 512))
            bystander = torch.full((513 * storage.alignment,), 7, dtype=torch.uint8)
            read(storage, "extent", 512)
            assert bool((bystander == 7).all())

    def test_missing_names_raise(self, storage: Storage) -> None:
        """An extent that was never allocated, or was freed, is a KeyError."""
        buffer = aligned_buffer(storage, 1)
        storage.allocate("freed", storage.alignment)
        storage.free("freed")
        for name in ("never", "freed"):
            with pytest.raises(KeyError):
                storage.read(name, 0, buffer)
            with pytest.raises(KeyError):
                storage.write(name, 0, buffer)
            with pytest.raises(KeyError):
                storage.free(name)

    def test_allocate_again(self, storage: Storage) -> None:
        """The same size keeps the bytes; another size is refused."""
        storage.allocate("extent", 3 * storage.alignment)
        written = random_buffer(storage, 3, seed=9)
        write(storage, "extent", written)
        storage.allocate("extent", 3 * storage.alignment)
        assert torch.equal(read(storage, "extent", 3), written)
        with pytest.raises(StorageError) as caught:
            storage.allocate("extent", 4 * storage.alignment)
        assert caught.value.errno == errno.EEXIST
        assert dict(storage.extents()) == {"extent": 3 * storage.alignment}

    def test_freed_names_can_be_used_again(self, storage: Storage) -> None:
        """Free forgets the extent, size and all."""
        storage.allocate("extent", 3 * storage.alignment)
        storage.free("extent")
        assert dict(storage.extents()) == {}
        storage.allocate("extent", 5 * storage.alignment)
        written = random_buffer(storage, 5, seed=3)
        write(storage, "extent", written)
        assert torch.equal(read(storage, "extent", 5), written)

    def test_names_are_any_text(self, storage: Storage) -> None:
        """Separators, dots, spaces and other scripts are part of a name, and no two names meet."""
        names = ["a/b", "a", "a.b", "a%2Fb", "../up", ".", "..", "with space", "層/0"]
        for number, name in enumerate(names):
            storage.allocate(name, storage.alignment)
            write(storage, name, random_buffer(storage, 1, seed=number))
        assert set(storage.extents()) == set(names)
        for number, name in enumerate(names):
            assert torch.equal(read(storage, name, 1), random_buffer(storage, 1, seed=number))

    def test_too_little_space_is_found_at_allocation(self, storage: Storage) -> None:
        """An extent larger than what is free is refused with ENOSPC, and leaves nothing behind."""
        too_much = storage.capacity().free_bytes * 2 + (1 << 40)
        with pytest.raises(StorageError) as caught:
            storage.allocate("huge", too_much - too_much % storage.alignment)
        assert caught.value.errno == errno.ENOSPC
        assert "huge" not in storage.extents()
        storage.allocate("huge", storage.alignment)

    def test_capacity(self, storage: Storage) -> None:
        """What is free is part of the whole."""
        capacity = storage.capacity()
        assert 0 < capacity.free_bytes <= capacity.total_bytes

    def test_bytes_are_counted(self, storage: Storage) -> None:
        """Finished transfers count with their bytes, each in its direction."""
        storage.allocate("extent", 10 * storage.alignment)
        assert storage.bytes_moved() == (0, 0)
        write(storage, "extent", random_buffer(storage, 10, seed=0))
        read(storage, "extent", 3)
        read(storage, "extent", 4)
        assert storage.bytes_moved() == (7 * storage.alignment, 10 * storage.alignment)

    def test_registered_buffers_work_alike(self, storage: Storage) -> None:
        """Buffers that were announced, parts of them, and others are read and written alike."""
        storage.allocate("extent", 32 * storage.alignment)
        pool = random_buffer(storage, 64, seed=4)
        storage.register([pool])
        storage.register([pool])
        part = pool[5 * storage.alignment : 37 * storage.alignment]
        write(storage, "extent", part)
        assert torch.equal(read(storage, "extent", 32), part)
        expected = part.clone()
        storage.read("extent", 0, pool[: 32 * storage.alignment]).wait()
        assert torch.equal(pool[: 32 * storage.alignment], expected)

    def test_buffers_that_are_no_longer_registered_work_alike(self, storage: Storage) -> None:
        """Letting go of buffers is allowed at any time, and they are read and written as others are."""
        storage.unregister()
        storage.allocate("extent", 32 * storage.alignment)
        pool, other = random_buffer(storage, 32, seed=4), random_buffer(storage, 32, seed=5)
        storage.register([pool])
        transfer = storage.write("extent", 0, pool)
        storage.unregister()
        transfer.wait()
        storage.register([other])
        assert torch.equal(read(storage, "extent", 32), pool)
        for buffer in (other, pool):
            write(storage, "extent", buffer)
            assert torch.equal(read(storage, "extent", 32), buffer)

    def test_sync(self, storage: Storage) -> None:
        """Syncing is allowed at any time: before anything is written, after writes, while they are in flight."""
        storage.sync()
        storage.allocate("extent", 256 * storage.alignment)
        write(storage, "extent", random_buffer(storage, 256, seed=0))
        storage.sync()
        transfer = storage.write("extent", 0, random_buffer(storage, 256, seed=1))
        storage.sync()
        transfer.wait()
        storage.sync()
        assert torch.equal(read(storage, "extent", 256), random_buffer(storage, 256, seed=1))

    def test_failed_io_surfaces_from_wait(self, storage: Storage, directory: Path) -> None:
        """A transfer that cannot be carried out in full raises StorageError from wait, each time; the storage lives."""
        storage.allocate("extent", 16 * storage.alignment)
        write(storage, "extent", random_buffer(storage, 16, seed=0))
        storage.sync()
        self.damage(directory)
        transfer = storage.read("extent", 0, aligned_buffer(storage, 16))
        for _ in range(2):
            with pytest.raises(StorageError) as caught:
                transfer.wait()
            assert caught.value.errno
            assert "\n" not in str(caught.value)
        assert transfer.done()
        storage.allocate("other", storage.alignment)
        write(storage, "other", random_buffer(storage, 1, seed=1))
        assert torch.equal(read(storage, "other", 1), random_buffer(storage, 1, seed=1))

    def test_close_twice(self, storage: Storage) -> None:
        """Closing waits for what is in flight, and a second time does nothing."""
        storage.allocate("extent", 256 * storage.alignment)
        transfer = storage.write("extent", 0, random_buffer(storage, 256, seed=0))
        storage.close()
        storage.close()
        assert transfer.done()
        transfer.wait()

    def test_reopen_finds_the_bytes(self, open_storage: OpenStorage) -> None:
        """Extents, their sizes and bytes are there after closing and opening again; freed ones are not."""
        first = open_storage()
        sizes = {"a/b": 1, "odd": 129, "large": 1031}
        for name, units in sizes.items():
            first.allocate(name, units * first.alignment)
            write(first, name, random_buffer(first, units, seed=units))
        first.allocate("freed", first.alignment)
        first.free("freed")
        first.sync()
        first.close()
        second = open_storage()
        assert dict(second.extents()) == {name: units * second.alignment for name, units in sizes.items()}
        for name, units in sizes.items():
            assert torch.equal(read(second, name, units), random_buffer(second, units, seed=units))

    def test_namespaces_are_apart(self, open_storage: OpenStorage) -> None:
        """The same name in two namespaces is two extents."""
        one, other = open_storage("one"), open_storage("other")
        for seed, storage in enumerate((one, other)):
            storage.allocate("extent", storage.alignment)
            write(storage, "extent", random_buffer(storage, 1, seed))
        one.allocate("only", one.alignment)
        assert "only" not in other.extents()
        for seed, storage in enumerate((one, other)):
            assert torch.equal(read(storage, "extent", 1), random_buffer(storage, 1, seed))
