"""Storage backend `memory`: extents are tensors in this process. Nothing survives the process.

The oracle for other storages, and what tests and dry runs use where no drive is wanted. Transfers are complete when
they are returned. A run on it cannot be resumed.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import psutil
from attrs import frozen

from lohan_core.errors import StorageError
from lohan_core.interfaces.storage import Capacity, Storage, StorageBackend, Transfer
from lohan_core.units import format_bytes

if TYPE_CHECKING:
    import torch

__all__ = ["MEMORY", "MemoryStorage", "MemoryStorageConfig"]


@frozen(kw_only=True)
class MemoryStorageConfig:
    """There is nothing to configure."""


class _Finished:
    """A transfer that was carried out before it was returned."""

    def wait(self) -> None:
        """Return at once."""

    def done(self) -> bool:
        """Answer yes."""
        return True


class MemoryStorage(Storage):
    """A dictionary of tensors."""

    def __init__(self) -> None:
        self._tensors: dict[str, torch.Tensor] = {}
        self._sizes: dict[str, int] = {}
        self._bytes_moved = [0, 0]
        self._lock = threading.Lock()
        self._closed = False

    def extents(self) -> Mapping[str, int]:
        """Sizes in bytes by name: a view that follows allocate and free."""
        return MappingProxyType(self._sizes)

    def capacity(self) -> Capacity:
        """Memory of the machine, and what is available of it now."""
        memory = psutil.virtual_memory()
        return Capacity(total_bytes=memory.total, free_bytes=memory.available)

    def bytes_moved(self) -> tuple[int, int]:
        """Bytes (read, written)."""
        with self._lock:
            return self._bytes_moved[0], self._bytes_moved[1]

    def describe(self) -> str:
        """Say that nothing is kept."""
        return "memory: extents are lost when the process ends"

    def close(self) -> None:
        """Drop all extents."""
        self._closed = True
        self._tensors.clear()
        self._sizes.clear()

    def _allocate(self, name: str, size_bytes: int) -> None:
        import torch

        with self._lock:
            self._check_open()
            if (present := self._sizes.get(name)) is not None:
                if present != size_bytes:
                    raise StorageError(errno.EEXIST, f"extent {name!r} exists with {present} bytes, not {size_bytes}")
                return
            missing = size_bytes - self.capacity().free_bytes
            if missing > 0:
                raise StorageError(
                    errno.ENOSPC,
                    f"extent {name!r}: no memory for {format_bytes(size_bytes)}: {format_bytes(missing)} are missing",
                )
            self._tensors[name] = torch.zeros(size_bytes, dtype=torch.uint8)
            self._sizes[name] = size_bytes

    def _read(self, name: str, offset: int, buffer: torch.Tensor) -> Transfer:
        self._check_open()
        extent = self._tensors[name]
        _as_bytes(buffer, extent).copy_(extent[offset : offset + buffer.nbytes])
        return self._finish(0, buffer.nbytes)

    def _write(self, name: str, offset: int, buffer: torch.Tensor) -> Transfer:
        self._check_open()
        extent = self._tensors[name]
        extent[offset : offset + buffer.nbytes].copy_(_as_bytes(buffer, extent))
        return self._finish(1, buffer.nbytes)

    def _finish(self, direction: int, size_bytes: int) -> Transfer:
        with self._lock:
            self._bytes_moved[direction] += size_bytes
        return _Finished()

    def _sync(self) -> None:
        self._check_open()

    def _free(self, name: str) -> None:
        with self._lock:
            self._check_open()
            del self._tensors[name], self._sizes[name]

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("the storage is closed")


def _as_bytes(buffer: torch.Tensor, extent: torch.Tensor) -> torch.Tensor:
    """See the bytes of ``buffer``, whatever its dtype."""
    return buffer.view(-1).view(extent.dtype)


def _open(_config: MemoryStorageConfig, *, namespace: str, default_directory: Path | str) -> Storage:
    """Open an empty storage; it is the caller's alone, so that names and places do not matter."""
    del namespace, default_directory
    return MemoryStorage()


MEMORY = StorageBackend(
    name="memory",
    summary="extents in this process's memory; nothing survives it",
    config=MemoryStorageConfig,
    open=_open,
)
