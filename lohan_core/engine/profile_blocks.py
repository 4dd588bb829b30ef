"""Looking at each kind of block once: its operators, its time forward and backward, and the memory that it takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from attrs import evolve, frozen
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lohan_core.engine.operators import Estimate, Operators
from lohan_core.engine.peak import peak_bytes
from lohan_core.engine.stopwatch import (
    WARM_UP_SECONDS,
    looks,
    saving_nothing,
    sustain,
    whole_seconds,
    with_backward,
    with_gradients,
    without_gradients,
)
from lohan_core.model.cut import CutModel
from lohan_core.model.keep import Keeping, Occurrence, nothing_saved, storage_of
from lohan_core.model.layer_call import LayerCall
from lohan_core.model.replay import Replayer
from lohan_core.model.rng import get_random_state, preserved, seeded
from lohan_core.profile import BlockProfile, Candidate, Role

__all__ = ["arguments_bytes", "profile_blocks"]


@frozen(kw_only=True)
class _Look:
    """What one look at a block found."""

    flops: float
    seconds: float
    backward_seconds: float
    recomputed_flops: float
    recomputed_seconds: float
    transient_bytes: int
    candidates: tuple[Candidate, ...] = ()


def profile_blocks(
    model: CutModel,
    inputs: Mapping[str, Tensor],
    device: torch.device,
    estimate: Estimate | None = None,
    *,
    sums: bool = False,
    warm_up_seconds: float = WARM_UP_SECONDS,
) -> tuple[BlockProfile, ...]:
    """Profile every block on one micro-batch, looking at identical layers once.

    Weights are drawn at random for the look: what is measured does not depend on them, but for a model whose control
    flow does (experts), where any draw is as good as another.

    Args:
        model: the cut model, its buffers on ``device``.
        inputs: one micro-batch, with ``labels``.
        device: where the run computes.
        estimate: gives the seconds of an operator instead of a stopwatch; then ``model`` and ``inputs`` may be fake.
        sums: whether backward adds its gradients, in fp32, to those of other micro-batches.
        warm_up_seconds: how long a GPU works on each block before it is timed, and while it is.
    """
    inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
    look = _Looker(model, device, estimate, sums, warm_up_seconds)
    with seeded(device, 0):
        views = model.random_weights(0)
        with nothing_saved():
            hidden, calls = model.prelude(views, inputs)
        hidden = hidden.detach().contiguous()
        seen_of: dict[Any, tuple[_Look, Tensor]] = {}
        found = [look.at_prelude(inputs)]
        input_bytes = [0]
        for index in model.layers:
            call = calls[index - 1]
            # A layer may return another dtype than it takes: behind Mamba's first, the hidden state is fp32.
            kind = model.kind_of(index, call), hidden.dtype
            if kind not in seen_of:
                seen_of[kind] = look.at_layer(index, hidden, call)
            input_bytes.append(hidden.numel() * hidden.element_size())
            seen, hidden = seen_of[kind]
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
            recomputed_flops=seen.recomputed_flops,
            recomputed_seconds=seen.recomputed_seconds,
            transient_bytes=seen.transient_bytes,
            borrows=tuple(sorted({entry.owner for entry in block.borrowed})),
            candidates=seen.candidates,
        )
        for block, role, entering, seen in zip(model.blocks, roles, input_bytes, found, strict=True)
    )


def arguments_bytes(model: CutModel, micro_batches: Iterable[Mapping[str, Tensor]], device: torch.device) -> int:
    """Find what a micro-batch's inputs, and the arguments that its layers are given, take: the most of several.

    Layers share masks and tables of positions, so each storage counts once; the model's own buffers do not count, since
    there is one of each for all micro-batches.

    Args:
        model: the cut model, its buffers on ``device``.
        micro_batches: as for its prelude; some may need a mask and others none.
        device: where the run computes.
    """
    return max(_arguments_bytes(model, {name: t.to(device) for name, t in m.items()}) for m in micro_batches)


def _arguments_bytes(model: CutModel, inputs: Mapping[str, Tensor]) -> int:
    with preserved(model.device), torch.no_grad():
        _, calls = model.prelude({}, inputs)
    held = [inputs, *((call.arguments, dict(call.keywords)) for call in calls)]
    storages = {storage_of(t): t.untyped_storage().nbytes() for t in tree_leaves(held) if isinstance(t, Tensor)}
    for buffer in model.model.buffers():
        storages.pop(storage_of(buffer), None)
    return sum(storages.values())


@frozen
class _Looker:
    """Looks at one block at a time."""

    model: CutModel
    device: torch.device
    estimate: Estimate | None
    sums: bool
    warm_up_seconds: float

    def at_prelude(self, inputs: Mapping[str, Tensor]) -> _Look:
        """Look at the prelude: whole, since nothing of it is kept."""
        views = self.model.random_weights(0)

        def run() -> Tensor:
            return self.model.prelude(views, inputs)[0]

        return self._at_edge(views, run, saving_nothing(run))

    def at_postlude(self, inputs: Mapping[str, Tensor], hidden: Tensor) -> _Look:
        """Look at the postlude, likewise whole.

        Forward is what finds the loss only, as in an evaluation: with gradients wanted, a loss over slices of tokens
        computes them at once, and that is part of backward here.
        """
        index = len(self.model.blocks) - 1
        views = self.model.random_weights(index)
        hidden = hidden.detach().requires_grad_()

        def run() -> Tensor:
            return self.model.postlude(views, inputs, hidden)

        return self._at_edge({**views, "": hidden}, run, without_gradients(run))

    def at_layer(self, index: int, hidden: Tensor, call: LayerCall) -> tuple[_Look, Tensor]:
        """Look at a layer, operator by operator; the hidden state that it returns is what the next one takes."""
        views = self.model.random_weights(index)
        hidden = hidden.detach().requires_grad_()

        def run() -> Tensor:
            return self.model.layer(index, views, hidden, call)

        leaves = {**views, "": hidden}
        self.model.prepare(index, hidden, call)
        operators, output = self._count(run)
        replayer, state = Replayer(self.device), get_random_state(self.device)

        def run_again() -> Tensor:
            return replayer.run(index, run, {}, operators.saves.count, state)

        if self.estimate is None:
            sustain(with_backward(leaves, run_again), self.device, self.warm_up_seconds)
        seconds, times = self._timed(operators, run)
        recomputed = max(0.0, seconds - sum(times[index] for index in operators.left_out))
        look = _Look(
            flops=operators.flops,
            seconds=seconds,
            backward_seconds=self._backward_seconds(leaves, run_again, seconds, recomputed),
            recomputed_flops=operators.flops - sum(operators.left_out.values()),
            recomputed_seconds=recomputed,
            transient_bytes=self._transient(leaves, run_again, operators.output_bytes),
            candidates=self._candidates(operators, seconds, times, run),
        )
        return look, output.detach().contiguous()

    def _at_edge(self, leaves: Mapping[str, Tensor], run: Callable[[], Tensor], forward: Callable[[], None]) -> _Look:
        operators = Operators(self.device, self.estimate, notes_candidates=False)
        with operators:
            forward()
        seconds = operators.seconds if self.estimate is not None else self._time(forward)
        return _Look(
            flops=operators.flops,
            seconds=seconds,
            backward_seconds=self._backward_seconds(leaves, run, seconds, seconds),
            recomputed_flops=operators.flops,
            recomputed_seconds=seconds,
            transient_bytes=peak_bytes(with_backward(leaves, run), self.device),
        )

    def _timed(self, first: Operators, run: Callable[[], Tensor]) -> tuple[float, list[float]]:
        """Return a block's seconds, and each operator's part of them.

        Operators are timed one by one, each by the shortest of several looks. Together they may take another time than
        the block as a whole, in which a GPU may wait for the host, or a CPU finds other things in its caches: so their
        times are scaled to that. But what is compiled is no operator, and has the rest of the time.
        """
        if self.estimate is not None:
            return first.seconds, first.times
        times = [self._count(run)[0].times for _ in looks()]
        shortest = [min(look[index] for look in times) for index in range(len(first.times))]
        whole = self._time(saving_nothing(run))
        scale = whole / (sum(shortest) or whole)
        if self.model.compiled is not None:
            scale = min(1.0, scale)
        return whole, [seconds * scale for seconds in shortest]

    def _candidates(
        self, operators: Operators, whole: float, times: Sequence[float], run: Callable[[], Tensor]
    ) -> tuple[Candidate, ...]:
        """Return what it may pay to keep: not what backward leaves out anyway."""
        found = [c for index, c in sorted(operators.candidates.items()) if index not in operators.left_out]
        keeping = self._keeping_seconds(frozenset(c.occurs_as for c in found), run, whole)
        return tuple(evolve(c, seconds=times[c.index], keeping_seconds=keeping) for c in found)

    def _keeping_seconds(self, candidates: frozenset[Occurrence], run: Callable[[], Tensor], whole: float) -> float:
        """Find what forward takes longer for each output that it keeps: all kept, over none.

        That is the host's time, and counts on a GPU that waits for it; a CPU computes in it.
        """
        if self.device.type != "cuda" or self.estimate is not None or not candidates:
            return 0.0

        def keep_all() -> None:
            with nothing_saved(), Keeping(candidates, self.device):
                run()

        return max(0.0, self._time(keep_all) - whole) / len(candidates)

    def _time(self, run: Callable[[], object]) -> float:
        return whole_seconds(run, self.device, self.warm_up_seconds)

    def _backward_seconds(
        self, leaves: Mapping[str, Tensor], run: Callable[[], Tensor], forward_seconds: float, recomputed: float
    ) -> float:
        """Time a backward without what it recomputes, with what becomes of its gradients on the same lane."""
        if self.estimate is not None:
            return 2 * forward_seconds
        return max(0.0, self._time(with_gradients(leaves, run, sums=self.sums)) - recomputed)

    def _count(self, run: Callable[[], Tensor]) -> tuple[Operators, Tensor]:
        with nothing_saved() as saves:
            operators = Operators(self.device, self.estimate, saves)
            with operators:
                output = run()
        operators.forget()
        return operators, output

    def _transient(self, leaves: Mapping[str, Tensor], run: Callable[[], Tensor], output_bytes: int) -> int:
        """Find the peak of one backward with recomputation.

        Where the CPU really computes, a backward only for this would take as long as the rest of the look: there
        ``output_bytes`` stands for it.
        """
        if self.estimate is None and self.device.type == "cpu":
            return output_bytes

        return peak_bytes(with_backward(leaves, run), self.device)
