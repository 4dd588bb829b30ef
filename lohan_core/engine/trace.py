"""Looking at each kind of block once: its operators, their outputs' bytes, their FLOPs and their time.

Time is measured, or estimated from FLOPs and bytes: then tensors without memory behind them (torch's fake tensors) do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import torch
from attrs import define, evolve, field, frozen
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

from lohan_core.engine.packing import stored_bytes
from lohan_core.engine.peak import peak_bytes
from lohan_core.model.cut import CutModel, LayerCall
from lohan_core.model.keep import Kept, OperatorCounter, is_keepable, mutated_storages, nothing_saved, storage_of
from lohan_core.model.rng import preserved
from lohan_core.profile import BlockProfile, Candidate, Role

__all__ = ["Estimate", "trace_model"]

LEAST_LOOKS, MOST_LOOKS = 4, 40
LOOK_SECONDS = 0.15
"""A block is looked at for about so long: on a busy machine most looks are of something else."""

Estimate: TypeAlias = Callable[[float, int], float]
"""From an operator's FLOPs, and the bytes that it reads and writes, to its seconds."""


@define
class _Operators(OperatorCounter):
    """Runs a block operator by operator and notes what each makes."""

    device: torch.device
    estimate: Estimate | None = None
    candidates: dict[int, Candidate] = field(factory=dict)
    flops: float = 0.0
    times: list[float] = field(factory=list)
    output_bytes: int = 0
    _storages: dict[int, int] = field(factory=dict)
    _alive: list[Tensor] = field(factory=list)

    def __attrs_pre_init__(self) -> None:
        super().__init__()

    @property
    def seconds(self) -> float:
        """Time of all operators."""
        return sum(self.times)

    def run(self, index: int, func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run, time and weigh one operator."""
        self._wait()
        began = time.perf_counter()
        outputs = func(*args, **kwargs)
        self._wait()
        seconds = time.perf_counter() - began
        flops = _count_flops(func, args, kwargs, outputs)
        if self.estimate is not None:
            seconds = self.estimate(flops, _moved_bytes(func, args, kwargs, outputs))
        self.times.append(seconds)
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
    """Count an operator's FLOPs by torch's formulas, and where those are not enough; 0 for one that has none."""
    operator = func.overloadpacket
    if operator.__name__ == "_grouped_mm":  # experts: each row has the product with one matrix of a stack
        return 2.0 * float(outputs.numel() * args[0].shape[-1])
    if operator.__name__.startswith("_scaled_dot_product"):
        # Every kernel does the same products; torch has no formula for the CPU's, and those that it has refuse keys and
        # values of fewer heads than the queries', each of which attends all the same.
        operator = torch.ops.aten._scaled_dot_product_flash_attention  # noqa: SLF001 - a public operator
        query, *pair = args[:3]
        grouped = [torch.empty((*query.shape[:2], *tensor.shape[2:]), device="meta") for tensor in pair]
        args = (query, *grouped, *args[3:])
    count = flop_registry.get(operator)
    return float(count(*args, **kwargs, out_val=outputs)) if count else 0.0


def _moved_bytes(func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any], outputs: Any) -> int:
    """Count the bytes that an operator reads and writes: nothing for one that only looks at its input otherwise."""
    schema = func._schema  # noqa: SLF001 - torch offers no public way to a schema
    aliases = any(result.alias_info is not None for result in schema.returns)
    if (aliases and not schema.is_mutable) or func.overloadpacket.__name__ in {"_unsafe_view", "empty", "empty_like"}:
        return 0
    tensors = [value for value in tree_leaves((args, kwargs, outputs)) if isinstance(value, Tensor)]
    # What is expanded is read once: its storage is smaller than its shape.
    return sum(min(t.numel() * t.element_size(), t.untyped_storage().nbytes()) for t in tensors)


@frozen(kw_only=True)
class _Look:
    """What one look at a block found."""

    flops: float
    seconds: float
    backward_seconds: float
    transient_bytes: int
    candidates: tuple[Candidate, ...] = ()


def trace_model(
    model: CutModel, inputs: Mapping[str, Tensor], device: torch.device, estimate: Estimate | None = None
) -> tuple[BlockProfile, ...]:
    """Profile every block on one micro-batch, looking at identical layers once.

    Weights are drawn at random for the look: what is measured does not depend on them, but for a model whose control
    flow does (experts), where any draw is as good as another.

    Args:
        model: the cut model, its buffers on ``device``.
        inputs: one micro-batch, with ``labels``.
        device: where the run computes.
        estimate: gives the seconds of an operator instead of a stopwatch; then ``model`` and ``inputs`` may be fake.
    """
    inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
    look = _Looker(model, device, estimate)
    with preserved(device):
        torch.manual_seed(0)
        views = model.random_weights(0)
        with nothing_saved():
            hidden, calls = model.prelude(views, inputs)
        hidden = hidden.detach().contiguous()
        looks: dict[Any, tuple[_Look, Tensor]] = {}
        found = [look.at_prelude(inputs)]
        input_bytes = [0]
        for index in model.layers:
            call = calls[index - 1]
            # A layer may return another dtype than it takes: behind Mamba's first, the hidden state is fp32.
            kind = model.kind_of(index, call), hidden.dtype
            if kind not in looks:
                looks[kind] = look.at_layer(index, hidden, call)
            input_bytes.append(hidden.numel() * hidden.element_size())
            seen, hidden = looks[kind]
            found.append(seen)
        input_bytes.append(hidden.numel() * hidden.element_size())
        found.append(look.at_postlude(inputs, hidden))
    roles = [Role.PRELUDE, *(Role.LAYER for _ in model.layers), Role.POSTLUDE]
    return tuple(
        BlockProfile(
            name=block.name,
            role=role,
            elements=block.elements,
            input_bytes=entering,
            flops=seen.flops,
            seconds=seen.seconds,
            backward_seconds=seen.backward_seconds,
            transient_bytes=seen.transient_bytes,
            borrows=tuple(sorted({entry.owner for entry in block.borrowed})),
            candidates=seen.candidates,
        )
        for block, role, entering, seen in zip(model.blocks, roles, input_bytes, found, strict=True)
    )


@frozen
class _Looker:
    """Looks at one block at a time."""

    model: CutModel
    device: torch.device
    estimate: Estimate | None

    def at_prelude(self, inputs: Mapping[str, Tensor]) -> _Look:
        """Look at the prelude: whole, since nothing of it is kept."""
        views = self.model.random_weights(0)
        return self._at_edge(views, lambda: self.model.prelude(views, inputs)[0])

    def at_postlude(self, inputs: Mapping[str, Tensor], hidden: Tensor) -> _Look:
        """Look at the postlude, likewise whole."""
        index = len(self.model.blocks) - 1
        views = self.model.random_weights(index)
        hidden = hidden.detach().requires_grad_()
        return self._at_edge({**views, "": hidden}, lambda: self.model.postlude(views, inputs, hidden))

    def at_layer(self, index: int, hidden: Tensor, call: LayerCall) -> tuple[_Look, Tensor]:
        """Look at a layer, operator by operator; the hidden state that it returns is what the next one takes."""
        views = self.model.random_weights(index)
        hidden = hidden.detach().requires_grad_()

        def run() -> Tensor:
            return self.model.layer(index, views, hidden, call)

        leaves = {**views, "": hidden}
        operators, output = self._count(run)
        seconds, candidates = self._timed(operators, run)
        look = _Look(
            flops=operators.flops,
            seconds=seconds,
            backward_seconds=self._backward_seconds(leaves, run, seconds),
            transient_bytes=self._transient(leaves, run, operators.output_bytes),
            candidates=candidates,
        )
        return look, output.detach().contiguous()

    def _at_edge(self, leaves: Mapping[str, Tensor], run: Callable[[], Tensor]) -> _Look:
        operators, _ = self._count(run)
        seconds = operators.seconds if self.estimate is not None else self._whole_seconds(_saving_nothing(run))
        return _Look(
            flops=operators.flops,
            seconds=seconds,
            backward_seconds=self._backward_seconds(leaves, run, seconds),
            transient_bytes=self._transient(leaves, run, 2 * operators.output_bytes),
        )

    def _timed(self, first: _Operators, run: Callable[[], Tensor]) -> tuple[float, tuple[Candidate, ...]]:
        """Return a block's seconds, and its candidates with their part of them.

        Operators are timed one by one, each by the shortest of several looks. One by one they take longer than in a
        row, where the host runs ahead of the device, so their times are scaled to that of the block as a whole.
        """
        candidates = [first.candidates[index] for index in sorted(first.candidates)]
        if self.estimate is not None:
            return first.seconds, tuple(candidates)
        looks = [self._count(run)[0] for _ in _looks()]
        shortest = [min(look.times[index] for look in looks) for index in range(len(first.times))]
        whole = self._whole_seconds(_saving_nothing(run))
        scale = whole / sum(shortest)
        return whole, tuple(evolve(c, seconds=shortest[c.index] * scale) for c in candidates)

    def _backward_seconds(
        self, leaves: Mapping[str, Tensor], run: Callable[[], Tensor], forward_seconds: float
    ) -> float:
        """Time a backward without its recomputation."""
        if self.estimate is not None:
            return 2 * forward_seconds
        return max(0.0, self._whole_seconds(_with_backward(leaves, run)) - forward_seconds)

    def _whole_seconds(self, run: Callable[[], object]) -> float:
        """Time something warm, the shortest of several rounds of two in a row."""
        rounds = []
        run()
        for _ in _looks():
            self._wait()
            began = time.perf_counter()
            run()
            run()
            self._wait()
            rounds.append((time.perf_counter() - began) / 2)
        return min(rounds)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _count(self, run: Callable[[], Tensor]) -> tuple[_Operators, Tensor]:
        operators = _Operators(self.device, self.estimate)
        with nothing_saved(), operators:
            output = run()
        return operators, output

    def _transient(self, leaves: Mapping[str, Tensor], run: Callable[[], Tensor], output_bytes: int) -> int:
        """Find the peak of one backward with recomputation.

        Where the CPU really computes, a backward only for this would take as long as the rest of the look: there
        ``output_bytes`` stands for it.
        """
        if self.estimate is None and self.device.type == "cpu":
            return output_bytes

        return peak_bytes(_with_backward(leaves, run), self.device)


def _looks() -> Iterator[None]:
    """Yield for as long as something should be looked at."""
    began = time.perf_counter()
    for look in range(MOST_LOOKS):
        if look >= LEAST_LOOKS and time.perf_counter() - began > LOOK_SECONDS:
            return
        yield


def _saving_nothing(run: Callable[[], Tensor]) -> Callable[[], None]:
    def forward() -> None:
        with nothing_saved():
            run()

    return forward


def _with_backward(leaves: Mapping[str, Tensor], run: Callable[[], Tensor]) -> Callable[[], None]:
    def forward_and_backward() -> None:
        output = run()
        torch.autograd.grad(output, list(leaves.values()), torch.ones_like(output), allow_unused=True)

    return forward_and_backward
