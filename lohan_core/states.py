"""Sizes and places of a block's flat states. Pure arithmetic.

Every state of a block is one flat vector in one extent: the master weights, each of the optimizer's fields, and the
compute weights. A chunk of the block is the same slice of every vector. Extents and chunk offsets are whole sectors.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import lcm

from attrs import field, frozen
from attrs.validators import ge, gt

from lohan_core.layout import BLOCK_ALIGNMENT, Chunk, round_up

__all__ = [
    "SECTOR_BYTES",
    "StateVector",
    "chunk_alignment",
    "chunk_record_bytes",
    "place_in_record",
    "saving_elements",
]

SECTOR_BYTES = 4096

SAVING_ELEMENTS = 4 * 2**20
"""How many parameters at a time go between states in memory and the drives: enough to keep the drives busy."""


@frozen(kw_only=True)
class StateVector:
    """One flat vector: its name, the bytes of one value, and how many parameters share a value."""

    name: str
    value_bytes: int = field(validator=gt(0))
    elements_per_value: int = field(default=1, validator=ge(1))

    def values(self, elements: int) -> int:
        """Number of values that cover ``elements`` parameters."""
        return -(-elements // self.elements_per_value)

    def extent_bytes(self, elements: int) -> int:
        """Bytes that ``elements`` parameters take on a tier, whole sectors."""
        return round_up(self.values(elements) * self.value_bytes, SECTOR_BYTES)

    def chunk_range(self, chunk: Chunk) -> tuple[int, int]:
        """Offset and length in bytes of a chunk's slice, whole sectors."""
        offset = chunk.start // self.elements_per_value * self.value_bytes
        return offset, self.extent_bytes(chunk.elements)


def chunk_alignment(vectors: Iterable[StateVector]) -> int:
    """Elements of which every chunk length must be a multiple, so that each vector's slices are whole sectors."""
    return lcm(BLOCK_ALIGNMENT, *(SECTOR_BYTES * vector.elements_per_value for vector in vectors))


def chunk_record_bytes(vectors: Sequence[StateVector], elements: int) -> int:
    """Bytes of a host buffer that holds one chunk's slice of every vector, one after another."""
    return sum(vector.extent_bytes(elements) for vector in vectors)


def saving_elements(vectors: Iterable[StateVector], longest: int) -> int:
    """Parameters that states in memory are read and saved by, where no block has more than ``longest``."""
    return round_up(min(longest, SAVING_ELEMENTS), chunk_alignment(vectors))


def place_in_record(vectors: Sequence[StateVector], elements: int) -> dict[str, tuple[int, int]]:
    """Offset and length in bytes of each vector's slice in such a buffer."""
    places = {}
    cursor = 0
    for vector in vectors:
        length = vector.extent_bytes(elements)
        places[vector.name] = (cursor, length)
        cursor += length
    return places
