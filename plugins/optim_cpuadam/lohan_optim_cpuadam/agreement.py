"""Whether two optimizers of one rule give the same bits, on two kinds of device."""

from __future__ import annotations

from itertools import pairwise

import torch

from lohan_core.interfaces.optimizer import Hyperparameters, Optimizer

__all__ = ["same_bits"]

SLICES = (0, 65_536, 65_541, 100_003)
LENGTH = SLICES[-1]
STEPS = 3


def same_bits(one: Optimizer, other: Optimizer, device: torch.device) -> bool:
    """Update the same values on the CPU by ``one`` and on ``device`` by ``other``, and compare all that is written.

    Values of every size are among them, subnormal, infinite and not a number, and gradients lie where weights go.
    Slices are of both kinds that compilers tell apart: with beginnings and lengths that divide by 16, as most of a
    block's do, and others.
    """
    for dtype in (torch.bfloat16, torch.float32):
        here = _values(one, dtype)
        there = {name: tensor.to(device, copy=True) for name, tensor in here.items()}
        for step in range(1, STEPS + 1):
            terms = Hyperparameters(
                step=step, lr=1e-3 / step, weight_decay=0.1 * (step % 2), gradient_factor=0.7 / step
            )
            for optimizer, values in ((one, here), (other, there)):
                values["weights"].copy_(values["gradients"].roll(step))
                for start, stop in pairwise(SLICES):
                    _update(optimizer, {name: tensor[start:stop] for name, tensor in values.items()}, terms)
            if any(not torch.equal(_bits(tensor), _bits(there[name].cpu())) for name, tensor in here.items()):
                return False
    return True


def _update(optimizer: Optimizer, values: dict[str, torch.Tensor], terms: Hyperparameters) -> None:
    states = {field.name: values[field.name] for field in optimizer.fields}
    optimizer.update(values["master"], states, values["weights"], values["weights"], terms)


def _values(optimizer: Optimizer, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(-40, 4, (LENGTH,), generator=generator)
    gradients = torch.randn(LENGTH, generator=generator) * 10.0**sizes
    gradients[::9973] = float("nan")
    gradients[1::9973] = float("inf")
    gradients[2::9973] = -float("inf")
    gradients[3::997] = 0.0
    gradients[4::997] = 3e38
    values = {
        "master": torch.randn(LENGTH, generator=generator) * 0.02,
        "gradients": gradients.to(dtype),
        "weights": torch.empty(LENGTH, dtype=dtype),
    }
    for field in optimizer.fields:
        values[field.name] = torch.full((LENGTH,), field.initial, dtype=field.dtype)
    return values


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.uint8)
