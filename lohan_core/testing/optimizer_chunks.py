"""The tensors that the optimizers' conformance suite updates, its steps on them, and how it compares them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from attrs import evolve, frozen

from lohan_core.interfaces.optimizer import Hyperparameters, Optimizer

__all__ = ["LENGTH", "Chunk", "assert_same_bits", "hyperparameters_of", "update", "updated"]

LENGTH = 20_480
"""Parameters of a chunk, unless a test asks for another number."""

_STEPS = 3


@frozen(kw_only=True)
class Chunk:
    """The tensors of one update, for n parameters."""

    master: torch.Tensor
    states: Mapping[str, torch.Tensor]
    gradient: torch.Tensor
    weights: torch.Tensor

    @classmethod
    def random(
        cls,
        optimizer: Optimizer,
        n: int = LENGTH,
        *,
        gradient_dtype: torch.dtype = torch.bfloat16,
        weights_dtype: torch.dtype = torch.bfloat16,
    ) -> Chunk:
        """Make masters and gradients as large as a transformer's, states at their initial values."""
        generator = torch.Generator().manual_seed(n)
        return cls(
            master=torch.randn(n, generator=generator) * 0.02,
            states={
                field.name: torch.full((-(-n // field.elements_per_value),), field.initial, dtype=field.dtype)
                for field in optimizer.fields
            },
            gradient=(torch.randn(n, generator=generator) * 0.1).to(gradient_dtype),
            weights=torch.zeros(n, dtype=weights_dtype),
        )

    def outputs(self) -> dict[str, torch.Tensor]:
        """All that an update writes."""
        return {"master": self.master, "weights": self.weights, **self.states}

    def to(self, device: torch.device) -> Chunk:
        """Copy all of them to a device."""
        return Chunk(
            master=self.master.to(device),
            states={name: state.to(device) for name, state in self.states.items()},
            gradient=self.gradient.to(device),
            weights=self.weights.to(device),
        )

    def part(self, optimizer: Optimizer, start: int, stop: int) -> Chunk:
        """Views of parameters ``start`` to ``stop``, and of the states that begin among them."""
        return Chunk(
            master=self.master[start:stop],
            states={
                field.name: self.states[field.name][
                    -(-start // field.elements_per_value) : -(-stop // field.elements_per_value)
                ]
                for field in optimizer.fields
            },
            gradient=self.gradient[start:stop],
            weights=self.weights[start:stop],
        )


def hyperparameters_of(step: int) -> Hyperparameters:
    """Every one differs from step to step, as schedules and clipping make them do."""
    return Hyperparameters(step=step, lr=1e-3 / step, weight_decay=0.1 * (step % 2), gradient_factor=0.7 / step)


def update(optimizer: Optimizer, chunk: Chunk, hyperparameters: Hyperparameters) -> None:
    """Take one step on ``chunk``."""
    optimizer.update(chunk.master, chunk.states, chunk.gradient, chunk.weights, hyperparameters)


def updated(optimizer: Optimizer, chunk: Chunk, *, cut_at: Sequence[int] = ()) -> Chunk:
    """Take a few steps on ``chunk``, cut before the given parameters, each with other gradients."""
    n = chunk.master.numel()
    bounds = [0, *cut_at, n]
    for step in range(1, _STEPS + 1):
        turned = evolve(chunk, gradient=chunk.gradient.roll(step))
        for start, stop in pairwise(bounds):
            update(optimizer, turned.part(optimizer, start, stop), hyperparameters_of(step))
    return chunk


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's bytes: equal only for the same NaN, and for the same zero."""
    return tensor.contiguous().view(torch.uint8)


def assert_same_bits(actual: Chunk, expected: Chunk, what: str) -> None:
    """Fail unless all that updates wrote is the same; ``what`` was not to change it."""
    for name, tensor in expected.outputs().items():
        different = (_bits(actual.outputs()[name]) != _bits(tensor)).sum().item()
        assert not different, f"{what} changed {different} bytes of {name}"
