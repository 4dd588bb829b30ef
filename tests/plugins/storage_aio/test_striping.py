from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lohan_storage_aio.striping import Striping, shares_of

STRIPE = 8

stripings = st.builds(Striping, st.just(STRIPE), st.lists(st.integers(1, 5), min_size=1, max_size=5))
sizes = st.integers(1, 60 * STRIPE)


def spread(striping, size):
    """Say of each byte of an extent where it lies: the rule, applied byte by byte."""
    return [(piece.directory, piece.file_offset) for at in range(size) for piece in striping.pieces(at, 1)]


@given(stripings, sizes)
def test_every_byte_has_a_place_of_its_own_and_files_have_no_gaps(striping, size):
    places = spread(striping, size)
    assert len(set(places)) == size
    for directory, file_bytes in enumerate(striping.file_sizes(size)):
        assert sorted(offset for where, offset in places if where == directory) == list(range(file_bytes))


@given(stripings, sizes, st.data())
def test_a_range_lies_where_its_bytes_do(striping, size, data):
    offset = data.draw(st.integers(0, size - 1))
    length = data.draw(st.integers(1, size - offset))
    pieces = striping.pieces(offset, length)
    found = [(piece.directory, piece.file_offset + at) for piece in pieces for at in range(piece.length)]
    assert found == spread(striping, size)[offset : offset + length]


@given(stripings, sizes)
def test_neighbours_in_a_file_are_one_piece(striping, size):
    for before, after in pairwise(striping.pieces(0, size)):
        assert (before.directory, before.file_offset + before.length) != (after.directory, after.file_offset)


@given(stripings, sizes)
def test_growing_an_extent_moves_nothing(striping, size):
    assert spread(striping, size) == spread(striping, size + 3)[:size]


@given(st.lists(st.integers(1, 5), min_size=1, max_size=5))
def test_a_cycle_honours_the_shares(shares):
    striping = Striping(STRIPE, shares)
    assert striping.file_sizes(sum(shares) * STRIPE) == tuple(share * STRIPE for share in shares)


def test_a_fast_drive_takes_its_turns_spread_over_the_cycle():
    directories = [piece.directory for piece in Striping(STRIPE, [1, 3]).pieces(0, 4 * STRIPE)]
    assert directories == [1, 0, 1]  # the middle two turns of the fast one are neighbours in its file


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=6))
def test_shares_are_small_and_follow_the_weights(weights):
    shares = shares_of(weights)
    assert all(1 <= share <= 16 for share in shares)
    for weight, share in zip(weights, shares, strict=True):
        if weight == max(weights):
            assert share == max(shares)


@pytest.mark.parametrize(
    ("weights", "shares"),
    [([5.0], (1,)), ([2.5, 2.5], (1, 1)), ([3, 6, 6], (1, 2, 2)), ([7000, 3500], (2, 1)), ([1, 1000], (1, 16))],
)
def test_shares_are_in_lowest_terms(weights, shares):
    assert shares_of(weights) == shares
