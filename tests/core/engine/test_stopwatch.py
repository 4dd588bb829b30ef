"""What is timed as a block's backward: what a step does with its gradients, too."""

from __future__ import annotations

import torch

from lohan_core.engine.stopwatch import sustain, with_gradients

WEIGHT = torch.ones(4, dtype=torch.bfloat16, requires_grad=True)


def taken(monkeypatch, *, sums, runs):
    """Return the vector that a backward's gradients are gathered in, after so many of them."""
    vectors = []

    def remember(like, **options):
        vectors.append(zeros_like(like, **options))
        return vectors[-1]

    zeros_like = torch.zeros_like
    monkeypatch.setattr(torch, "zeros_like", remember)
    run = with_gradients({"weight": WEIGHT}, lambda: 3 * WEIGHT, sums=sums)
    for _ in range(runs):
        run()
    (vector,) = vectors
    return vector


def test_gradients_of_one_micro_batch_are_gathered_as_they_are(monkeypatch):
    gathered = taken(monkeypatch, sums=False, runs=2)
    assert gathered.dtype is torch.bfloat16
    assert gathered.tolist() == [3.0] * 4


def test_gradients_of_several_are_summed_in_fp32(monkeypatch):
    summed = taken(monkeypatch, sums=True, runs=2)
    assert summed.dtype is torch.float32
    assert summed.tolist() == [6.0] * 4


def test_a_processor_is_not_kept_busy_before_it_is_timed():
    runs = []
    sustain(lambda: runs.append(1), torch.device("cpu"), 0.3)
    assert not runs
