"""One public read or write in flight."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lohan_core.errors import StorageError
from lohan_storage_aio.engine import Request
from lohan_storage_aio.files import ExtentFile

if TYPE_CHECKING:
    import torch

__all__ = ["AioTransfer"]


class AioTransfer:
    """Keeps the buffer, and whose files it goes to or comes from, until the kernel has let go of them."""

    __slots__ = ("_buffer", "_request", "files", "writes")

    def __init__(self, request: Request, buffer: torch.Tensor, files: Sequence[ExtentFile], *, writes: bool) -> None:
        """Follow ``request``, which moves ``buffer``."""
        self._request = request
        self._buffer: torch.Tensor | None = buffer
        self.files = files
        self.writes = writes

    def wait(self) -> None:
        """Block until the transfer is complete. Raises StorageError with file, offset and errno if it failed."""
        if failure := self.settle():
            raise self._explain(*failure)

    def settle(self) -> tuple[int, int, int] | None:
        """Wait without raising; (errno, descriptor, file offset) of a failure, or None."""
        failure = self._request.wait()
        self._buffer = None
        return failure

    def done(self) -> bool:
        """Tell whether :meth:`wait` would return or raise at once."""
        return self._request.done()

    def _explain(self, code: int, descriptor: int, offset: int) -> StorageError:
        path = next(file.path for file in self.files if file.descriptor == descriptor)
        if code == errno.ENODATA:
            message = f"{path}: the file ends before the extent does, at or after byte {offset}: it was truncated"
        else:
            doing = "write" if self.writes else "read"
            message = (
                f"{path}: {doing} at byte {offset} failed: {os.strerror(code)} ({errno.errorcode.get(code, code)})"
            )
        return StorageError(code, message, str(path), offset)
