from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lohan_core.data.rows import best_fit, lay_out


@st.composite
def documents(draw):
    """Lengths, first learned positions, splittable flags, and a sequence length."""
    count = draw(st.integers(0, 30))
    lengths = draw(st.lists(st.integers(0, 40), min_size=count, max_size=count))
    # As the cache has it: a learned position after 0, or the length; all of a splittable document is learned.
    splittable = draw(st.lists(st.booleans(), min_size=count, max_size=count))
    first = [
        min(1, n) if free else draw(st.integers(min(1, n), n)) for n, free in zip(lengths, splittable, strict=True)
    ]
    return (
        np.array(lengths, dtype=np.int64),
        np.array(first, dtype=np.int64),
        np.array(splittable, dtype=np.bool_),
        draw(st.integers(2, 20)),
    )


@given(documents(), st.booleans())
def test_layout(case, packing):
    lengths, first, splittable, sequence_length = case
    layout = lay_out(lengths, first, splittable, sequence_length=sequence_length, packing=packing)
    sizes = layout.stop - layout.start
    assert (sizes >= 2).all()
    assert (layout.stop <= lengths[layout.document]).all()

    per_row = [sizes[a:b] for a, b in zip(layout.row_offsets, layout.row_offsets[1:], strict=False)]
    assert sum(map(len, per_row)) == len(sizes)
    assert all(0 < row.sum() <= sequence_length for row in per_row)
    assert layout.longest_row == max((int(row.sum()) for row in per_row), default=0)
    if not packing:
        assert all(len(row) == 1 for row in per_row)
        assert list(layout.document) == sorted(layout.document)

    kept = set(layout.document.tolist())
    for number, length in enumerate(lengths.tolist()):
        visible = length if layout.split[number] else min(length, sequence_length)
        assert layout.dropped[number] == (first[number] >= visible) == (number not in kept)
        if number in kept:
            assert layout.truncated[number] == (visible < length)
            assert layout.split[number] == (packing and splittable[number] and length > sequence_length)
        pieces = [(a, b) for d, a, b in zip(layout.document, layout.start, layout.stop, strict=True) if d == number]
        learned = Counter(position for a, b in pieces for position in range(a + 1, b))
        assert learned == (Counter(range(1, visible)) if number in kept else Counter())


def test_a_sequence_of_one_token_cannot_be_learned():
    one = np.array([3])
    with pytest.raises(ValueError, match="at least 2"):
        lay_out(one, one, one > 0, sequence_length=1, packing=True)


@given(st.lists(st.integers(2, 50), max_size=60), st.just(50))
def test_best_fit_chooses_as_a_plain_search_does(lengths, capacity):
    free = []
    expected = []
    for length in lengths:
        fitting = [row for row, space in enumerate(free) if space >= length]
        if fitting:
            row = min(fitting, key=lambda row: free[row])
        else:
            row = len(free)
            free.append(capacity)
        free[row] -= length
        expected.append(row)
    assigned = best_fit(lengths, capacity).tolist()
    # Among rows with equal space either may be taken; what fits is the same.
    assert Counter(_sums(assigned, lengths)) == Counter(_sums(expected, lengths))


def _sums(assigned, lengths):
    sums = Counter()
    for row, length in zip(assigned, lengths, strict=True):
        sums[row] += length
    return sums.values()


def test_best_fit_prefers_the_tightest_row_and_then_the_oldest():
    assert best_fit([6, 5, 4, 5, 9, 8], 10).tolist() == [0, 1, 0, 1, 2, 3]
    assert best_fit([7, 7, 3, 3], 10).tolist() == [0, 1, 0, 1]
