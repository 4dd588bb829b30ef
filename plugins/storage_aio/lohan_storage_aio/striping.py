"""Which bytes of an extent lie in which directory's file, and where: arithmetic only.

An extent is cut into stripes of a fixed number of bytes, dealt to the directories in turn: RAID-0 in user space. Each
directory's file holds its stripes one after the other, without gaps. A directory with a larger share gets more turns
in a cycle, spread over the cycle so that even a short range uses all drives.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd

from attrs import frozen

__all__ = ["Piece", "Striping", "shares_of"]

FINEST_SHARE = 16
"""The fastest directory gets at most this many turns in a cycle, so that cycles stay short."""


def shares_of(weights: Sequence[float]) -> tuple[int, ...]:
    """Round relative bandwidths to small whole numbers of turns in a cycle, at least one each, in lowest terms."""
    most = max(weights)
    turns = [max(1, round(weight / most * FINEST_SHARE)) for weight in weights]
    common = gcd(*turns)
    return tuple(turn // common for turn in turns)


@frozen
class Piece:
    """A range of an extent that is contiguous in one directory's file."""

    directory: int
    file_offset: int
    length: int


class Striping:
    """The rule for one geometry: stripe size in bytes, and turns per cycle of each directory."""

    def __init__(self, stripe_bytes: int, shares: Sequence[int]) -> None:
        """Work out the order of one cycle."""
        self.stripe_bytes = stripe_bytes
        self.shares = tuple(shares)
        self._slots = _cycle(self.shares)

    def pieces(self, offset: int, length: int) -> list[Piece]:
        """Cut ``length`` bytes at ``offset`` of an extent, in the extent's order; neighbours in a file are merged."""
        if len(self.shares) == 1:
            return [Piece(0, offset, length)]
        pieces: list[Piece] = []
        end = offset + length
        while offset < end:
            stripe, within = divmod(offset, self.stripe_bytes)
            cycle, slot = divmod(stripe, len(self._slots))
            directory, rank = self._slots[slot]
            start = (cycle * self.shares[directory] + rank) * self.stripe_bytes + within
            taken = min(self.stripe_bytes - within, end - offset)
            last = pieces[-1] if pieces else None
            if last and last.directory == directory and last.file_offset + last.length == start:
                pieces[-1] = Piece(directory, last.file_offset, last.length + taken)
            else:
                pieces.append(Piece(directory, start, taken))
            offset += taken
        return pieces

    def file_sizes(self, size_bytes: int) -> tuple[int, ...]:
        """Bytes of each directory's file for an extent of ``size_bytes``."""
        cycles, rest = divmod(size_bytes, self.stripe_bytes * len(self._slots))
        sizes = [cycles * share * self.stripe_bytes for share in self.shares]
        for piece in self.pieces(0, rest):
            sizes[piece.directory] += piece.length
        return tuple(sizes)


def _cycle(shares: tuple[int, ...]) -> list[tuple[int, int]]:
    """Deal one cycle: (directory, how many turns it had before), evenly spread (smooth weighted round robin)."""
    credit = [0] * len(shares)
    turns = [0] * len(shares)
    slots: list[tuple[int, int]] = []
    for _ in range(sum(shares)):
        credit = [have + share for have, share in zip(credit, shares, strict=True)]
        directory = credit.index(max(credit))
        credit[directory] -= sum(shares)
        slots.append((directory, turns[directory]))
        turns[directory] += 1
    return slots
