"""The files of extents: opened past the page cache where that works, and preallocated."""

from __future__ import annotations

import errno
import os
import resource
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from attrs import frozen

from lohan_core.durable_files import sync_names
from lohan_core.errors import StorageError
from lohan_core.units import format_bytes

__all__ = [
    "DirectAccess",
    "ExtentFile",
    "create_file",
    "open_file",
    "probe_direct",
    "raise_file_limit",
    "storage_errors",
    "sync_folder",
]


@frozen
class ExtentFile:
    """One directory's file of an extent, open for reading and writing."""

    path: Path
    descriptor: int

    def close(self) -> None:
        """Close it."""
        os.close(self.descriptor)


@frozen(kw_only=True)
class DirectAccess:
    """Whether files in a folder can be opened with O_DIRECT, the alignment that asks for, and why not."""

    works: bool
    alignment: int = 1
    reason: str = ""


@contextmanager
def storage_errors(path: Path, doing: str) -> Iterator[None]:
    """Turn an OSError of a system call on ``path`` into a StorageError that says what could not be done."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        code = error.errno or errno.EIO
        remedy = "; raise the limit of open files (ulimit -Hn)" if code == errno.EMFILE else ""
        raise StorageError(code, f"{path}: cannot be {doing}: {os.strerror(code)}{remedy}", str(path)) from error


def probe_direct(folder: Path) -> DirectAccess:
    """Try O_DIRECT on a file in ``folder``, and ask for its alignment (statx; 4096 if the kernel does not tell)."""
    from lohan_storage_aio import _native  # the module is optional until a storage is opened

    with storage_errors(folder, "written"), tempfile.NamedTemporaryFile(dir=folder, prefix=".probe-") as probe:
        try:
            descriptor = os.open(probe.name, os.O_RDWR | os.O_CLOEXEC | os.O_DIRECT)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return DirectAccess(works=False, reason="its file system refuses O_DIRECT")
        try:
            alignment = int(_native.lib.lohan_aio_direct_alignment(descriptor))
        finally:
            os.close(descriptor)
    if alignment < 0:
        return DirectAccess(works=False, reason="its file system cannot do direct I/O on such files")
    return DirectAccess(works=True, alignment=alignment or 4096)


def open_file(path: Path, *, direct: bool) -> ExtentFile:
    """Open an extent's file. Raises StorageError."""
    flags = os.O_RDWR | os.O_CLOEXEC | (os.O_DIRECT if direct else 0)
    with storage_errors(path, "opened"):
        return ExtentFile(path, os.open(path, flags))


def raise_file_limit() -> None:
    """Raise the soft limit of open files (often 1024) to the hard one, as any program may.

    Every extent holds a descriptor for each directory, and they must not crowd out those of the rest of the program.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def create_file(path: Path, size_bytes: int) -> None:
    """Make a file of ``size_bytes`` whose blocks are all reserved, durably; leave nothing behind if that fails.

    Raises:
        StorageError: ENOSPC with the directory and the bytes that are missing, or another failure.
    """
    _check_space(path.parent, size_bytes)
    descriptor = -1
    try:
        with storage_errors(path, "created"):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        _reserve(path, descriptor, size_bytes)
    except BaseException:
        with suppress(FileNotFoundError):
            path.unlink()
        raise
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _reserve(path: Path, descriptor: int, size_bytes: int) -> None:
    try:
        if size_bytes:
            os.posix_fallocate(descriptor, 0, size_bytes)
        os.fsync(descriptor)
    except OSError as error:
        if error.errno == errno.ENOSPC:  # someone else was faster
            os.ftruncate(descriptor, 0)
            _check_space(path.parent, size_bytes)
        code = error.errno or errno.EIO
        message = f"{path}: {format_bytes(size_bytes)} cannot be reserved: {os.strerror(code)}"
        raise StorageError(code, message, str(path)) from error


def _check_space(folder: Path, size_bytes: int) -> None:
    """Refuse what cannot fit before reserving any of it: filling a drive to find out would disturb its other users."""
    with storage_errors(folder, "examined"):
        facts = os.statvfs(folder)
    missing = size_bytes - facts.f_bavail * facts.f_frsize
    if missing > 0:
        message = (
            f"{folder}: no space for {format_bytes(size_bytes)}: {missing} bytes ({format_bytes(missing)}) are missing"
        )
        raise StorageError(errno.ENOSPC, message, str(folder))


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable. Raises StorageError."""
    with storage_errors(folder, "synced"):
        sync_names(folder)
