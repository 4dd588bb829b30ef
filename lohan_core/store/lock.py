"""One process at a time: a lock that the kernel takes back when its holder dies, however it dies."""

from __future__ import annotations

import fcntl
import os
import socket
from datetime import datetime
from pathlib import Path

from lohan_core.durable_files import reason
from lohan_core.errors import StorageError, StoreError

__all__ = ["DirectoryLock"]


class DirectoryLock:
    """``flock`` on the file ``lock`` in a directory; the file says who holds it.

    The file is never removed: whoever waits for the lock of a removed file would share a directory with whoever locks
    the new one.
    """

    def __init__(self, directory: Path) -> None:
        """Take the lock.

        Raises:
            StoreError: another process holds it.
            StorageError: the file cannot be made or locked.
        """
        path = directory / "lock"
        try:
            self._descriptor: int | None = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StorageError(error.errno or 0, f"{path}: cannot be opened: {error.strerror}", str(path)) from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            since = datetime.now().astimezone().isoformat(timespec="seconds")
            os.truncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"process {os.getpid()} on {socket.gethostname()} since {since}\n".encode(), 0)
        except BlockingIOError:
            holder = os.pread(self._descriptor, 1024, 0).decode(errors="replace").strip() or "another process"
            self.release()
            raise StoreError(f"{directory}: in use by {holder}; wait for it, stop it, or use another run.dir") from None
        except OSError as error:
            self.release()
            raise StorageError(error.errno or 0, f"{path}: cannot be locked: {reason(error)}", str(path)) from error

    def release(self) -> None:
        """Let others take the lock. A second call does nothing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
