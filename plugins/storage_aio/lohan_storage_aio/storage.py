"""Storage of extents in files on several drives."""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lohan_core.errors import ConfigError, StorageError
from lohan_core.interfaces.storage import Capacity, Storage, Transfer
from lohan_core.units import format_bytes
from lohan_storage_aio import files, index
from lohan_storage_aio.config import AioConfig
from lohan_storage_aio.directories import capacity_of, make_folders, resolve_directories
from lohan_storage_aio.engine import Choice, Engine, choose_engine
from lohan_storage_aio.extents import Extents
from lohan_storage_aio.faults import FAULT_VARIABLE, parse_faults
from lohan_storage_aio.files import ExtentFile
from lohan_storage_aio.striping import Striping, shares_of
from lohan_storage_aio.transfer import AioTransfer

if TYPE_CHECKING:
    import torch

__all__ = ["AioStorage", "open_storage"]

_log = logging.getLogger(__name__)

_MOST_SYNCS_AT_ONCE = 16

_WHY_NOT_REGISTERED = {
    errno.ENOMEM: "raise the memlock limit (ulimit -l)",
    errno.ENOSPC: "its table is full; register fewer, larger ones",
}


def open_storage(config: AioConfig, *, namespace: str, default_directory: Path | str) -> AioStorage:
    """Open the namespace in its directories; what an earlier process left there is found again.

    Raises:
        ConfigError: a directory, or the geometry, cannot be used.
        BackendError: the engine does not work here.
        StoreError: what is there was written in another geometry, or is damaged.
        StorageError: the drive failed.
    """
    directories = resolve_directories(config, Path(default_directory))
    choice = choose_engine(config.engine)
    folders = make_folders(directories, namespace)
    files.raise_file_limit()
    return AioStorage(config, choice, directories, folders)


