"""Where every parameter lies in the flat states of its block. Pure arithmetic.

A block's parameters are laid end to end in one flat vector, each at a multiple of ``PARAMETER_ALIGNMENT`` elements, so
that a view into a streamed buffer is aligned as a freshly allocated tensor would be (kernels choose by alignment, and a
different kernel is a different result). Parameters that decay come first, so that a block's vector falls into at most
two spans of equal hyperparameters. The vector's length is a multiple of ``BLOCK_ALIGNMENT`` elements, so that every
state of one byte per element or more fills whole 4096-byte sectors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from math import prod

from attrs import field, frozen

__all__ = [
    "BLOCK_ALIGNMENT",
    "PARAMETER_ALIGNMENT",
    "BlockLayout",
    "Borrowed",
    "Chunk",
    "ParameterSlot",
    "cut_into_chunks",
    "lay_out",
    "round_up",
]

PARAMETER_ALIGNMENT = 128
BLOCK_ALIGNMENT = 4096


@frozen(kw_only=True)
class ParameterSlot:
    """One parameter: its name in the model's state dict, its shape, and its place in the block, in elements."""

    name: str
    shape: tuple[int, ...]
    offset: int
    decays: bool

    @property
    def elements(self) -> int:
        """Number of elements, without padding."""
        return prod(self.shape)

    @property
    def stop(self) -> int:
        """One past the last element."""
        return self.offset + self.elements


@frozen(kw_only=True)
class Borrowed:
    """A parameter that this block computes with but another block owns: a tied embedding used by the head.

    ``name`` is what the borrower's modules call it; ``owner`` and ``slot`` say where it really lies.
    """

    name: str
    owner: int
    slot: ParameterSlot


@frozen(kw_only=True)
class Chunk:
    """A slice ``start:stop`` of a block's flat states, in elements: the unit of optimizer I/O."""

    index: int
    start: int
    stop: int

    @property
    def elements(self) -> int:
        """Number of elements, padding included."""
        return self.stop - self.start


@lru_cache(maxsize=1024)  # a schedule, and the engine for each of its tasks, cuts the same few lengths again and again
def cut_into_chunks(elements: int, chunk_elements: int) -> tuple[Chunk, ...]:
    """Cut a flat vector into chunks of ``chunk_elements``, a multiple of ``BLOCK_ALIGNMENT``; the last may be shorter.

    A schedule numbers chunks, and the engine looks them up by number: both cut here.
    """
    if chunk_elements <= 0 or chunk_elements % BLOCK_ALIGNMENT:
        raise ValueError(f"chunk of {chunk_elements} elements is not a positive multiple of {BLOCK_ALIGNMENT}")
    return tuple(
        Chunk(index=i, start=start, stop=min(start + chunk_elements, elements))
        for i, start in enumerate(range(0, elements, chunk_elements))
    )


@frozen(kw_only=True)
class BlockLayout:
    """One block: its name, its parameters in order, and the length of its flat vector in elements.

    ``elements`` counts padding; it is 0 for a block that owns no parameters. ``decaying`` is the length of the leading
    part whose parameters decay.
    """

    index: int
    name: str
    slots: tuple[ParameterSlot, ...]
    elements: int
    decaying: int
    borrowed: tuple[Borrowed, ...] = field(default=())

    @property
    def parameters(self) -> int:
        """Number of parameters that this block owns, padding not counted."""
        return sum(slot.elements for slot in self.slots)

    def chunks(self, chunk_elements: int) -> tuple[Chunk, ...]:
        """Cut the vector into chunks of ``chunk_elements``, a multiple of ``BLOCK_ALIGNMENT``."""
        return cut_into_chunks(self.elements, chunk_elements)

    def spans(self, chunk: Chunk) -> Iterator[tuple[int, int, bool]]:
        """Yield (start, stop, decays) of the chunk's parts with equal hyperparameters, in elements of the block."""
        middle = min(max(self.decaying, chunk.start), chunk.stop)
        if chunk.start < middle:
            yield chunk.start, middle, True
        if middle < chunk.stop:
            yield middle, chunk.stop, False


def round_up(value: int, multiple: int) -> int:
    """Return the least multiple of ``multiple`` that is not less than ``value``."""
    return -(-value // multiple) * multiple


def lay_out(
    index: int,
    name: str,
    parameters: Iterable[tuple[str, tuple[int, ...], bool]],
    borrowed: tuple[Borrowed, ...] = (),
) -> BlockLayout:
    """Lay out a block from its parameters (name, shape, decays), keeping their order within each group."""
    ordered = sorted(parameters, key=lambda parameter: not parameter[2])
    slots = []
    cursor = decaying = 0
    for parameter, shape, decays in ordered:
        if not decays:
            cursor = max(cursor, decaying)
        slots.append(ParameterSlot(name=parameter, shape=shape, offset=cursor, decays=decays))
        cursor += round_up(prod(shape), PARAMETER_ALIGNMENT)
        if decays:
            # Whole sectors, so that a span is a slice of those states too that several parameters share a value of.
            decaying = round_up(cursor, BLOCK_ALIGNMENT)
    return BlockLayout(
        index=index,
        name=name,
        slots=tuple(slots),
        elements=round_up(max(cursor, decaying), BLOCK_ALIGNMENT),
        decaying=decaying,
        borrowed=borrowed,
    )
