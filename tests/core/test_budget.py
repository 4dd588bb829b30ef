from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lohan_core.budget import make_budget, plannable_gpu_bytes
from lohan_core.plan import Tier

GIB = 2**30
LIMITS = st.none() | st.integers(0, 100 * GIB)


def budget(free, *, gpu=None, host=None, ssd=None, one_memory=False):
    return make_budget(
        dict(zip(Tier, free, strict=True)), {Tier.GPU: gpu, Tier.HOST: host, Tier.SSD: ssd}, one_memory=one_memory
    )


def test_without_limits_it_is_what_there_is_less_what_no_plan_counts():
    found = budget((24 * GIB, 64 * GIB, 1000 * GIB))
    assert (found.gpu_bytes, found.host_bytes, found.ssd_bytes) == (23.625 * GIB, 60 * GIB, 1000 * GIB)
    assert budget((4 * GIB, 0, 0)).gpu_bytes == 3.75 * GIB
    assert budget((0, 512 * GIB, 0)).host_bytes == 504 * GIB


def test_a_limit_of_host_memory_is_taken_at_its_word():
    assert budget((0, 64 * GIB, 0), host=63 * GIB).host_bytes == 63 * GIB
    assert budget((0, 64 * GIB, 0), host=65 * GIB).host_bytes == 64 * GIB


@pytest.mark.parametrize(
    ("limits", "gpu", "host"),
    [
        ({}, 12, 12),
        ({"gpu": 4 * GIB}, 4, 20),
        ({"host": 4 * GIB}, 20, 4),
        ({"gpu": 20 * GIB, "host": 20 * GIB}, 12, 12),
    ],
)
def test_one_memory_is_shared_out(limits, gpu, host):
    found = budget((24 * GIB, 24 * GIB, GIB), one_memory=True, **limits)
    assert found.gpu_bytes == plannable_gpu_bytes(gpu * GIB)
    assert found.host_bytes == host * GIB


@given(free=st.tuples(*[st.integers(0, 100 * GIB)] * 3), gpu=LIMITS, host=LIMITS, ssd=LIMITS, one_memory=st.booleans())
def test_nothing_is_given_out_twice_nor_beyond_a_limit(free, gpu, host, ssd, one_memory):
    found = budget(free, gpu=gpu, host=host, ssd=ssd, one_memory=one_memory)
    given_out = (found.gpu_bytes, found.host_bytes, found.ssd_bytes)
    for taken, there_is, limit in zip(given_out, free, (gpu, host, ssd), strict=True):
        assert 0 <= taken <= there_is
        assert limit is None or taken <= limit
    assert not one_memory or found.gpu_bytes + found.host_bytes <= min(free[:2])