class AioStorage(Storage):
    """One file per extent in each directory; every transfer is one request to the native engine."""

    _closed = True  # until there is something to close

    def __init__(self, config: AioConfig, choice: Choice, directories: Sequence[Path], folders: Sequence[Path]) -> None:
        """Check what is there and open it; :func:`open_storage` makes the arguments."""
        self._config = config
        self._choice = choice
        self._directories = list(directories)
        self._notes: list[str] = []
        # Not a method: the extents would refer to their storage, and dropping it would no longer close it.
        self._note = partial(_note, self._notes)
        faults_for_tests = parse_faults(os.environ.get(FAULT_VARIABLE, ""))
        self._direct = [self._probe_direct(folder) for folder in folders]
        if config.stripe_bytes % self.alignment:
            raise ConfigError(
                f"storage.stripe_bytes: {config.stripe_bytes} is not a multiple of {self.alignment}, "
                "the alignment of direct I/O on these drives"
            )
        self._striping = Striping(config.stripe_bytes, shares_of(config.weights or [1.0] * len(directories)))
        found = index.load_index(folders, self._striping)
        index.check_files(folders, self._striping, found)
        index.remove_leftovers(folders, found)

        self._engine = Engine(
            choice.name, depth=config.queue_depth, block_bytes=config.stripe_bytes, alignment=self.alignment
        )
        self._engine.inject(faults_for_tests)
        # Guards the extents, what is in flight, and closing; held for microseconds on the way of a transfer.
        self._lock = threading.Lock()
        # Keeps files open while they are synced; taken before the other.
        self._sync_lock = threading.Lock()
        self._process = os.getpid()
        self._bytes_moved = (0, 0)
        self._registered: dict[tuple[int, int], torch.Tensor] = {}
        self._unsynced: set[ExtentFile] = set()
        self._in_flight: deque[AioTransfer] = deque()
        try:
            self._extents = Extents(found, folders, self._striping, self._engine, direct=self._direct, note=self._note)
        except BaseException:
            self._engine.close()
            raise
        self._closed = False

    def __del__(self) -> None:
        # What is in flight belongs to buffers that would be freed with this object.
        if not self._closed:
            self.close()

    @property
    def engine(self) -> str:
        """Name of the engine in use."""
        return str(self._choice.name)

    def extents(self) -> Mapping[str, int]:
        """Sizes in bytes by name: a view that follows allocate and free."""
        return self._extents.sizes

    def capacity(self) -> Capacity:
        """What the file systems could hold at the directories' shares, each file system counted once."""
        with files.storage_errors(self._directories[0], "examined"):
            return capacity_of(self._directories, self._striping.shares)

    def bytes_moved(self) -> tuple[int, int]:
        """Bytes (read, written) by transfers that finished without error, counted natively."""
        with self._lock:
            return self._bytes_moved if self._closed else self._engine.bytes_moved()

    def describe(self) -> str:
        """Name engine, directories and geometry, and everything that was fallen back from."""
        places = ", ".join(str(directory) for directory in self._directories)
        shares = "" if len(set(self._striping.shares)) == 1 else f" in shares {list(self._striping.shares)}"
        access = "O_DIRECT" if any(self._direct) else "page cache"
        text = (
            f"aio: {self._choice.name} ({self._choice.reason}), queue depth {self._config.queue_depth}, "
            f"stripes of {format_bytes(self._config.stripe_bytes)} over {places}{shares}, {access}"
        )
        return "; ".join([text, *self._notes])

    def close(self) -> None:
        """Wait for transfers in flight, then close the engine and all files. A namespace without extents goes.

        In a forked child nothing happens: the threads that would end are its parent's, and so are the files.
        """
        if self._forked():
            return
        with self._sync_lock, self._lock:
            if self._closed:
                return
            self._closed = True
            for transfer in self._in_flight:
                transfer.settle()
            self._in_flight.clear()
            self._bytes_moved = self._engine.bytes_moved()
            self._engine.close()
            self._registered.clear()
            self._extents.close()

    def _probe_direct(self, folder: Path) -> bool:
        if not self._config.direct:
            return False
        access = files.probe_direct(folder)
        if access.works:
            self.alignment = max(self.alignment, access.alignment)
        else:
            self._note(f"{folder.parent} goes through the page cache: {access.reason}")
        return access.works

    def _allocate(self, name: str, size_bytes: int) -> None:
        with self._lock:
            self._check_open()
            existing = self._extents.sizes.get(name)
            if existing is None:
                self._extents.create(name, size_bytes)
            elif existing != size_bytes:
                raise StorageError(errno.EEXIST, f"extent {name!r} exists with {existing} bytes, not {size_bytes}")

    def _free(self, name: str) -> None:
        with self._sync_lock, self._lock:
            self._check_open()
            extent_files = self._extents.files(name)
            for transfer in self._in_flight:
                if transfer.files is extent_files:
                    transfer.settle()
            self._extents.forget(name)
            self._unsynced.difference_update(extent_files)
            self._extents.discard(extent_files)

    def _read(self, name: str, offset: int, buffer: torch.Tensor) -> Transfer:
        return self._start(name, offset, buffer, writes=False)

    def _write(self, name: str, offset: int, buffer: torch.Tensor) -> Transfer:
        return self._start(name, offset, buffer, writes=True)

    def _start(self, name: str, offset: int, buffer: torch.Tensor, *, writes: bool) -> AioTransfer:
        address = buffer.data_ptr()
        with self._lock:
            self._check_open()
            extent_files = self._extents.files(name)
            segments: list[tuple[int, int, int, int]] = []
            for piece in self._striping.pieces(offset, buffer.nbytes):
                descriptor = extent_files[piece.directory].descriptor
                segments.append((descriptor, piece.file_offset, piece.length, address))
                address += piece.length
            request = self._engine.submit(writes=writes, segments=segments)
            transfer = AioTransfer(request, buffer, extent_files, writes=writes)
            if writes:
                self._unsynced.update(extent_files)
            while self._in_flight and self._in_flight[0].done():
                self._in_flight.popleft()
            # Keeps the buffer of a transfer that the caller drops.
            self._in_flight.append(transfer)
            return transfer

    def _register(self, buffers: list[torch.Tensor]) -> None:
        if not self._config.register_buffers:
            return
        with self._lock:
            self._check_open()
            for buffer in buffers:
                place = (buffer.data_ptr(), buffer.nbytes)
                if place in self._registered:
                    continue
                # The kernel keeps these very pages: were the tensor freed, its address could come to mean others.
                self._registered[place] = buffer
                error = self._engine.add_memory(*place)
                if error == errno.EOPNOTSUPP:
                    self._registered.clear()
                    return
                if error:
                    reason = _WHY_NOT_REGISTERED.get(error) or os.strerror(error)
                    self._note(f"buffers not registered with the kernel: {reason}")
                    return

    def _unregister(self) -> None:
        with self._lock:
            self._check_open()
            if not self._registered:
                return
            for transfer in self._in_flight:
                transfer.settle()
            error = self._engine.remove_memories()
            if error:
                self._note(f"buffers stay registered with the kernel: {os.strerror(error)}")
                return
            self._registered.clear()

    def _sync(self) -> None:
        with self._sync_lock:
            dirty = self._take_unsynced()
            if not dirty:
                return
            try:
                with ThreadPoolExecutor(min(len(dirty), _MOST_SYNCS_AT_ONCE), "lohan-sync") as pool:
                    list(pool.map(_sync_file, dirty))
            except BaseException:  # an interrupt too: what is not known to be durable must be synced by the next call
                with self._lock:
                    self._unsynced |= dirty
                raise

    def _take_unsynced(self) -> set[ExtentFile]:
        """Files to sync now. Those of a write that is still in flight remain: it may finish too late for this sync."""
        with self._lock:
            self._check_open()
            dirty = self._unsynced
            writes = (transfer for transfer in self._in_flight if transfer.writes and not transfer.done())
            self._unsynced = {file for transfer in writes for file in transfer.files}
            return dirty

    def _forked(self) -> bool:
        return os.getpid() != self._process

    def _check_open(self) -> None:
        if self._forked():
            raise ValueError("the storage's threads do not survive fork(): open it in the process that uses it")
        if self._closed:
            raise ValueError("the storage is closed")


def _note(notes: list[str], text: str) -> None:
    """Remember a fall-back for :meth:`AioStorage.describe`, and log it now, once."""
    if text not in notes:
        notes.append(text)
        _log.warning("aio: %s", text)


def _sync_file(file: ExtentFile) -> None:
    with files.storage_errors(file.path, "synced"):
        os.fdatasync(file.descriptor)
