"""Files and directories that a crash cannot take back: a small file is replaced whole or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from errno import EINVAL, ENOSPC, ENOTDIR
from pathlib import Path

from lohan_core.errors import StorageError

__all__ = ["make_directory_durably", "reason", "replace_durably", "sync_names", "sync_tree"]


def replace_durably(path: Path, data: bytes) -> None:
    """Put ``data`` in the place of ``path``: write beside it, sync, rename, sync the directory.

    Raises:
        StorageError: a call failed. Which of the two contents is durable is then unknown; nothing is left beside.
    """
    if path.exists() and not path.is_file():  # a device, say, which a file must not take the place of
        raise StorageError(EINVAL, f"{path}: cannot be written: it is not a regular file", str(path))
    beside = path.with_name(path.name + ".new")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        sync_names(path.parent)
    except OSError as error:
        with suppress(OSError):
            beside.unlink()
        raise StorageError(error.errno or 0, f"{path}: cannot be written: {reason(error)}", str(path)) from error


def reason(error: OSError) -> str:
    """Say why a call failed and, where a drive is full, what to do."""
    remedy = "; free some space, then give the same command again" if error.errno == ENOSPC else ""
    return f"{error.strerror}{remedy}"


def make_directory_durably(path: Path) -> None:
    """Make ``path`` and the parents that it lacks. Raises StorageError."""
    if path.is_dir():
        return
    make_directory_durably(path.parent)
    try:
        path.mkdir(exist_ok=True)
        sync_names(path.parent)
    except FileExistsError as error:
        raise StorageError(ENOTDIR, f"{path}: cannot be made: Not a directory", str(path)) from error
    except OSError as error:
        raise StorageError(error.errno or 0, f"{path}: cannot be made: {reason(error)}", str(path)) from error


def sync_names(directory: Path) -> None:
    """Make the names in ``directory`` durable: what was created, renamed or removed there."""
    _sync(directory, os.O_RDONLY | os.O_DIRECTORY)


def sync_tree(directory: Path) -> None:
    """Make all that is below ``directory`` durable: what files hold, and names."""
    for path in directory.rglob("*"):
        _sync(path, os.O_RDONLY)
    sync_names(directory)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
