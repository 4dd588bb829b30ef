"""Registers the backend, saying which of its engines work here. Torch is imported when it is opened."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lohan_core.hookspecs import hookimpl
from lohan_core.interfaces.storage import Storage, StorageBackend
from lohan_storage_aio.config import AioConfig
from lohan_storage_aio.engine import probe, summary


def _open(config: AioConfig, **runtime: Any) -> Storage:
    from lohan_storage_aio.storage import open_storage

    return open_storage(config, **runtime)


@hookimpl
def lohan_storage() -> Iterable[StorageBackend]:
    """Offer `aio`."""
    yield StorageBackend(name="aio", summary=summary(), config=AioConfig, open=_open, probe=probe)
