"""Conformance suite for storage backends.

A plugin's whole test file::

    from lohan_core.testing.storage import StorageSuite
    from my_plugin import BACKEND


    class TestMyStorage(StorageSuite):
        backend = BACKEND

Override the fixture ``config`` if the backend needs more than its default config, and the method ``damage`` if its
extents are not files below the default directory, if one file holds several of them, or if files are mapped into memory
(which ends the process when they shrink).
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from lohan_core.errors import StorageError
from lohan_core.interfaces.storage import Storage, StorageBackend
from lohan_core.testing.storage_buffers import aligned_buffer, random_buffer, read, write
from lohan_core.testing.storage_transfers import StorageTransfers
from lohan_core.testing.suite import ConformanceSuite, default_config

__all__ = ["StorageSuite"]

OpenStorage = Callable[..., Storage]


class StorageSuite(StorageTransfers, ConformanceSuite):
    """What every storage does, its transfers included. Sizes are in units of the backend's alignment."""

    backend: ClassVar[StorageBackend]

    @pytest.fixture
    def config(self) -> Any:
        """Give the config to open the backend with."""
        return default_config(self.backend)

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

    @pytest.mark.parametrize("used", [False, True], ids=["never used", "all freed"])
    def test_an_empty_namespace_leaves_nothing(self, open_storage: OpenStorage, directory: Path, used: bool) -> None:  # noqa: FBT001
        """When one without extents has been closed, there is no file of it, and no folder of its name."""
        storage = open_storage()
        if used:
            storage.allocate("extent", storage.alignment)
            write(storage, "extent", random_buffer(storage, 1, seed=0))
            storage.sync()
            storage.free("extent")
        storage.close()
        assert not [path for path in directory.rglob("*") if path.is_file() or path.name == "suite"]

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
