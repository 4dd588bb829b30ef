"""Timing a piece of a model as it runs in a step: warm, in a row, with other things in the caches."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import median

import torch
from torch import Tensor

from lohan_core.engine.cores import largest_cache_bytes
from lohan_core.model.keep import nothing_saved

__all__ = [
    "WARM_UP_SECONDS",
    "looks",
    "saving_nothing",
    "whole_seconds",
    "with_backward",
    "with_gradients",
    "without_gradients",
]

LEAST_LOOKS, MOST_LOOKS = 4, 40
LOOK_SECONDS = 0.15
"""A block is looked at for about so long: on a busy machine most looks are of something else."""

WARM_UP_SECONDS = 0.3
"""A GPU works on a block for about so long before it is timed: its clocks fall under load."""


def whole_seconds(run: Callable[[], object], device: torch.device, warm_up_seconds: float) -> float:
    """Time something warm.

    On a GPU in the middle of sustained work, since its clocks fall as it warms up. On a CPU with other things in
    its caches, as the other blocks leave them in a step, and the median of several rounds.
    """
    run()
    if device.type == "cuda":
        return _sustained_seconds(run, device, warm_up_seconds)
    other = torch.ones(2 * largest_cache_bytes() // 4)
    rounds = []
    for _ in looks():
        other.add_(1.0)
        began = time.perf_counter()
        run()
        rounds.append(time.perf_counter() - began)
    return median(rounds)


def _sustained_seconds(run: Callable[[], object], device: torch.device, warm_up_seconds: float) -> float:
    """Keep the GPU at it for a while, then for as long again; return the seconds of one run in that."""
    torch.cuda.synchronize(device)
    began = time.perf_counter()
    run()
    torch.cuda.synchronize(device)
    runs = max(2, round(warm_up_seconds / (time.perf_counter() - began)))
    for _ in range(2):
        began = time.perf_counter()
        for _ in range(runs):
            run()
        torch.cuda.synchronize(device)
    return (time.perf_counter() - began) / runs


def looks() -> Iterator[None]:
    """Yield for as long as something should be looked at."""
    began = time.perf_counter()
    for look in range(MOST_LOOKS):
        if look >= LEAST_LOOKS and time.perf_counter() - began > LOOK_SECONDS:
            return
        yield


def saving_nothing(run: Callable[[], Tensor]) -> Callable[[], None]:
    """Make it a forward that saves nothing for a backward, as a step's is."""

    def forward() -> None:
        with nothing_saved():
            run()

    return forward


def without_gradients(run: Callable[[], Tensor]) -> Callable[[], None]:
    """Make it a forward of which no gradient is wanted, as an evaluation's is."""

    def forward() -> None:
        with torch.no_grad():
            run()

    return forward


def with_backward(leaves: Mapping[str, Tensor], run: Callable[[], Tensor]) -> Callable[[], None]:
    """Make it forward and backward, with respect to ``leaves``."""

    def forward_and_backward() -> None:
        _gradients_of(leaves, run)

    return forward_and_backward


def with_gradients(leaves: Mapping[str, Tensor], run: Callable[[], Tensor]) -> Callable[[], None]:
    """As :func:`with_backward`, then gather the gradients in one flat vector and take its norm."""
    flat = torch.empty_like(torch.cat([leaf.detach().flatten() for leaf in leaves.values()]))
    parts = flat.split([leaf.numel() for leaf in leaves.values()])

    def forward_backward_and_norm() -> None:
        gradients = _gradients_of(leaves, run)
        flat.zero_()
        for part, gradient in zip(parts, gradients, strict=True):
            if gradient is not None:
                part.copy_(gradient.flatten())
        torch.linalg.vector_norm(flat, dtype=torch.float32)

    return forward_backward_and_norm


def _gradients_of(leaves: Mapping[str, Tensor], run: Callable[[], Tensor]) -> Sequence[Tensor | None]:
    output = run()
    return torch.autograd.grad(output, list(leaves.values()), torch.ones_like(output), allow_unused=True)
