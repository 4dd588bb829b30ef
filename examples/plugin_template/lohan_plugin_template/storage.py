"""Storage ``plain_files``: one file for each extent in one directory, read and written by a pool of threads."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Lock
from types import MappingProxyType
from urllib.parse import quote, unquote

import torch
from attrs import frozen

from lohan_core.errors import ConfigError, StorageError
from lohan_core.interfaces.storage import Capacity, Storage, Transfer

PREFIX = "extent."  # so that no extent's file is called "." or ".."


@frozen
class FileTransfer:
    """A transfer in flight. The thread that carries it out holds the buffer."""

    future: Future[None]

    def wait(self) -> None:
        """Block until it is done; raise StorageError if it failed."""
        self.future.result()

    def done(self) -> bool:
        """Tell whether it is done."""
        return self.future.done()


class PlainFiles(Storage):
    """See the module."""

    def __init__(self, folder: Path, threads: int) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"storage.directory: {folder}: {error.strerror}; name a directory to write to") from error
        self._folder = folder
        self._pool = ThreadPoolExecutor(threads)
        self._lock = Lock()
        self._sizes = {unquote(p.name.removeprefix(PREFIX)): p.stat().st_size for p in folder.glob(f"{PREFIX}*")}
        self._read_bytes = self._written_bytes = 0

    def extents(self) -> Mapping[str, int]:
        """Sizes in bytes by name."""
        return MappingProxyType(self._sizes)

    def capacity(self) -> Capacity:
        """What the file system has."""
        usage = shutil.disk_usage(self._folder)
        return Capacity(total_bytes=usage.total, free_bytes=usage.free)

    def bytes_moved(self) -> tuple[int, int]:
        """Bytes (read, written) by finished transfers."""
        with self._lock:
            return self._read_bytes, self._written_bytes

    def describe(self) -> str:
        """Say where the files are."""
        return f"plain files in {self._folder}"

    def close(self) -> None:
        """Wait for transfers in flight; the files stay, and without any there is no folder either."""
        self._pool.shutdown(wait=True)
        if not self._sizes:
            with suppress(OSError):  # it is gone, or somebody else's files are in it
                self._folder.rmdir()

    def _allocate(self, name: str, size_bytes: int) -> None:
        path = self._path(name)
        with self._lock:
            present = self._sizes.get(name)
            if present == size_bytes:
                return
            if present is not None:
                raise StorageError(errno.EEXIST, f"{path}: exists with {present} bytes, not {size_bytes}", str(path))
            if size_bytes > self.capacity().free_bytes:
                raise StorageError(errno.ENOSPC, f"{path}: no space for {size_bytes} bytes", str(path))
            try:
                with path.open("wb") as file:
                    os.posix_fallocate(file.fileno(), 0, size_bytes)
            except OSError as error:
                path.unlink(missing_ok=True)
                raise _storage_error(error, path, 0) from error
            self._sizes[name] = size_bytes

    def _free(self, name: str) -> None:
        with self._lock:
            del self._sizes[name]
            self._path(name).unlink()

    def _read(self, name: str, offset: int, buffer: torch.Tensor) -> Transfer:
        return FileTransfer(self._pool.submit(self._move, os.preadv, self._path(name), offset, buffer))

    def _write(self, name: str, offset: int, buffer: torch.Tensor) -> Transfer:
        return FileTransfer(self._pool.submit(self._move, os.pwritev, self._path(name), offset, buffer))

    def _sync(self) -> None:
        with self._lock:
            for path in (self._folder, *map(self._path, self._sizes)):
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                except OSError as error:
                    raise _storage_error(error, path, 0) from error
                finally:
                    os.close(descriptor)

    def _path(self, name: str) -> Path:
        return self._folder / f"{PREFIX}{quote(name, safe='')}"

    def _move(
        self, call: Callable[[int, list[memoryview], int], int], path: Path, offset: int, buffer: torch.Tensor
    ) -> None:
        """Carry a transfer out: ``call`` may move fewer bytes than it was asked to, and is then called for the rest."""
        rest = buffer.numpy().data
        try:
            descriptor = os.open(path, os.O_RDWR)
            try:
                while rest:
                    moved = call(descriptor, [rest], offset)
                    if moved == 0:
                        raise OSError(errno.EIO, "the file is too short")
                    rest, offset = rest[moved:], offset + moved
            finally:
                os.close(descriptor)
        except OSError as error:
            raise _storage_error(error, path, offset) from error
        with self._lock:
            if call is os.preadv:
                self._read_bytes += buffer.nbytes
            else:
                self._written_bytes += buffer.nbytes


def _storage_error(error: OSError, path: Path, offset: int) -> StorageError:
    return StorageError(error.errno or errno.EIO, f"{path}: at byte {offset}: {error.strerror}", str(path), offset)
