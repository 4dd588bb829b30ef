"""The extents of a namespace: their open files and their index, changed in an order that a crash cannot harm."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType

from attrs import evolve

from lohan_storage_aio import files, index
from lohan_storage_aio.engine import Engine
from lohan_storage_aio.files import ExtentFile
from lohan_storage_aio.index import Index
from lohan_storage_aio.striping import Striping

__all__ = ["Extents"]


class Extents:
    """One file per extent in each folder, registered with the engine. For one thread at a time."""

    def __init__(
        self,
        found: Index,
        folders: Sequence[Path],
        striping: Striping,
        engine: Engine,
        *,
        direct: Sequence[bool],
        note: Callable[[str], None],
    ) -> None:
        """Open the files of all extents that were found.

        Args:
            found: the folders' index.
            folders: where the files are.
            striping: how an extent's bytes are spread over them.
            engine: what moves the bytes.
            direct: which folders' files are opened past the page cache.
            note: is told what was fallen back from.

        Raises:
            StorageError: a file cannot be opened; none stays open.
        """
        self._index = found
        self._folders = list(folders)
        self._striping = striping
        self._engine = engine
        self._direct = list(direct)
        self._note = note
        self._files: dict[str, tuple[ExtentFile, ...]] = {}
        self._sizes: dict[str, int] = {}
        try:
            for name, size_bytes in found.extents.items():
                self._files[name] = self._open(name)
                self._sizes[name] = size_bytes
        except BaseException:
            for opened in self._files.values():
                self._close(opened)
            raise

    @property
    def sizes(self) -> Mapping[str, int]:
        """Sizes in bytes by name: a view that follows what is created and forgotten."""
        return MappingProxyType(self._sizes)

    def files(self, name: str) -> tuple[ExtentFile, ...]:
        """Files of an extent, one in each folder. Raises KeyError."""
        return self._files[name]

    def create(self, name: str, size_bytes: int) -> None:
        """Make an extent's files and name it in the index. Raises StorageError."""
        with ExitStack() as undo:
            for path, file_bytes in zip(
                index.file_paths(self._folders, name), self._striping.file_sizes(size_bytes), strict=True
            ):
                files.create_file(path, file_bytes)
                undo.callback(path.unlink)
            for folder in self._folders:
                files.sync_folder(folder)
            opened = self._open(name)
            undo.pop_all()
        try:
            # Last: a crash before this leaves leftovers, not an extent without its files. For the same reason the files
            # stay if this fails, because the new index may then be in place or not.
            self._save_index({**self._index.extents, name: size_bytes})
        except BaseException:
            self._close(opened)
            raise
        self._files[name] = opened
        self._sizes[name] = size_bytes

    def forget(self, name: str) -> tuple[ExtentFile, ...]:
        """Take an extent out of the index; its files, still open, are to be discarded. Raises StorageError."""
        # First: a crash after this leaves leftovers, not an extent without its files.
        self._save_index({key: size for key, size in self._index.extents.items() if key != name})
        del self._sizes[name]
        return self._files.pop(name)

    def discard(self, forgotten: Sequence[ExtentFile]) -> None:
        """Close and remove the files of a forgotten extent. Raises StorageError."""
        self._close(forgotten)
        for file in forgotten:
            with files.storage_errors(file.path, "removed"):
                file.path.unlink()

    def close(self) -> None:
        """Close all files, once the engine is closed. A namespace without extents goes."""
        for opened in self._files.values():
            for file in opened:
                file.close()
        if not self._index.extents:
            index.remove_folders(self._folders)

    def _open(self, name: str) -> tuple[ExtentFile, ...]:
        opened: list[ExtentFile] = []
        try:
            for path, direct in zip(index.file_paths(self._folders, name), self._direct, strict=True):
                opened.append(files.open_file(path, direct=direct))
        except BaseException:
            for file in opened:
                file.close()
            raise
        for file in opened:
            error = self._engine.add_file(file.descriptor)
            if error not in {0, errno.EOPNOTSUPP}:
                self._note(f"not all files registered with the kernel: {os.strerror(error)}")
        return tuple(opened)

    def _close(self, opened: Sequence[ExtentFile]) -> None:
        for file in opened:
            self._engine.remove_file(file.descriptor)
            file.close()

    def _save_index(self, extents: dict[str, int]) -> None:
        changed = evolve(self._index, extents=extents)
        index.save_index(self._folders[0], changed)
        self._index = changed
