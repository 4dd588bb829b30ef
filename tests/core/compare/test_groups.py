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

    grouped = group_by_memory({"a": only(6), "b": only(5), "c": only(4), "d": only(5)}, TEN, one_memory=False)
    assert grouped == (("a", "c"), ("b", "d"))


def test_where_the_cpu_computes_its_memory_is_shared_out_once():
    plans = {"a": needs(3, 3, 0), "b": needs(3, 2, 0)}
    assert group_by_memory(plans, TEN, one_memory=False) == (("a", "b"),)
    assert group_by_memory(plans, TEN, one_memory=True) == (("a",), ("b",))


@given(st.lists(st.tuples(*[st.integers(0, 10)] * 3), max_size=8), st.booleans())
def test_every_plan_runs_once_and_no_group_of_several_takes_more_than_there_is(sizes, one_memory):
    plans = {str(number): needs(*size) for number, size in enumerate(sizes)}
    groups = group_by_memory(plans, TEN, one_memory=one_memory)
    assert sorted(name for group in groups for name in group) == sorted(plans)
    for group in groups:
        if len(group) > 1:
            assert all(sum(plans[name][tier] for name in group) <= 10 for tier in Tier)
            assert not one_memory or sum(plans[name][Tier.GPU] + plans[name][Tier.HOST] for name in group) <= 10
