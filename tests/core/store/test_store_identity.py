from __future__ import annotations

from pathlib import Path

import pytest

from lohan_core.errors import StoreError
from lohan_core.store.identity import check_identity

STORED = {"data.sequence_length": "64", "data.train": "0123456789abcdef", "model (config)": "fedcba9876543210"}


def refusal(**changes):
    with pytest.raises(StoreError) as refused:
        check_identity(Path("run/store"), STORED, {**STORED, **changes})
    return str(refused.value)


def test_the_same_is_taken_up():
    check_identity(Path("run/store"), STORED, dict(STORED))


def test_a_setting_is_told_with_both_values_and_the_digests_that_may_follow_from_it_by_name():
    said = refusal(**{"data.sequence_length": "128", "data.train": "1" * 16})
    assert (
        "data.sequence_length is '64' in the store and '128' now; data.train changed, which may follow from that; "
        in said
    )
    assert "0123" not in said
    assert "1111" not in said


def test_digests_are_named_where_no_setting_tells():
    said = refusal(**{"data.train": "1" * 16, "model (config)": "2" * 16})
    assert said.startswith("run/store: belongs to another run: data.train and model (config) changed; restore what")
    assert "0123" not in said
