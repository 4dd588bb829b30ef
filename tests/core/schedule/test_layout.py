from __future__ import annotations

from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lohan_core.layout import BLOCK_ALIGNMENT, PARAMETER_ALIGNMENT, lay_out, round_up
from lohan_core.states import SECTOR_BYTES, StateVector, chunk_alignment, chunk_record_bytes, place_in_record

SHAPES = st.lists(st.integers(1, 60), min_size=1, max_size=3).map(tuple)
PARAMETERS = st.lists(st.tuples(SHAPES, st.booleans()), max_size=8).map(
    lambda found: [(f"p{number}", shape, decays) for number, (shape, decays) in enumerate(found)]
)
CHUNKS = st.integers(1, 8).map(lambda units: units * BLOCK_ALIGNMENT)
VECTORS = st.lists(
    st.tuples(st.sampled_from((1, 2, 4, 8)), st.sampled_from((1, 2, 64, 256))), min_size=1, max_size=4
).map(lambda found: [StateVector(name=f"v{i}", value_bytes=b, elements_per_value=e) for i, (b, e) in enumerate(found)])


@given(PARAMETERS)
def test_parameters_lie_aligned_and_apart_with_the_decaying_ones_first(parameters):
    block = lay_out(3, "layers.2", parameters)
    assert (block.index, block.name) == (3, "layers.2")
    assert {(s.name, s.shape, s.decays) for s in block.slots} == set(parameters)
    assert block.parameters == sum(prod(shape) for _, shape, _ in parameters)
    assert block.elements % BLOCK_ALIGNMENT == block.decaying % BLOCK_ALIGNMENT == 0
    cursor = 0
    for slot in block.slots:
        assert slot.offset % PARAMETER_ALIGNMENT == 0
        assert slot.offset >= cursor
        assert slot.stop - slot.offset == prod(slot.shape)
        assert slot.stop <= block.decaying if slot.decays else slot.offset >= block.decaying
        cursor = slot.stop
    assert cursor <= block.elements
    for decays in (True, False):
        order = [slot.name for slot in block.slots if slot.decays is decays]
        assert order == [name for name, _, of in parameters if of is decays], "the model's order is kept"


def test_padding_stays_small():
    """At most one alignment unit per parameter, and one sector's worth at each end of a group."""
    shapes = [(129,), (64, 64), (1,)] * 10
    block = lay_out(0, "b", [(f"p{i}", shape, i % 2 == 0) for i, shape in enumerate(shapes)])
    assert block.elements - block.parameters < PARAMETER_ALIGNMENT * len(shapes) + 2 * BLOCK_ALIGNMENT


def test_a_block_without_parameters_is_empty():
    block = lay_out(0, "b", [])
    assert (block.elements, block.parameters, block.chunks(BLOCK_ALIGNMENT)) == (0, 0, ())


@given(PARAMETERS, CHUNKS)
def test_chunks_cover_a_block_and_spans_a_chunk(parameters, chunk_elements):
    block = lay_out(0, "b", parameters)
    chunks = block.chunks(chunk_elements)
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
    assert sum(chunk.elements for chunk in chunks) == block.elements
    assert all(chunk.elements == chunk_elements for chunk in chunks[:-1])
    cursor = 0
    for chunk in chunks:
        assert chunk.start == cursor
        for start, stop, decays in block.spans(chunk):
            assert start == cursor < stop
            assert stop <= block.decaying if decays else start >= block.decaying
            cursor = stop
        assert cursor == chunk.stop
    assert cursor == block.elements


@pytest.mark.parametrize("chunk_elements", [0, -BLOCK_ALIGNMENT, 1, BLOCK_ALIGNMENT + 1])
def test_chunks_of_part_of_a_sector_are_refused(chunk_elements):
    with pytest.raises(ValueError, match=rf"^chunk of {chunk_elements} elements is not a positive multiple of 4096$"):
        lay_out(0, "b", [("p", (5,), True)]).chunks(chunk_elements)


@given(st.integers(0, 10**9), st.integers(1, 10**6))
def test_rounding_up(value, multiple):
    rounded = round_up(value, multiple)
    assert rounded % multiple == 0
    assert value <= rounded < value + multiple


@given(PARAMETERS, VECTORS, st.integers(1, 3))
def test_every_vector_s_chunks_fill_its_extent_sector_by_sector(parameters, vectors, factor):
    """Whatever the width of a value, and however many parameters share one."""
    block = lay_out(0, "b", parameters)
    chunks = block.chunks(factor * chunk_alignment(vectors))
    for vector in vectors:
        cursor = 0
        for chunk in chunks:
            offset, length = vector.chunk_range(chunk)
            assert offset == cursor
            assert offset % SECTOR_BYTES == length % SECTOR_BYTES == 0
            assert length >= vector.values(chunk.elements) * vector.value_bytes
            cursor += length
        assert cursor == vector.extent_bytes(block.elements)


@given(VECTORS, CHUNKS)
def test_a_record_holds_the_vectors_one_after_another(vectors, elements):
    places = place_in_record(vectors, elements)
    cursor = 0
    for vector in vectors:
        assert places[vector.name] == (cursor, vector.extent_bytes(elements))
        cursor += vector.extent_bytes(elements)
    assert cursor == chunk_record_bytes(vectors, elements)


@given(PARAMETERS, VECTORS, CHUNKS)
def test_a_span_is_a_slice_of_vectors_that_share_values(parameters, vectors, chunk_elements):
    """The optimizer gets whole shared values: no value spans decaying and other parameters."""
    block = lay_out(0, "b", parameters)
    for chunk in block.chunks(chunk_elements):
        for start, stop, _ in block.spans(chunk):
            for vector in vectors:
                assert (start - chunk.start) % vector.elements_per_value == 0
                assert stop % vector.elements_per_value == 0
