"""How documents become rows: truncating, splitting and packing. Pure arithmetic on lengths; no token is looked at."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

__all__ = ["Layout", "best_fit", "lay_out"]

Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]

SHORTEST_PIECE = 2
"""A token to see and a token to learn: nothing shorter is worth a place."""


@frozen(eq=False)
class Layout:
    """Which piece of which document lies where.

    Row ``r`` holds pieces ``row_offsets[r]`` to ``row_offsets[r + 1]``, end to end; piece ``p`` is tokens ``start[p]``
    to ``stop[p]`` of document ``document[p]``. Every piece has at least one token to learn after its first.
    """

    document: Integers
    start: Integers
    stop: Integers
    row_offsets: Integers
    truncated: Flags
    """Per document: its end was cut off."""
    split: Flags
    """Per document: it is longer than a row, and was divided over several."""
    dropped: Flags
    """Per document: no token was left to learn."""

    def __len__(self) -> int:
        return len(self.row_offsets) - 1

    @property
    def longest_row(self) -> int:
        """Tokens in the fullest row."""
        ends = np.concatenate([[0], np.cumsum(self.stop - self.start)])[self.row_offsets]
        return int(np.diff(ends).max(initial=0))


def lay_out(
    lengths: Integers, first_learned: Integers, splittable: Flags, *, sequence_length: int, packing: bool
) -> Layout:
    """Divide documents into pieces of at most ``sequence_length`` tokens, and lay the pieces into rows.

    Without packing a row is one document, its end cut off where it is too long. With packing a row takes as many
    pieces as fit, and a splittable document longer than a row is divided. Consecutive pieces of one document share a
    token, the last of one and the first of the next, so that every token but the first is learned once.

    Args:
        lengths: tokens of each document, shape (documents,).
        first_learned: position of the first learned token after position 0, or the length if there is none.
        splittable: whether the document may be divided: its parts make sense without each other.
        sequence_length: tokens in a row, at least 2.
        packing: whether a row may hold several pieces.
    """
    if sequence_length < SHORTEST_PIECE:
        raise ValueError(f"sequence_length is {sequence_length}, must be at least {SHORTEST_PIECE}")
    too_long = lengths > sequence_length
    split = too_long & splittable & packing
    truncated = too_long & ~split
    dropped = first_learned >= np.minimum(lengths, np.where(split, lengths, sequence_length))
    stride = sequence_length - 1
    pieces_each = np.where(split, -(-(lengths - 1) // stride), 1)
    pieces_each[dropped] = 0
    document = np.repeat(np.arange(len(lengths), dtype=np.int64), pieces_each)
    first_piece = np.repeat(np.cumsum(pieces_each) - pieces_each, pieces_each)
    start = (np.arange(len(document), dtype=np.int64) - first_piece) * stride
    stop = np.minimum(start + sequence_length, lengths[document])
    row = best_fit(stop - start, sequence_length) if packing else np.arange(len(document), dtype=np.int64)
    order = np.argsort(row, kind="stable")
    rows = int(row.max(initial=-1)) + 1
    return Layout(
        document=document[order],
        start=start[order],
        stop=stop[order],
        row_offsets=np.searchsorted(row[order], np.arange(rows + 1)).astype(np.int64),
        truncated=truncated & ~dropped,
        split=split,
        dropped=dropped,
    )


def best_fit(lengths: Iterable[int], capacity: int) -> Integers:
    """Assign each piece, in order, to the row with the least space that still takes it; the oldest among equals.

    Deterministic, and fast for any number of pieces: rows wait in queues by their free space, of which there are at
    most ``capacity``.

    Returns:
        The row of each piece, shape (pieces,). Rows are numbered as they are opened.
    """
    waiting: dict[int, deque[int]] = {}
    spaces: list[int] = []  # the keys of `waiting`, sorted
    assigned = array("q")
    rows = 0
    for length in map(int, lengths):
        at = bisect_left(spaces, length)
        if at == len(spaces):
            row, space = rows, capacity
            rows += 1
        else:
            space = spaces[at]
            row = waiting[space].popleft()
            if not waiting[space]:
                del waiting[space], spaces[at]
        assigned.append(row)
        left = space - length
        if left >= SHORTEST_PIECE:
            if left not in waiting:
                waiting[left] = deque()
                spaces.insert(bisect_left(spaces, left), left)
            waiting[left].append(row)
    return np.array(assigned, dtype=np.int64)
