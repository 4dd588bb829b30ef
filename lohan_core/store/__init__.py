"""The store: named extents with versions on any storage; a crash at any instant leaves the last commit intact."""

from lohan_core.store.directory import StoreDirectory
from lohan_core.store.store import Store

__all__ = ["Store", "StoreDirectory"]
