"""The directories that extents are striped over: checked before anything is written, and how much they hold."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from lohan_core.durable_files import make_directory_durably
from lohan_core.errors import ConfigError, StorageError
from lohan_core.interfaces.storage import Capacity
from lohan_storage_aio.config import AioConfig

__all__ = ["capacity_of", "encode", "make_folders", "resolve_directories"]


def encode(name: str) -> str:
    """Write any name as one that is safe for a file: no separators, nothing special, nothing hidden."""
    return quote(name, safe="").replace(".", "%2E")


def resolve_directories(config: AioConfig, default_directory: Path) -> list[Path]:
    """List the directories; those that are configured must exist, the default one is made.

    Raises:
        ConfigError: one is missing, is no directory, cannot be written, or is named twice.
    """
    if not config.directories:
        _make(default_directory)
    directories = list(config.directories) or [default_directory]
    seen: dict[tuple[int, int], Path] = {}
    for directory in directories:
        try:
            _check(directory)
            status = directory.stat()
        except OSError as error:
            raise ConfigError(f"storage.directories: {directory} cannot be examined: {error.strerror}") from error
        twin = seen.setdefault((status.st_dev, status.st_ino), directory)
        if twin is not directory:
            raise ConfigError(f"storage.directories: {directory} and {twin} are the same directory; name each once")
    if config.weights and len(config.weights) != len(directories):
        raise ConfigError(
            f"storage.weights: {len(config.weights)} weights for {len(directories)} directories; give one for each"
        )
    return directories


def _check(directory: Path) -> None:
    if not directory.exists():
        raise ConfigError(f"storage.directories: {directory} does not exist; create it, or mount its drive")
    if not directory.is_dir():
        raise ConfigError(f"storage.directories: {directory} is not a directory")
    if not os.access(directory, os.W_OK | os.X_OK):
        raise ConfigError(f"storage.directories: {directory} cannot be written; change its owner or permissions")


def make_folders(directories: Sequence[Path], namespace: str) -> list[Path]:
    """Make the folder of a namespace in each directory. Raises ConfigError if one cannot be made."""
    if not namespace:
        raise ValueError("a namespace needs a name")
    folders = [directory / encode(namespace) for directory in directories]
    for folder in folders:
        _make(folder)
    return folders


def _make(directory: Path) -> None:
    try:
        make_directory_durably(directory)
    except StorageError as error:
        raise ConfigError(f"storage.directories: {error}") from error


def capacity_of(directories: Sequence[Path], shares: Sequence[int]) -> Capacity:
    """Bytes that extents could take: the file system that fills up first, at its directories' share, is the limit.

    A file system that holds several directories counts once, with all of their shares.
    """
    share_of: dict[int, int] = {}
    sizes: dict[int, tuple[int, int]] = {}
    for directory, share in zip(directories, shares, strict=True):
        device = directory.stat().st_dev
        share_of[device] = share_of.get(device, 0) + share
        facts = os.statvfs(directory)
        sizes[device] = (facts.f_blocks * facts.f_frsize, facts.f_bavail * facts.f_frsize)
    whole = sum(shares)
    return Capacity(
        total_bytes=min(total * whole // share_of[device] for device, (total, _) in sizes.items()),
        free_bytes=min(free * whole // share_of[device] for device, (_, free) in sizes.items()),
    )
