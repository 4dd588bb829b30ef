"""The store: extents with versions on any storage, made true by one atomic change of a manifest.

[Note: why a crash loses nothing] Writes never touch committed bytes (:mod:`lohan_core.store.versions`). ``commit``
waits for them, syncs the storage, and only then renames a manifest that names them into place. A crash before the
rename finds the old manifest and its bytes; after it, the new ones. If the commit itself fails it is unknown which of
the two is on the drive, so the store takes no write after that: it might hit bytes that the drive's manifest names.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from threading import Lock

import torch
from attrs import evolve

from lohan_core.errors import StorageError, StoreError
from lohan_core.interfaces.storage import Storage, Transfer
from lohan_core.store.directory import StoreDirectory
from lohan_core.store.identity import check_identity
from lohan_core.store.manifest import JSON, Commit, Manifest
from lohan_core.store.ranges import Range
from lohan_core.store.space import require_space, reserve_space
from lohan_core.store.verify import Progress, digest, stored_name, verify
from lohan_core.store.versions import Versions

__all__ = ["Store"]


class Store:
    """Named extents that survive a crash as the last ``commit`` left them. Made by :meth:`create` or :meth:`open`.

    A store owns its directory's lock and its storage from then on, and lets go of both in ``close``. ``read`` and
    ``write`` may be called from several threads at once; ``finish_step``, ``commit`` and ``close`` not beside them.
    """

    def __init__(self, directory: StoreDirectory, storage: Storage, manifest: Manifest, versions: Versions) -> None:
        """Made by :meth:`create` and :meth:`open`."""
        self._directory = directory
        self._storage = storage
        self._manifest = manifest
        self._versions = versions
        self._lock = Lock()
        self._in_flight: deque[Transfer] = deque()
        self._failure: BaseException | None = None

    @classmethod
    def create(
        cls,
        directory: StoreDirectory,
        storage: Storage,
        extents: Mapping[str, int],
        identity: Mapping[str, str],
        *,
        versions: int = 2,
        checksums: bool = True,
    ) -> Store:
        """Reserve space for every extent. The store exists once it has been filled and committed.

        What an earlier creation left behind when it was cut short is given back first, and logged as a warning.

        Args:
            directory: locked, without a committed store.
            storage: opened under ``directory.namespace``.
            extents: sizes in bytes by name, multiples of the storage's alignment.
            identity: what a store must agree on to be used again: the model, the layout, settings that shape states.
            versions: 2: a crash loses what was written since the last commit. 1: half the space, but a crash between
                the first write after a commit and the next commit loses the store. 3: as 2, and what was written can
                be taken back.
            checksums: whether ``write`` computes them and ``open`` verifies them.

        Raises:
            StoreError: too little space; nothing was allocated.
            StorageError: an allocation failed; what had been allocated was given back.
            ValueError: the directory holds a store, or a size is not a multiple of the alignment.
        """
        if directory.holds_commit:
            raise ValueError(f"{directory.path} holds a store; open it")
        state = Versions(extents, versions)
        reserve_space(storage, extents, versions, directory.path)
        manifest = evolve(directory.manifest, versions=versions, checksums=checksums, identity=dict(identity))
        return cls(directory, storage, manifest, state)

    @classmethod
    def open(
        cls,
        directory: StoreDirectory,
        storage: Storage,
        identity: Mapping[str, str],
        *,
        progress: Progress | None = None,
    ) -> Store:
        """Take up what was committed last, after verifying every checksum.

        Raises:
            StoreError: of another identity, interrupted while it overwrote its only version, an extent is missing or
                has another size, or a checksum differs.
            StorageError: a read failed.
            ValueError: the directory holds no committed store.
        """
        manifest = directory.manifest
        if manifest.commit is None:
            raise ValueError(f"{directory.path} holds no committed store; create it")
        check_identity(directory.path, manifest.identity, identity)
        directory.require_kept()
        require_space(storage, manifest.commit.extents, manifest.versions, directory.path)
        if manifest.checksums:
            verify(storage, manifest.commit.extents, directory.path, progress)
        return cls(directory, storage, manifest, Versions.restore(manifest.commit.extents, manifest.versions))

    @property
    def versions(self) -> int:
        """Of each extent."""
        return self._versions.count

    @property
    def committed_step(self) -> int:
        """The step given to the last commit. Raises ValueError before the first."""
        return self._commit.step

    @property
    def overwriting(self) -> bool:
        """Whether states of the last commit were overwritten since: nobody could go on from it, were this the end."""
        return self._manifest.overwriting

    @property
    def progress(self) -> Mapping[str, JSON]:
        """The progress given to the last commit. Raises ValueError before the first."""
        return self._commit.progress

    @property
    def extents(self) -> Mapping[str, int]:
        """Sizes in bytes by name, of one version."""
        return self._versions.sizes_bytes

    @property
    def _commit(self) -> Commit:
        if self._manifest.commit is None:
            raise ValueError("the store has not been committed yet")
        return self._manifest.commit

    def read(self, name: str, offset: int, buffer: torch.Tensor) -> Transfer:
        """Start to fill ``buffer`` with the newest bytes: those written in this step if there are any, else current.

        A range that is being written may be read only after the ``wait`` of its write.

        Raises:
            KeyError: no such extent.
            ValueError: never written, written only in part in this step, or as for :meth:`Storage.read`.
        """
        stop = offset + buffer.numel() * buffer.element_size()
        with self._lock:
            version = self._versions.version_to_read(name, offset, stop)
        return self._storage.read(stored_name(name, version), offset, buffer)

    def write(self, name: str, offset: int, buffer: torch.Tensor) -> Transfer:
        """Start to write ``buffer`` beside the committed bytes, or over them where there is one version.

        The checksum is computed here, in the calling thread.

        Raises:
            KeyError: no such extent.
            ValueError: as for :meth:`Storage.write`, or a device buffer where checksums are asked.
            StorageError: this write could not start, or an earlier one failed.
            StoreError: a write or commit has failed before.
        """
        if self._manifest.checksums and buffer.device.type != "cpu":
            raise ValueError("checksums are computed from host buffers; create the store with checksums=False")
        stop = offset + buffer.numel() * buffer.element_size()
        written = Range(offset, stop, digest(buffer) if self._manifest.checksums else None)
        with self._lock:
            self._refuse_after_failure()
            self._raise_failed_writes(everything=False)
            target = stored_name(name, self._versions.version_to_write(name))
            if self._versions.overwrites_committed(name) and not self._manifest.overwriting:
                self._replace_manifest(evolve(self._manifest, overwriting=True))
        transfer = self._storage.write(target, offset, buffer)
        with self._lock:
            self._in_flight.append(transfer)
            self._versions.wrote(name, written)
        return transfer

    def finish_step(self) -> None:
        """Wait for the writes in flight, and make what was written current.

        Raises:
            ValueError: an extent was written only in part; nothing became current.
            StorageError: a write failed; nothing became current.
            StoreError: a write or commit has failed before.
        """
        with self._lock:
            self._finish_step()

    def take_back(self, names: Iterable[str]) -> None:
        """Forget what was written to these extents since the last ``finish_step``; the writes have been waited for.

        Raises:
            ValueError: it was written over what was current: the store has fewer than three versions.
        """
        with self._lock:
            self._versions.take_back(names)

    def commit(self, step: int, progress: Mapping[str, JSON]) -> None:
        """Finish the step and make everything written so far what the next ``open`` finds.

        Args:
            step: which step the states are of.
            progress: what else is needed to go on (position in the data, RNG states): JSON, without NaN.

        Raises:
            ValueError: an extent has never been written, or was written only in part; or progress is not JSON.
            StorageError: a write, the sync or the manifest failed; the store takes no more writes.
            StoreError: a write or commit has failed before.
        """
        with self._lock:
            self._finish_step()
            unwritten = self._versions.unwritten()
            if unwritten:
                raise ValueError(f"extents were never written: {', '.join(unwritten)}")
            commit = Commit(step=step, progress=dict(progress), extents=self._versions.records())
            try:
                self._storage.sync()
                self._replace_manifest(evolve(self._manifest, commit=commit, overwriting=False))
                self._versions.commit()
            except ValueError:
                raise  # progress was not JSON: what was true remains so
            except BaseException as error:  # an interrupt too: what is true now is on the drives, and not known here
                self._failure = error
                raise

    def never_commit(self) -> None:
        """Write down that no later process can go on from here: not all states will be in this store.

        Raises:
            StorageError: the manifest cannot be written.
            ValueError: something was committed.
        """
        if self._manifest.commit is not None:
            raise ValueError("the store holds a commit; it can be kept")
        with self._lock:
            if not self._manifest.overwriting:
                self._replace_manifest(evolve(self._manifest, overwriting=True))

    def close(self) -> None:
        """Close the storage and let go of the directory; what was not committed is lost. A second call does nothing."""
        try:
            self._storage.close()
        finally:
            self._directory.close()

    def _finish_step(self) -> None:
        self._refuse_after_failure()
        self._raise_failed_writes(everything=True)
        self._versions.finish_step()

    def _refuse_after_failure(self) -> None:
        if self._failure is not None:
            raise StoreError(f"{self._directory.path}: takes no writes after a failure: {self._failure}")

    def _raise_failed_writes(self, *, everything: bool) -> None:
        """Look at the writes that are done, or wait for all: nobody may count a failed write as written."""
        while self._in_flight and (everything or self._in_flight[0].done()):
            transfer = self._in_flight.popleft()
            try:
                transfer.wait()
            except StorageError as error:
                self._failure = error
                raise

    def _replace_manifest(self, manifest: Manifest) -> None:
        try:
            self._directory.replace(manifest)
        except ValueError:
            raise  # progress was not JSON: nothing has been touched
        except BaseException as error:
            self._failure = error
            raise
        self._manifest = manifest
