"""Reading back what was committed and comparing checksums, in buffers of fixed size."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping

import torch
import xxhash
from attrs import frozen

from lohan_core.errors import StoreError
from lohan_core.interfaces.storage import Storage, Transfer
from lohan_core.store.ranges import Range
from lohan_core.store.versions import ExtentRecord

__all__ = ["Progress", "digest", "stored_name", "verify"]

Progress = Callable[[int, int], None]
"""Called with (bytes verified, bytes in all)."""

BUFFER_BYTES = 8 << 20
BUFFERS = 4  # enough in flight that a drive array works while one buffer is hashed


@frozen
class _Piece:
    """At most ``BUFFER_BYTES`` of one range; ``last`` closes the range."""

    name: str
    version: int
    range: Range
    start: int
    stop: int
    last: bool


def stored_name(name: str, version: int) -> str:
    """Return what a version of an extent is called in the storage."""
    return f"{name}.{version}"


def digest(buffer: torch.Tensor) -> str:
    """Return the checksum of a host buffer's bytes. Other threads run meanwhile: xxhash lets go of the GIL."""
    return xxhash.xxh3_64_hexdigest(buffer.numpy().data)


def verify(storage: Storage, extents: Mapping[str, ExtentRecord], where: object, progress: Progress | None) -> None:
    """Compare every checksummed range with its bytes; ``where`` is the store's directory, for messages.

    Raises:
        StoreError: a range differs; the message names extent and bytes.
        StorageError: a read failed.
    """
    total_bytes = sum(item.stop - item.start for record in extents.values() for item in record.ranges)
    verified_bytes = 0
    hasher = xxhash.xxh3_64()
    for piece, buffer in _read_ahead(storage, _pieces(extents)):
        hasher.update(buffer.numpy().data)
        verified_bytes += piece.stop - piece.start
        if piece.last:
            if hasher.hexdigest() != piece.range.digest:
                raise StoreError(
                    f"{where}: extent {piece.name!r} is corrupted between bytes {piece.range.start} and "
                    f"{piece.range.stop} ({storage.describe()}); restore it from a copy or use another run.dir"
                )
            hasher.reset()
        if progress is not None:
            progress(verified_bytes, total_bytes)


def _pieces(extents: Mapping[str, ExtentRecord]) -> Iterator[_Piece]:
    for name, record in extents.items():
        for item in record.ranges:
            for start in range(item.start, item.stop, BUFFER_BYTES):
                stop = min(start + BUFFER_BYTES, item.stop)
                yield _Piece(name, record.version, item, start, stop, stop == item.stop)


def _read_ahead(storage: Storage, pieces: Iterator[_Piece]) -> Iterator[tuple[_Piece, torch.Tensor]]:
    """Yield pieces in order with their bytes, ``BUFFERS`` reads ahead; bytes are valid until the next is asked for."""
    block = torch.empty(BUFFERS * BUFFER_BYTES + storage.alignment, dtype=torch.uint8)
    shift = -block.data_ptr() % storage.alignment
    free = deque(block[shift + i * BUFFER_BYTES :][:BUFFER_BYTES] for i in range(BUFFERS))
    in_flight: deque[tuple[_Piece, torch.Tensor, Transfer]] = deque()

    for piece in pieces:
        if not free:
            yield from _arrive(in_flight, free)
        buffer = free.popleft()
        filled = buffer[: piece.stop - piece.start]
        in_flight.append((piece, buffer, storage.read(stored_name(piece.name, piece.version), piece.start, filled)))
    while in_flight:
        yield from _arrive(in_flight, free)


def _arrive(
    in_flight: deque[tuple[_Piece, torch.Tensor, Transfer]], free: deque[torch.Tensor]
) -> Iterator[tuple[_Piece, torch.Tensor]]:
    piece, buffer, transfer = in_flight.popleft()
    transfer.wait()
    yield piece, buffer[: piece.stop - piece.start]
    free.append(buffer)
