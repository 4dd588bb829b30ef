"""Which version of each extent is read, written and committed. Pure: no I/O, no threads.

An extent has one to three versions. What ``commit`` made true stays untouched where there are several: writes go to
another one, which becomes *current* (what this process reads) at ``finish_step`` and *committed* (what the next process
finds) at ``commit``. Of two versions the current one is overwritten in place between two commits, since a crash gives
it up anyway. Of three it is not: until ``finish_step`` what was written can be taken back.

[Note: complete extents] A version must not become current with bytes of an older step in it, nor be committed with a
stretch that no checksum covers. One rule does both: at ``finish_step`` what was written to an extent since the last
one, if anything was, must cover it completely. Switching versions starts from no ranges; overwriting in place displaces
those hit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from attrs import define, field, frozen

from lohan_core.store.ranges import Range, RangeMap

__all__ = ["ExtentRecord", "Versions"]


@frozen(kw_only=True)
class ExtentRecord:
    """An extent as committed: its size, the version that holds it, and what was written there."""

    size_bytes: int
    version: int
    ranges: tuple[Range, ...]


@define
class _Extent:
    size_bytes: int
    contents: list[RangeMap]
    committed: int | None = None
    current: int | None = None
    written: int | None = None  # the version written since the last finish_step
    fresh: RangeMap = field(factory=RangeMap)  # and what of it


class Versions:
    """The versions of every extent of a store, and the rules by which they take turns."""

    def __init__(self, sizes_bytes: Mapping[str, int], versions: int) -> None:
        if versions not in (1, 2, 3):
            raise ValueError(f"an extent has 1, 2 or 3 versions, not {versions}")
        self.count = versions
        self._extents = {
            name: _Extent(size, [RangeMap() for _ in range(versions)]) for name, size in sizes_bytes.items()
        }

    @classmethod
    def restore(cls, records: Mapping[str, ExtentRecord], versions: int) -> Versions:
        """Begin again from what was committed."""
        restored = cls({name: record.size_bytes for name, record in records.items()}, versions)
        for extent, record in zip(restored._extents.values(), records.values(), strict=True):
            extent.committed = extent.current = record.version
            extent.contents[record.version] = RangeMap(record.ranges)
        return restored

    @property
    def sizes_bytes(self) -> dict[str, int]:
        """Size of one version of every extent."""
        return {name: extent.size_bytes for name, extent in self._extents.items()}

    def version_to_write(self, name: str) -> int:
        """Return the version that a write goes to: never the committed one, unless there is no other."""
        extent = self._extents[name]
        if extent.written is not None or self.count == 1:
            return extent.written or 0
        kept = {extent.committed, extent.current} if self.count > 2 else {extent.committed}
        return min(set(range(self.count)) - kept)

    def overwrites_committed(self, name: str) -> bool:
        """Tell whether a write to ``name`` destroys what was committed."""
        return self.version_to_write(name) == self._extents[name].committed

    def wrote(self, name: str, written: Range) -> None:
        """Take note of a write into :meth:`version_to_write`."""
        extent = self._extents[name]
        target = self.version_to_write(name)
        if extent.written is None:
            extent.written, extent.fresh = target, RangeMap()
            if target != extent.current:
                extent.contents[target] = RangeMap()
        extent.contents[target].put(written)
        extent.fresh.put(written)

    def version_to_read(self, name: str, start: int, stop: int) -> int:
        """Return the version that holds the newest bytes ``start:stop``.

        Raises:
            ValueError: nothing was written there, or one part was written since ``finish_step`` and another was not, so
                that the newest bytes lie in two versions.
        """
        extent = self._extents[name]
        if extent.written is not None and extent.written != extent.current:
            pending = extent.contents[extent.written]
            if pending.first_gap(start, stop) is None:
                return extent.written
            if extent.current is not None and pending.overlaps(start, stop):
                raise ValueError(f"extent {name!r}: bytes {start} to {stop} were written only in part in this step")
        if extent.current is None:
            raise ValueError(f"extent {name!r}: bytes {start} to {stop} are read before they were written")
        return extent.current

    def finish_step(self) -> None:
        """Make what was written since the last call current.

        Raises:
            ValueError: an extent was written only in part (see [Note: complete extents]); nothing has changed.
        """
        for name, extent in self._extents.items():
            if extent.written is not None:
                gap = extent.fresh.first_gap(0, extent.size_bytes)
                if gap is not None:
                    raise ValueError(f"extent {name!r}: bytes {gap[0]} to {gap[1]} were not written in this step")
        for extent in self._extents.values():
            if extent.written is not None:
                extent.current, extent.written = extent.written, None

    def take_back(self, names: Iterable[str]) -> None:
        """Forget what was written to these extents since the last :meth:`finish_step`.

        Raises:
            ValueError: it was written over what was current.
        """
        for name in names:
            extent = self._extents[name]
            if extent.written is None:
                continue
            if extent.written == extent.current:
                raise ValueError(f"extent {name!r}: its current version has been overwritten")
            extent.contents[extent.written], extent.written = RangeMap(), None

    def unwritten(self) -> list[str]:
        """Return the extents that have never been written completely."""
        return [name for name, extent in self._extents.items() if extent.current is None]

    def records(self) -> dict[str, ExtentRecord]:
        """Return what a commit now would make true. Call it after :meth:`finish_step` with nothing unwritten."""
        return {
            name: ExtentRecord(
                size_bytes=extent.size_bytes, version=extent.current, ranges=tuple(extent.contents[extent.current])
            )
            for name, extent in self._extents.items()
            if extent.current is not None
        }

    def commit(self) -> None:
        """Take the current versions as committed, once a manifest says so."""
        for extent in self._extents.values():
            extent.committed = extent.current
