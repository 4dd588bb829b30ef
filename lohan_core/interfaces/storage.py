"""Storage: named extents of bytes, read and written asynchronously.

A backend's ``open`` is called as ``open(config, namespace=..., default_directory=...)``: ``namespace`` is a short
string that no other store uses, and a backend keeps its extents apart by it; ``default_directory`` is where extents go
when the config names no directory (a path inside the run directory), and the backend makes it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Protocol, TypeAlias

from attrs import frozen

from lohan_core.backend import Backend

if TYPE_CHECKING:
    import torch

__all__ = ["Capacity", "Storage", "StorageBackend", "Transfer"]


class Transfer(Protocol):
    """An asynchronous I/O in flight. It owns its buffer until it is done, even if the caller drops it."""

    def wait(self) -> None:
        """Block until the transfer is complete. May be called twice.

        Raises:
            StorageError: it failed.
        """

    def done(self) -> bool:
        """Tell whether ``wait`` would return or raise at once."""


@frozen(kw_only=True)
class Capacity:
    """Bytes that the backend could hold in all, and bytes that are free now."""

    total_bytes: int
    free_bytes: int


class Storage(ABC):
    """Extents of bytes by name. Thread-safe: transfers may be started from several threads at once.

    Names are any text, such as ``"a/b"`` and ``".."``. Transfers are in no order: one that must follow another is
    started when that has been waited for. A namespace without extents leaves nothing on the drives: when the storage is
    closed, at the latest, the files that it keeps beside its extents go too.

    Callers use the public methods, which check; a backend implements the underscored ones, which may assume that the
    extent exists, that the range lies inside it, and that offset, length and address are aligned.
    """

    alignment: int = 4096
    """Offsets, lengths and buffer addresses are multiples of this many bytes."""

    takes_device_buffers: bool = False
    """Whether read and write accept CUDA tensors (GPUDirect)."""

    def allocate(self, name: str, size_bytes: int) -> None:
        """Reserve an extent, zero-filled or not, so that writing it later cannot run out of space.

        Raises:
            StorageError: the name exists with another size (EEXIST) or there is too little space (ENOSPC). Allocating
                a name again with the same size keeps its bytes.
        """
        if size_bytes <= 0 or size_bytes % self.alignment:
            raise ValueError(f"extent {name!r}: size {size_bytes} is not a positive multiple of {self.alignment}")
        self._allocate(name, size_bytes)

    def read(self, name: str, offset: int, buffer: torch.Tensor) -> Transfer:
        """Start to fill ``buffer`` (1-D, uint8, contiguous) from ``offset`` bytes into the extent.

        Raises:
            KeyError: no such extent.
            ValueError: misaligned, or outside the extent.
        """
        self._check(name, offset, buffer)
        return self._read(name, offset, buffer)

    def write(self, name: str, offset: int, buffer: torch.Tensor) -> Transfer:
        """Start to write ``buffer`` at ``offset`` bytes into the extent; errors as for :meth:`read`."""
        self._check(name, offset, buffer)
        return self._write(name, offset, buffer)

    def register(self, buffers: Iterable[torch.Tensor]) -> None:
        """Tell the backend which buffers transfers will use, so that it can register them with the kernel.

        A hint: a backend that has no use for it ignores it, and other buffers stay valid. It may hold on to them until
        :meth:`unregister`, or until it is closed.
        """
        self._register(list(buffers))

    def unregister(self) -> None:
        """Let go of all buffers that were registered, so that their memory can be given back.

        Waits for transfers in flight. The buffers stay valid for further ones, like any others.
        """
        self._unregister()

    def sync(self) -> None:
        """Return when every finished write is on durable media."""
        self._sync()

    def free(self, name: str) -> None:
        """Give an extent's space back. Raises KeyError for an unknown name."""
        if name not in self.extents():
            raise KeyError(name)
        self._free(name)

    def _check(self, name: str, offset: int, buffer: torch.Tensor) -> None:
        size = self.extents()[name]
        length = buffer.numel() * buffer.element_size()
        if not buffer.is_contiguous():
            raise ValueError(f"extent {name!r}: the buffer is not contiguous")
        if buffer.device.type != "cpu" and not self.takes_device_buffers:
            raise ValueError(f"extent {name!r}: this storage takes host buffers, not {buffer.device}")
        if offset % self.alignment or length % self.alignment or buffer.data_ptr() % self.alignment:
            raise ValueError(
                f"extent {name!r}: offset {offset}, length {length} and address {buffer.data_ptr():#x} must be "
                f"multiples of {self.alignment}"
            )
        if offset < 0 or length <= 0 or offset + length > size:
            raise ValueError(f"extent {name!r}: bytes {offset} to {offset + length} lie outside its {size}")

    @abstractmethod
    def extents(self) -> Mapping[str, int]:
        """Sizes in bytes of all extents, by name; those of an earlier process in the same namespace included."""

    @abstractmethod
    def capacity(self) -> Capacity:
        """Bytes in all and bytes free."""

    @abstractmethod
    def bytes_moved(self) -> tuple[int, int]:
        """Bytes (read, written) by finished transfers since opening."""

    @abstractmethod
    def close(self) -> None:
        """Wait for transfers in flight and let go of files; the extents stay. A second close does nothing."""

    @abstractmethod
    def describe(self) -> str:
        """One line for the run's log: which engine, where, and what was fallen back from and why."""

    @abstractmethod
    def _allocate(self, name: str, size_bytes: int) -> None: ...

    @abstractmethod
    def _read(self, name: str, offset: int, buffer: torch.Tensor) -> Transfer: ...

    @abstractmethod
    def _write(self, name: str, offset: int, buffer: torch.Tensor) -> Transfer: ...

    @abstractmethod
    def _sync(self) -> None: ...

    @abstractmethod
    def _free(self, name: str) -> None: ...

    def _register(self, buffers: list[torch.Tensor]) -> None:
        del buffers

    def _unregister(self) -> None:  # noqa: B027 - a default: a backend that ignores _register has nothing to let go of
        """Let go of what ``_register`` holds on to; to be implemented with it."""


StorageBackend: TypeAlias = Backend[Storage]
