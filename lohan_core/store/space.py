"""Space for every version of every extent on a storage: reserved by a new store, found again by an old one."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from lohan_core.errors import StorageError, StoreError
from lohan_core.interfaces.storage import Storage
from lohan_core.store.verify import stored_name
from lohan_core.store.versions import ExtentRecord
from lohan_core.units import format_bytes

__all__ = ["require_space", "reserve_space"]

logger = logging.getLogger(__name__)


def reserve_space(storage: Storage, extents: Mapping[str, int], versions: int, where: object) -> None:
    """Allocate ``versions`` of extents with these sizes; ``where`` is the store's directory, for messages.

    What an earlier creation left behind when it was cut short is given back first, and logged as a warning.

    Raises:
        StoreError: too little space; nothing was allocated.
        StorageError: an allocation failed; what had been allocated was given back.
        ValueError: a size is not a multiple of the storage's alignment.
    """
    for name, size_bytes in extents.items():
        if size_bytes <= 0 or size_bytes % storage.alignment:
            raise ValueError(f"extent {name!r}: {size_bytes} bytes are not a multiple of {storage.alignment}")
    _give_back_remains(storage, where)
    needed_bytes = versions * sum(extents.values())
    free_bytes = storage.capacity().free_bytes
    if needed_bytes > free_bytes:
        raise StoreError(
            f"{where}: the store needs {format_bytes(needed_bytes)} and {format_bytes(free_bytes)} are "
            f"free ({storage.describe()}); free some, or give storage.directories on larger drives"
        )
    try:
        for name, size_bytes in extents.items():
            for version in range(versions):
                storage.allocate(stored_name(name, version), size_bytes)
    except StorageError:
        for name in list(storage.extents()):
            storage.free(name)
        raise


def require_space(storage: Storage, extents: Mapping[str, ExtentRecord], versions: int, where: object) -> None:
    """Raise StoreError if the storage lacks a version of an extent, or has it in another size."""
    stored = storage.extents()
    for name, record in extents.items():
        for version in range(versions):
            size_bytes = stored.get(stored_name(name, version))
            if size_bytes != record.size_bytes:
                found = "is missing" if size_bytes is None else f"has {size_bytes} bytes, not {record.size_bytes}"
                raise StoreError(
                    f"{where}: extent {stored_name(name, version)!r} {found} ({storage.describe()}); give "
                    f"the storage settings that the run began with, or use another run.dir"
                )


def _give_back_remains(storage: Storage, where: object) -> None:
    remains = list(storage.extents())
    for name in remains:
        storage.free(name)
    if remains:
        logger.warning(
            "%s: an earlier start was cut short before its first commit; starting over (%d extents given back)",
            where,
            len(remains),
        )
