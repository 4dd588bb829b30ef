"""Tokenised files on disk: built once, mapped into memory ever after.

A cache is a folder named by the digest of all that it was made from: the bytes of the files, the tokenizer, and the
version of the encoding. So it is never stale: other data have another name. It holds two flat little-endian int32
files, ``input_ids`` and ``labels``, all documents end to end, and NumPy arrays that describe the documents.
"""

from __future__ import annotations

import fcntl
import shutil
from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from lohan_core.data.encode import Document
from lohan_core.data.samples import NO_LOSS
from lohan_core.durable_files import sync_tree
from lohan_core.errors import DataError

__all__ = ["Tokens", "open_or_build"]

_TOKEN = np.dtype("<i4")
_DESCRIBED = {"offsets": np.int64, "first_learned": np.int64, "learned": np.int64, "splittable": np.bool_}
_PARTIAL = ".partial"


@frozen(eq=False)
class Tokens:
    """All documents of a data set, end to end. Document ``d`` is tokens ``offsets[d]`` to ``offsets[d + 1]``."""

    input_ids: NDArray[np.int32]
    labels: NDArray[np.int32]
    offsets: NDArray[np.int64]
    first_learned: NDArray[np.int64]
    """Per document: position of the first learned token after position 0, or its length if there is none."""
    learned: NDArray[np.int64]
    """Per document: how many tokens after position 0 are learned."""
    splittable: NDArray[np.bool_]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each document."""
        return np.diff(self.offsets)


def open_or_build(folder: Path, digest: str, documents: Iterable[Document]) -> Tokens:
    """Map the cache ``folder/digest``; build it from ``documents`` first if it is not there.

    A cache appears whole or not at all: it is written under another name and renamed. Two processes that need one
    at a time wait for each other.

    Raises:
        DataError: ``folder`` cannot be written, the disk is full or failed, or the cache is damaged.
    """
    target = folder / digest
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(folder):
            if not target.is_dir():
                _build(target, documents)
    except OSError as error:
        raise DataError(f"{error.filename or target}: {error.strerror}; tokenised data are kept in {folder}") from error
    return _map(target)


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    # The kernel lets go of it when the holder dies.
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(target: Path, documents: Iterable[Document]) -> None:
    for abandoned in target.parent.glob(f"*{_PARTIAL}"):  # by a process that was killed: we hold the lock
        shutil.rmtree(abandoned)
    partial = target.with_name(target.name + _PARTIAL)
    partial.mkdir()
    try:
        _write(partial, documents)
        sync_tree(partial)  # else a power cut after the rename could leave a cache with holes under its final name
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial)
        raise


def _write(partial: Path, documents: Iterable[Document]) -> None:
    offsets, first_learned, learned, splittable = array("q", [0]), array("q"), array("q"), array("B")
    with (partial / "input_ids.i32").open("wb") as input_ids, (partial / "labels.i32").open("wb") as labels:
        for document in documents:
            input_ids.write(document.input_ids.astype(_TOKEN).tobytes())
            labels.write(document.labels.astype(_TOKEN).tobytes())
            length = len(document.input_ids)
            positions = np.flatnonzero(document.labels[1:] != NO_LOSS) + 1
            offsets.append(offsets[-1] + length)
            first_learned.append(int(positions[0]) if len(positions) else length)
            learned.append(len(positions))
            splittable.append(document.splittable)
    described = {"offsets": offsets, "first_learned": first_learned, "learned": learned, "splittable": splittable}
    for name, dtype in _DESCRIBED.items():
        np.save(partial / f"{name}.npy", np.array(described[name], dtype=dtype), allow_pickle=False)


def _map(target: Path) -> Tokens:
    try:
        arrays = {name: np.load(target / f"{name}.npy", allow_pickle=False) for name in _DESCRIBED}
        total = int(arrays["offsets"][-1])
        return Tokens(
            input_ids=_map_tokens(target / "input_ids.i32", total),
            labels=_map_tokens(target / "labels.i32", total),
            **arrays,
        )
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{target}: is damaged ({error}); delete this folder, it will be made again") from error


def _map_tokens(path: Path, total: int) -> NDArray[np.int32]:
    size, wanted = path.stat().st_size, total * _TOKEN.itemsize
    if size != wanted:
        raise ValueError(f"{path.name} has {size} bytes, not {wanted}")
    if total == 0:  # nothing cannot be mapped
        return np.empty(0, dtype=_TOKEN)
    return np.memmap(path, dtype=_TOKEN, mode="r", shape=(total,))
