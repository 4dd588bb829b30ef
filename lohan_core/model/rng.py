"""The random state of one device's default generator, as a value."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["get_random_state", "preserved", "seeded", "seeded_state", "set_random_state"]


def get_random_state(device: torch.device) -> Tensor:
    """Return a copy of the device's random state."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def set_random_state(device: torch.device, state: Tensor) -> None:
    """Put the device's random state to what :func:`get_random_state` returned."""
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)


def seeded_state(device: torch.device, seed: int) -> Tensor:
    """Return the state that ``torch.manual_seed(seed)`` would give the device, without changing it."""
    generator = torch.Generator(device=device)
    generator.manual_seed(seed)
    return generator.get_state()


@contextmanager
def preserved(device: torch.device) -> Iterator[None]:
    """Put the caller's random state back at the end."""
    state = get_random_state(device)
    try:
        yield
    finally:
        set_random_state(device, state)


@contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Draw from ``seed`` on this device, and put the caller's random state back at the end.

    ``torch.manual_seed`` would seed every other device too, whose states nobody puts back.
    """
    with preserved(device):
        set_random_state(device, seeded_state(device, seed))
        yield
