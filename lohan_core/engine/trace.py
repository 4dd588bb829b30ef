"""Looking at each kind of block once: its operators, their outputs' bytes, their FLOPs and their time."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from attrs import define, field, frozen
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry

from lohan_core.engine.packing import stored_bytes
from lohan_core.model.cut import CutModel, LayerCall
from lohan_core.model.keep import Kept, OperatorCounter, is_keepable, mutated_storages, nothing_saved, storage_of
from lohan_core.model.rng import preserved
from lohan_core.profile import BlockProfile, Candidate, Role

__all__ = ["trace_model"]


@define
class _Operators(OperatorCounter):
    """Runs a block operator by operator and notes what each makes."""

    device: torch.device
    candidates: dict[int, Candidate] = field(factory=dict)
    flops: float = 0.0
    seconds: float = 0.0
    output_bytes: int = 0
    _storages: dict[int, int] = field(factory=dict)
    _alive: list[Tensor] = field(factory=list)

    def __attrs_pre_init__(self) -> None:
        super().__init__()

    def run(self, index: int, func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run, time and weigh one operator."""
        self._wait()
        began = time.perf_counter()
        outputs = func(*args, **kwargs)
        self._wait()
        seconds = time.perf_counter() - began
        flops = _count_flops(func, args, kwargs, outputs)
        self.seconds += seconds
        self.flops += flops
        for storage in mutated_storages(func, args, kwargs):
            self.candidates.pop(self._storages.pop(storage, -1), None)
        if is_keepable(func, outputs):
            self._note(index, func, outputs, flops, seconds)
        return outputs

    def _note(self, index: int, func: OpOverload, outputs: Any, flops: float, seconds: float) -> None:
        # An address names a storage only while it lives.
        kept = Kept(outputs=tree_map_only(Tensor, Tensor.detach, outputs))
        self._alive.extend(kept.tensors())
        size = stored_bytes(kept)
        self.output_bytes += size
        name = f"{func.overloadpacket.__name__}.{index}"
        self.candidates[index] = Candidate(index=index, operator=name, bytes=size, flops=flops, seconds=seconds)
        for tensor in kept.tensors():
            self._storages[storage_of(tensor)] = index

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _count_flops(func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any], outputs: Any) -> float:
    """Count an operator's FLOPs by torch's formulas; 0 for one that has none."""
    count = flop_registry.get(func.overloadpacket)
    if count is None:
        return 0.0
    if func.overloadpacket.__name__.startswith("_scaled_dot_product"):
        # The formulas refuse keys and values of fewer heads than the queries', each of which attends all the same.
        query, *pair = args[:3]
        grouped = [torch.empty((*query.shape[:2], *tensor.shape[2:]), device="meta") for tensor in pair]
        args = (query, *grouped, *args[3:])
    return float(count(*args, **kwargs, out_val=outputs))


@frozen
class _Look:
    """What one look at a block found."""

    flops: float
    seconds: float
    transient_bytes: int
    candidates: tuple[Candidate, ...] = ()


def trace_model(model: CutModel, inputs: Mapping[str, Tensor], device: torch.device) -> tuple[BlockProfile, ...]:
    """Profile every block on one micro-batch, looking at identical layers once.

    Weights are drawn at random for the look: what is measured does not depend on them, but for a model whose control
    flow does (experts), where any draw is as good as another.

    Args:
        model: the cut model, its buffers on ``device``.
        inputs: one micro-batch, with ``labels``.
        device: where the run computes.
    """
    inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
    with preserved(device):
        torch.manual_seed(0)
        views = model.random_weights(0)
        with nothing_saved():
            hidden, calls = model.prelude(views, inputs)
        hidden = hidden.detach().contiguous()
        input_bytes = hidden.numel() * hidden.element_size()
        looks: dict[Any, _Look] = {}
        profiles = [_edge(model, 0, inputs, hidden, device)]
        for index in model.layers:
            call = calls[index - 1]
            kind = model.kind_of(index, call)
            if kind not in looks:
                looks[kind] = _look_at_layer(model, index, hidden, call, device)
            look = looks[kind]
            profiles.append(
                BlockProfile(
                    name=model.blocks[index].name,
                    role=Role.LAYER,
                    elements=model.blocks[index].elements,
                    input_bytes=input_bytes,
                    flops=look.flops,
                    seconds=look.seconds,
                    transient_bytes=look.transient_bytes,
                    candidates=look.candidates,
                )
            )
        profiles.append(_edge(model, len(model.blocks) - 1, inputs, hidden, device))
    return tuple(profiles)


def _look_at_layer(model: CutModel, index: int, hidden: Tensor, call: LayerCall, device: torch.device) -> _Look:
    views = model.random_weights(index)
    hidden = hidden.detach().requires_grad_()
    best: _Operators | None = None
    for _ in range(2):  # the first pays for warming up
        operators = _Operators(device)
        with nothing_saved(), operators:
            model.layer(index, views, hidden, call)
        best = operators if best is None or operators.seconds < best.seconds else best
    assert best is not None  # noqa: S101 - the loop ran
    transient = best.output_bytes
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        output = model.layer(index, views, hidden, call)
        torch.autograd.grad(output, [hidden, *views.values()], torch.ones_like(output), allow_unused=True)
        transient = torch.cuda.max_memory_allocated(device) - before
    return _Look(best.flops, best.seconds, transient, tuple(best.candidates[i] for i in sorted(best.candidates)))


def _edge(
    model: CutModel, index: int, inputs: Mapping[str, Tensor], hidden: Tensor, device: torch.device
) -> BlockProfile:
    """Look at the prelude or the postlude: whole, since nothing of them is kept."""
    block = model.blocks[index]
    views = model.random_weights(index)
    operators = _Operators(device)
    with nothing_saved(), operators:
        if index == 0:
            model.prelude(views, inputs)
        else:
            model.postlude(views, inputs, hidden.detach().requires_grad_())
    return BlockProfile(
        name=block.name,
        role=Role.PRELUDE if index == 0 else Role.POSTLUDE,
        elements=block.elements,
        input_bytes=0 if index == 0 else hidden.numel() * hidden.element_size(),
        flops=operators.flops,
        seconds=operators.seconds,
        transient_bytes=2 * operators.output_bytes,
        borrows=tuple(sorted({entry.owner for entry in block.borrowed})),
    )
