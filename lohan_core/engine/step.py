"""One step: what is in flight during it, which tasks hand to each other beside the pools' slots; what it came to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING

import torch
from attrs import define, field, frozen
from torch import Tensor

from lohan_core.engine.packing import Packed
from lohan_core.model.keep import Kept, Occurrence
from lohan_core.model.layer_call import LayerCall
from lohan_core.model.rng import seeded_state
from lohan_core.schedule.timeline import Timeline

if TYPE_CHECKING:
    from lohan_core.data.batches import Batch

__all__ = ["Saved", "StepData", "StepResult", "UpdateTerms", "micro_batch_seed", "prepare_step"]


def micro_batch_seed(seed: int, step: int, micro_batch: int) -> int:
    """Derive the seed of one micro-batch's randomness.

    Each micro-batch draws from a stream of its own, carried from block to block: so dropout does not depend on the
    plan, nor on the order in which micro-batches pass, and a resumed run draws what the first would have.
    """
    digest = blake2b(f"{seed}/{step}/{micro_batch}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@define
class UpdateTerms:
    """What all updates of one step have in common: the step's number, its learning rate, and what clips gradients."""

    step: int
    lr: float
    gradient_factor: float = 1.0


@define
class Saved:
    """What one block keeps of one micro-batch for its backward.

    ``hidden`` is the block's input, None while it is off the GPU; ``kept`` the operators' outputs that are on the GPU;
    ``packed`` describes those that are off it. ``saves``: how many tensors autograd would have saved.
    """

    hidden: Tensor | None
    kept: dict[Occurrence, Kept]
    random_state: Tensor
    saves: int
    packed: Packed | None = None


@define(kw_only=True)
class StepData:
    """One step's data. Each entry is written by one task and read by tasks that come after it."""

    terms: UpdateTerms
    trains: bool = True
    """Whether a backward follows, for which blocks keep what they have seen; an evaluation needs nothing of it."""
    deferred: UpdateTerms | None = None
    """Those of the step before, if its deferred updates are done in this one."""
    speculates: bool = False
    """Whether the plan's speculative updates are made in this step's backward."""
    inputs: Sequence[Mapping[str, Tensor]] = ()
    """One micro-batch each, on the computing device."""
    weights: Sequence[float] = ()
    """Each micro-batch's share of the step's predicted tokens: the step's loss is the mean over all of them."""
    random: list[Tensor] = field(factory=list)
    """Each micro-batch's random state as its last block left it."""
    prelude_random: list[Tensor] = field(factory=list)
    calls: list[tuple[LayerCall, ...]] = field(factory=list)
    """Each micro-batch's layer arguments."""
    hidden: dict[int, Tensor] = field(factory=dict)
    """Micro-batch to the activation at the block boundary that forward has reached."""
    gradient: dict[int, Tensor] = field(factory=dict)
    """Micro-batch to the gradient at the block boundary that backward has reached."""
    saved: dict[tuple[int, int], Saved] = field(factory=dict)
    losses: list[Tensor] = field(factory=list)
    norms: dict[int, Tensor] = field(factory=dict)
    """Block to the norm of its G16, a scalar on the computing device."""
    written: set[str] = field(factory=set)
    """Parameters whose gradient has been written this step: the first micro-batch writes, the others add."""
    gradient_norm: float = float("nan")

    @property
    def loss(self) -> float:
        """The mean loss over all predicted tokens, once the losses are known.

        Of a micro-batch that has none it is NaN, and nothing of the step's.
        """
        return sum(weight * float(loss) for weight, loss in zip(self.weights, self.losses, strict=True) if weight)


@frozen(kw_only=True)
class StepResult:
    """What one step came to.

    ``loss`` is the mean over all predicted tokens of the batch, before the update; ``gradient_norm`` the global one,
    before clipping. Bytes are those that the storage moved in the step. ``clipped``: whether gradients were scaled
    down. ``speculated``: whether the plan's speculative updates were made before that was known; for nothing, if so.
    """

    step: int
    loss: float
    gradient_norm: float
    lr: float
    seconds: float
    storage_read_bytes: int
    storage_write_bytes: int
    timeline: Timeline
    clipped: bool
    speculated: bool


def prepare_step(
    batch: Batch, terms: UpdateTerms, *, seed: int, device: torch.device, trains: bool, deferred: UpdateTerms | None
) -> StepData:
    """Bring a batch to the computing device, and give each micro-batch its weight and its randomness.

    Raises:
        ValueError: ``batch`` predicts no token.
    """
    total = sum(batch.loss_tokens)
    if not total:
        raise ValueError("no token of the batch is predicted: all labels after the first column are -100")
    return StepData(
        terms=terms,
        trains=trains,
        deferred=deferred,
        inputs=[{name: tensor.to(device) for name, tensor in inputs.items()} for inputs in batch.micro_batches],
        weights=[tokens / total for tokens in batch.loss_tokens],
        random=[seeded_state(device, micro_batch_seed(seed, terms.step, k)) for k in range(len(batch.micro_batches))],
    )
