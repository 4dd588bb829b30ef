"""A block's operators, one by one: their time, their FLOPs, the bytes that they move, and what they make.

Time is measured, or estimated from FLOPs and bytes: then tensors without memory behind them (torch's fake tensors) do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from attrs import define, field
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

from lohan_core.engine.packing import TENSOR_ALIGNMENT, stored_bytes
from lohan_core.engine.stopwatch import Stopwatch, make_stopwatch
from lohan_core.model.keep import (
    ATTENTION,
    Kept,
    Occurrence,
    OperatorCounter,
    Saves,
    is_keepable,
    mutated_storages,
    storage_of,
)
from lohan_core.model.replay import can_be_left_out
from lohan_core.profile import Candidate

__all__ = ["Estimate", "Operators", "count_flops"]

Estimate: TypeAlias = Callable[[float, int], float]
"""From an operator's FLOPs, and the bytes that it reads and writes, to its seconds."""


@define
class Operators(OperatorCounter):
    """Runs a block operator by operator and notes what each makes; candidates only where there may be some.

    A candidate's seconds are its estimate: those that are measured are in :attr:`times`, when all is done. ``saves``
    is what counts the tensors that autograd asks to save of this forward.
    """

    device: torch.device
    estimate: Estimate | None = None
    saves: Saves = field(factory=Saves)
    notes_candidates: bool = True
    candidates: dict[int, Candidate] = field(factory=dict)
    flops: float = 0.0
    output_bytes: int = 0
    _ran: int = 0
    _stopwatch: Stopwatch = field(init=False)
    _estimates: list[float] = field(factory=list)
    _storages: dict[int, int] = field(factory=dict)
    _alive: list[Tensor] = field(factory=list)
    _saved_before: dict[int, tuple[int, float]] = field(factory=dict)
    """Of operators that can be left out: how many tensors had been saved before, and their FLOPs."""

    def __attrs_pre_init__(self) -> None:
        super().__init__()

    def __attrs_post_init__(self) -> None:
        self._stopwatch = make_stopwatch(self.device)

    @property
    def times(self) -> list[float]:
        """Each operator's seconds, in order. Where a GPU's are measured, this waits for them."""
        return self._stopwatch.seconds() if self.estimate is None else self._estimates

    @property
    def seconds(self) -> float:
        """Time of all operators."""
        return sum(self.times)

    def run(self, occurrence: Occurrence, func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run, time and weigh one operator."""
        self._stopwatch.start()
        outputs = func(*args, **kwargs)
        self._stopwatch.stop()
        flops = count_flops(func, args, kwargs, outputs)
        seconds = 0.0
        if self.estimate is not None:
            seconds = self.estimate(flops, moved_bytes(func, args, kwargs, outputs))
            self._estimates.append(seconds)
        if can_be_left_out(func, args):
            self._saved_before[self._ran] = self.saves.count, flops
        self.flops += flops
        self._ran += 1
        for storage in mutated_storages(func, args, kwargs):
            self.candidates.pop(self._storages.pop(storage, -1), None)
        if self.notes_candidates and is_keepable(func, args, kwargs, outputs):
            self._note(occurrence, outputs, flops, seconds)
        return outputs

    def note_moved(self, tensors: Sequence[Tensor]) -> None:
        """Count what no operator shows, where time is estimated: something that reads and writes these tensors."""
        if self.estimate is not None:
            self._estimates.append(self.estimate(0.0, sum(map(_bytes_of, tensors))))
            self._ran += 1

    def _note(self, occurrence: Occurrence, outputs: Any, flops: float, seconds: float) -> None:
        # An address names a storage only while it lives.
        kept = Kept(outputs=tree_map_only(Tensor, Tensor.detach, outputs))
        self._alive.extend(kept.tensors())
        size = stored_bytes(kept)
        self.output_bytes += size
        if occurrence[0] == ATTENTION:
            size += _room_for_other_kernels(kept)
        index = self._ran - 1
        operator, before = occurrence
        self.candidates[index] = Candidate(
            index=index, operator=operator, occurrence=before, bytes=size, flops=flops, seconds=seconds
        )
        for tensor in kept.tensors():
            self._storages[storage_of(tensor)] = index

    @property
    def left_out(self) -> dict[int, float]:
        """Operators that backward leaves out, and their FLOPs: [Note: the end of a layer] in model/replay.py."""
        return {index: flops for index, (saved, flops) in self._saved_before.items() if saved == self.saves.count}

    def forget(self) -> None:
        """Let go of all outputs: together they are as much as the plan keeps that keeps everything."""
        self._alive.clear()
        self._storages.clear()


def _room_for_other_kernels(kept: Kept) -> int:
    """Bytes that another kernel of attention returns beside the same values: other masks have other kernels.

    Some pad each head's logsumexp (the second output, rows x heads x tokens) to a multiple of 32, and some have a seed
    more. Without a place for them, what they return would not be kept.
    """
    seeds = 4 * TENSOR_ALIGNMENT
    _, *beside = kept.tensors()
    if not beside or beside[0].dim() < 3:  # flash-attn's, of all documents in one line
        return seeds
    rows, heads, tokens = beside[0].shape[:3]
    return seeds + rows * heads * (-tokens % 32) * beside[0].element_size()


def count_flops(func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any], outputs: Any) -> float:
    """Count an operator's FLOPs by torch's formulas, and where those are not enough; 0 for one that has none."""
    operator = func.overloadpacket
    if operator.__name__ == "_grouped_mm":  # experts: each row has the product with one matrix of a stack
        return 2.0 * float(outputs.numel() * args[0].shape[-1])
    if func.namespace == "flash_attn":
        # Of rows, or of all documents in one line: there, each counts as long as the longest may be.
        query, key = args[:2]
        return 4.0 * float(query.numel() * (key.shape[1] if query.dim() == 4 else args[6]))
    if operator.__name__.startswith("_scaled_dot_product"):
        # Every kernel does the same products; torch has no formula for the CPU's, and those that it has refuse keys and
        # values of fewer heads than the queries', each of which attends all the same.
        operator = torch.ops.aten._scaled_dot_product_flash_attention  # noqa: SLF001 - a public operator
        query, *pair = args[:3]
        grouped = [torch.empty((*query.shape[:2], *tensor.shape[2:]), device="meta") for tensor in pair]
        args = (query, *grouped, *args[3:])
    count = flop_registry.get(operator)
    return float(count(*args, **kwargs, out_val=outputs)) if count else 0.0


def moved_bytes(func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any], outputs: Any) -> int:
    """Count the bytes that an operator reads and writes: nothing for one that only looks at its input otherwise."""
    schema = func._schema  # noqa: SLF001 - torch offers no public way to a schema
    aliases = any(result.alias_info is not None for result in schema.returns)
    if (aliases and not schema.is_mutable) or func.overloadpacket.__name__ in {"_unsafe_view", "empty", "empty_like"}:
        return 0
    tensors = [value for value in tree_leaves((args, kwargs, outputs)) if isinstance(value, Tensor)]
    return sum(map(_bytes_of, tensors))


def _bytes_of(tensor: Tensor) -> int:
    """Count a tensor's bytes; what is expanded is read once: its storage is smaller than its shape."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
