"""What a namespace holds: extents by name with their sizes, and the geometry in which they were written.

The index is one small JSON file in the first directory's folder, replaced atomically. The other folders need none: the
name of every extent's file says which directory it belongs to, so that swapped directories are noticed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from attrs import frozen

from lohan_core.durable_files import replace_durably
from lohan_core.errors import StoreError
from lohan_storage_aio.directories import encode
from lohan_storage_aio.files import storage_errors
from lohan_storage_aio.striping import Striping

__all__ = ["Index", "check_files", "file_paths", "load_index", "remove_folders", "remove_leftovers", "save_index"]

FORMAT = 1
INDEX_NAME = "index.json"
SUFFIX = ".extent"
_ADVICE = "check that storage.directories names the same drives in the same order as before, all mounted"


@frozen(kw_only=True)
class Index:
    """Geometry, and sizes in bytes of all extents."""

    stripe_bytes: int
    shares: tuple[int, ...]
    extents: dict[str, int]


def file_paths(folders: Sequence[Path], name: str) -> list[Path]:
    """Name the files of an extent, one in each folder."""
    count = len(folders)
    return [folder / f"{encode(name)}.{position}of{count}{SUFFIX}" for position, folder in enumerate(folders, start=1)]


def save_index(folder: Path, index: Index) -> None:
    """Replace the index durably. Raises StorageError."""
    record = {
        "format": FORMAT,
        "stripe_bytes": index.stripe_bytes,
        "shares": index.shares,
        "extents": index.extents,
    }
    replace_durably(folder / INDEX_NAME, json.dumps(record, indent=1).encode())


def load_index(folders: Sequence[Path], striping: Striping) -> Index:
    """Read the index, which must agree with the present geometry; make an empty one where no extents are.

    Raises:
        StoreError: the index is damaged or missing, or was written in another geometry.
    """
    path = folders[0] / INDEX_NAME
    for other in folders[1:]:
        if (other / INDEX_NAME).exists() and _parse(other / INDEX_NAME).extents:
            raise StoreError(f"{other} is the first directory of a namespace, but not named first; {_ADVICE}")
    index = _parse(path) if path.exists() else None
    if index and index.extents:
        _check_geometry(path, index, striping)
        return index
    for folder, pattern in zip(folders, _own_patterns(folders), strict=True):
        leftovers = set(folder.glob(pattern)) if index else set()
        if set(folder.glob(f"*{SUFFIX}")) - leftovers:
            raise StoreError(f"{folder} holds extents that {path} does not name; {_ADVICE}")
    empty = Index(stripe_bytes=striping.stripe_bytes, shares=striping.shares, extents={})
    save_index(folders[0], empty)
    return empty


def _own_patterns(folders: Sequence[Path]) -> list[str]:
    """Match, in each folder, the files that belong there by their place among the directories."""
    return [f"*.{position}of{len(folders)}{SUFFIX}" for position in range(1, len(folders) + 1)]


def _check_geometry(path: Path, index: Index, striping: Striping) -> None:
    if len(index.shares) != len(striping.shares):
        raise StoreError(
            f"{path}: written over {len(index.shares)} directories, storage.directories names {len(striping.shares)}; "
            f"{_ADVICE}"
        )
    if index.stripe_bytes != striping.stripe_bytes:
        raise StoreError(
            f"{path}: written with storage.stripe_bytes {index.stripe_bytes}, not {striping.stripe_bytes}; "
            "set it back, or start in another run directory"
        )
    if index.shares != striping.shares:
        raise StoreError(
            f"{path}: written with shares {list(index.shares)}, but storage.weights now gives {list(striping.shares)}; "
            "set it back, or start in another run directory"
        )


def _parse(path: Path) -> Index:
    try:
        record: Any = json.loads(path.read_bytes())
        if record["format"] != FORMAT:
            raise StoreError(f"{path}: format {record['format']}, this version of LoHan reads {FORMAT}")
        return Index(
            stripe_bytes=int(record["stripe_bytes"]),
            shares=tuple(int(share) for share in record["shares"]),
            extents={str(name): int(size) for name, size in record["extents"].items()},
        )
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{path}: damaged ({error!r}); restore it from a backup, or start anew") from error


def check_files(folders: Sequence[Path], striping: Striping, index: Index) -> None:
    """Compare the files with the index. Raises StoreError naming the first that is missing or of another size."""
    for name, size_bytes in index.extents.items():
        for path, expected in zip(file_paths(folders, name), striping.file_sizes(size_bytes), strict=True):
            with storage_errors(path, "examined"):
                if not path.exists():
                    raise StoreError(f"{path}: missing; {_ADVICE}")
                found = path.stat().st_size
            if found != expected:
                raise StoreError(
                    f"{path}: {found} bytes, {expected} expected: it was truncated or changed; restore it from a copy "
                    "or use another run.dir"
                )


def remove_leftovers(folders: Sequence[Path], index: Index) -> None:
    """Remove files that no extent owns: an allocation or a free was cut short by a crash between its two halves."""
    owned = {path for name in index.extents for path in file_paths(folders, name)}
    for folder, pattern in zip(folders, _own_patterns(folders), strict=True):
        for path in folder.glob(pattern):
            if path not in owned:
                with storage_errors(path, "removed"):
                    path.unlink()


def remove_folders(folders: Sequence[Path]) -> None:
    """Remove an empty namespace's index and folders. What cannot be removed stays: it is found again, or made anew."""
    with suppress(OSError):
        (folders[0] / INDEX_NAME).unlink(missing_ok=True)
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()
