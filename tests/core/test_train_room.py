"""Evaluation in the memory that is planned for training, whatever the length of its rows."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lohan_core.errors import ConfigError
from lohan_core.train.room import require_room, rows_within

LENGTHS = st.integers(1, 4096)


@given(rows=st.integers(1, 64), planned=LENGTHS, actual=LENGTHS)
def test_as_many_rows_as_take_no_more_tokens_and_no_more_of_them(rows, planned, actual):
    found = rows_within(rows, planned=planned, actual=actual)
    assert found <= rows
    assert found * actual <= rows * planned
    assert found == rows or (found + 1) * actual > rows * planned


def test_a_row_for_which_there_is_no_room_is_refused_before_the_run():
    training, evaluation = SimpleNamespace(row_length=64), SimpleNamespace(row_length=256)
    require_room(training, evaluation, 4)
    with pytest.raises(ConfigError, match=r"rows have 256 tokens.* 3 x 64 tokens; lower data.sequence_length to 192"):
        require_room(training, evaluation, 3)
