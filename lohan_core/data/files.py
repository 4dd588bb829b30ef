"""Reading data files: their samples one by one, and the digest of their bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import xxhash

from lohan_core.data.samples import Sample, parse_line
from lohan_core.errors import DataError

__all__ = ["check_files", "digest_files", "first_sample", "read_samples"]

_READ_BYTES = 1 << 20


def check_files(paths: Sequence[Path]) -> None:
    """Refuse what cannot be read, before anything is built from it.

    Raises:
        DataError: a file is missing, is no file, cannot be read, or is empty.
    """
    for path in paths:
        if not path.exists():
            raise DataError(f"{path}: there is no such file; set data.train and data.eval to files that exist")
        if not path.is_file():
            raise DataError(f"{path}: is not a file; want JSON lines")
        try:
            with path.open("rb") as file:
                empty = not file.read(1)
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from error
        if empty:
            raise DataError(f"{path}: is empty")


def digest_files(paths: Sequence[Path]) -> str:
    """Digest of the bytes of all files, in order; where they lie and what they are called does not matter."""
    digest = xxhash.xxh3_128()
    for path in paths:
        one = xxhash.xxh3_128()
        with path.open("rb") as file:
            while block := file.read(_READ_BYTES):
                one.update(block)
        digest.update(one.digest())
    return digest.hexdigest()


def first_sample(path: Path) -> Sample:
    """The first sample of a file, which tells of what kind all are.

    Raises:
        DataError: its line is malformed, or there is none.
    """
    return next(read_samples(path))


def read_samples(path: Path) -> Iterator[Sample]:
    """The samples of a file, in order. Blank lines are skipped; all samples are of the first one's kind.

    Raises:
        DataError: a line is malformed or of another kind than the first (file and line are named), or all are blank.
    """
    first: Sample | None = None
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            sample = parse_line(line, f"{path}:{number}")
            first = first or sample
            if type(sample) is not type(first):
                raise DataError(
                    f"{sample.where}: holds {sample.kind}, but {first.where} holds {first.kind}; keep each kind in a "
                    "file of its own"
                )
            yield sample
    if first is None:
        raise DataError(f"{path}: holds only blank lines")
