"""How much memory a piece of work takes at its peak, beside what was there before."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lohan_core.model.keep import storage_of

__all__ = ["peak_bytes"]


def peak_bytes(work: Callable[[], None], device: torch.device) -> int:
    """Run ``work`` and return the most bytes that its tensors took at once.

    On a GPU the allocator is asked, which sees workspaces too; elsewhere, for fake tensors too, storages are counted as
    operators make them and as they are let go.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    counter = _StorageCounter()
    with counter:
        work()
    return counter.peak_bytes


class _StorageCounter(TorchDispatchMode):
    """Adds up the storages that come, and takes off those that go."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch does not annotate it
        self.peak_bytes = 0
        self._live: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run one operator and count what it made."""
        outputs = func(*args, **(kwargs or {}))
        given = {storage_of(value) for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)}
        for made in tree_leaves(outputs):
            if isinstance(made, Tensor) and storage_of(made) not in given:
                self._count(made)
        return outputs

    def _count(self, made: Tensor) -> None:
        """Count a fresh storage until nothing holds it any more."""
        identity = storage_of(made)
        if identity in self._live:
            return
        storage = made.untyped_storage()
        self._live[identity] = storage.nbytes()
        weakref.finalize(storage, self._live.pop, identity, None)
        self.peak_bytes = max(self.peak_bytes, sum(self._live.values()))
