from __future__ import annotations

import pytest
import torch

from lohan_core.engine.rates import crossing_rates, drive_rates, mixed_rate
from lohan_core.testing.profiler import example_subject


@pytest.mark.parametrize(("up", "down"), [(50.0, 50.0), (50.0, 25.0), (20.0, 60.0)])
def test_directions_that_do_not_disturb_each_other_keep_their_rates(up, down):
    seconds = max(1 / up, 1 / down)
    assert crossing_rates(up, down, 2 / seconds) == (up, down)


@pytest.mark.parametrize(("up", "down"), [(50.0, 50.0), (50.0, 25.0), (20.0, 60.0)])
def test_directions_that_take_turns_pass_as_much_as_was_measured(up, down):
    seconds = 1 / up + 1 / down
    slower_up, slower_down = crossing_rates(up, down, 2 / seconds)
    assert max(1 / slower_up, 1 / slower_down) == pytest.approx(seconds)
    assert slower_up / slower_down == pytest.approx(up / down)


@pytest.mark.parametrize(("read", "write"), [(5.0, 5.0), (7.4, 1.4), (1.8, 2.8)])
def test_drives_that_take_turns_have_half_of_both_rates_together(read, write):
    assert mixed_rate(read, write, 2 / (1 / read + 1 / write)) == pytest.approx((read + write) / 2)


@pytest.mark.parametrize(("read", "write"), [(5.0, 5.0), (7.4, 1.4), (1.8, 2.8)])
def test_drives_that_do_both_at_once_have_both_rates(read, write):
    assert mixed_rate(read, write, 2 * min(read, write)) == pytest.approx(read + write)


def test_drives_are_measured_on_bytes_that_do_not_compress(monkeypatch):
    storage = example_subject().storage
    written = []
    write = storage.write

    def note(name, offset, buffer):
        written.append(torch.unique(buffer).numel())
        return write(name, offset, buffer)

    monkeypatch.setattr(storage, "write", note)
    assert min(drive_rates(storage, 1, 0.001)) > 0
    assert set(written) == {256}
