"""A store's own directory: the lock, the manifest, and the namespace that its extents live under."""

from __future__ import annotations

import secrets
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from lohan_core.durable_files import make_directory_durably, replace_durably
from lohan_core.errors import StorageError, StoreError
from lohan_core.store.lock import DirectoryLock
from lohan_core.store.manifest import Manifest, decode, encode

__all__ = ["MANIFEST", "StoreDirectory"]

MANIFEST = "manifest.json"


class StoreDirectory:
    """The directory of one store, locked by this process until ``close``.

    It comes before the storage, because a storage is opened under the store's ``namespace``, and that is written down
    before the first extent is allocated: what a crash leaves half-created is found again and given back.

    Example:
        >>> directory = StoreDirectory.at(run_dir / "store")
        >>> storage = backend.open(config, namespace=directory.namespace, default_directory=directory.path / "extents")
        >>> if directory.holds_commit:
        ...     store = Store.open(directory, storage, identity)
        ... else:
        ...     store = Store.create(directory, storage, extents, identity)
    """

    def __init__(self, path: Path, lock: DirectoryLock, manifest: Manifest) -> None:
        """Made by :meth:`at` and :meth:`existing`."""
        self.path = path
        self.manifest = manifest
        self._lock = lock

    @staticmethod
    def is_at(path: Path) -> bool:
        """Whether there is a store at ``path``, or the beginning of one."""
        return (path / MANIFEST).is_file()

    @classmethod
    def at(cls, path: Path) -> StoreDirectory:
        """Lock the store at ``path``, or begin a new one there.

        Raises:
            StoreError: in use, its manifest is damaged, or there is none beside what a store has left.
            StorageError: the directory cannot be made or written.
        """
        make_directory_durably(path)
        return cls._locked(path)

    @classmethod
    def existing(cls, path: Path) -> StoreDirectory:
        """Lock the store at ``path``.

        Raises:
            StoreError: there is none or none was committed; or as for :meth:`at`.
        """
        if not cls.is_at(path):
            raise StoreError(f"{path}: no store here; give the directory of a run that has finished a step")
        directory = cls._locked(path)
        with ExitStack() as on_failure:
            on_failure.callback(directory.close)
            directory.require_kept()
            if not directory.holds_commit:
                raise StoreError(f"{path}: the store was never completed; start its run again")
            on_failure.pop_all()
        return directory

    @classmethod
    def _locked(cls, path: Path) -> StoreDirectory:
        lock = DirectoryLock(path)
        try:
            try:
                return cls(path, lock, decode((path / MANIFEST).read_bytes(), path / MANIFEST))
            except FileNotFoundError:
                _require_empty(path)
                directory = cls(path, lock, Manifest(store_id=secrets.token_hex(8)))
                directory.replace(directory.manifest)
                return directory
            except OSError as error:
                raise StorageError(error.errno or 0, f"{path / MANIFEST}: {error.strerror}", str(path)) from error
        except BaseException:
            lock.release()
            raise

    @property
    def namespace(self) -> str:
        """Under what name a storage keeps this store's extents apart from others'."""
        return self.manifest.store_id

    @property
    def holds_commit(self) -> bool:
        """Whether a store was created here and committed once; else it is new, or a crash left it half-created."""
        return self.manifest.commit is not None

    def require_kept(self) -> None:
        """Raise StoreError if this was the store of a run with ``run.durability: none`` of which nothing is left."""
        if not self.manifest.overwriting:
            return
        if self.manifest.commit is None:
            why = "kept states in host memory for which there was no space on the drives, so it cannot go on"
        else:
            step = self.manifest.commit.step
            why = f"was interrupted after step {step}, so its states are a mix of two steps"
        raise StoreError(f"{self.path}: a run with run.durability: none {why}; start again in another run.dir")

    def replace(self, manifest: Manifest) -> None:
        """Put a new manifest in place, atomically and durably. Raises StorageError."""
        replace_durably(self.path / MANIFEST, encode(manifest))
        self.manifest = manifest

    def close(self) -> None:
        """Let go of the lock. A second call does nothing."""
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _require_empty(path: Path) -> None:
    """Refuse to begin a store over the remains of one: the manifest comes before anything else, so it was lost."""
    remains = sorted({file.name for file in path.iterdir()} - {"lock", f"{MANIFEST}.new"})
    if remains:
        raise StoreError(
            f"{path / MANIFEST}: missing, and {', '.join(remains)} of a store there; restore it from a copy, or remove "
            f"{path} to start over"
        )
