from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lohan_core.compare.groups import group_by_memory
from lohan_core.plan import Budget, Tier

TEN = Budget(gpu_bytes=10, host_bytes=10, ssd_bytes=10)


def needs(gpu, host, ssd):
    return {Tier.GPU: gpu, Tier.HOST: host, Tier.SSD: ssd}


@pytest.mark.parametrize("tier", Tier)
def test_plans_that_fit_together_run_together(tier):
    def only(size):
        return {other: size * (other is tier) for other in Tier}

    grouped = group_by_memory({"a": only(6), "b": only(5), "c": only(4), "d": only(5)}, TEN)
    assert grouped == (("a", "c"), ("b", "d"))


@given(st.lists(st.tuples(*[st.integers(0, 10)] * 3), max_size=8))
def test_every_plan_runs_once_and_no_group_of_several_takes_more_than_there_is(sizes):
    plans = {str(number): needs(*size) for number, size in enumerate(sizes)}
    groups = group_by_memory(plans, TEN)
    assert sorted(name for group in groups for name in group) == sorted(plans)
    for group in groups:
        if len(group) > 1:
            assert all(sum(plans[name][tier] for name in group) <= 10 for tier in Tier)
