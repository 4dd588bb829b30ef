"""Which bytes of an extent were written, and the checksum of each piece. Pure."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

from attrs import frozen

__all__ = ["Range", "RangeMap"]


@frozen
class Range:
    """Bytes ``start`` to ``stop`` as one write left them; ``digest`` is their checksum in hex, None where not asked."""

    start: int
    stop: int
    digest: str | None


class RangeMap:
    """Disjoint ranges in order. A new range displaces every range that it overlaps, since their checksums are void."""

    def __init__(self, ranges: Iterable[Range] = ()) -> None:
        self._ranges: list[Range] = []
        for item in ranges:
            self.put(item)

    def __iter__(self) -> Iterator[Range]:
        return iter(self._ranges)

    def put(self, new: Range) -> None:
        """Insert ``new`` in place of every range that it overlaps."""
        first, last = self._overlapping(new.start, new.stop)
        self._ranges[first:last] = [new]

    def overlaps(self, start: int, stop: int) -> bool:
        """Tell whether any byte of ``start:stop`` is in a range."""
        first, last = self._overlapping(start, stop)
        return first < last

    def first_gap(self, start: int, stop: int) -> tuple[int, int] | None:
        """Return the first stretch of ``start:stop`` that no range holds; None when all of it is held."""
        cursor = start
        first, last = self._overlapping(start, stop)
        for item in self._ranges[first:last]:
            if item.start > cursor:
                return cursor, item.start
            cursor = item.stop
        return (cursor, stop) if cursor < stop else None

    def _overlapping(self, start: int, stop: int) -> tuple[int, int]:
        first = bisect_right(self._ranges, start, key=lambda item: item.stop)
        last = bisect_left(self._ranges, stop, key=lambda item: item.start)
        return first, max(first, last)
