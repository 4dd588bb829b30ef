"""What is in flight during one step: everything that tasks hand to each other beside the pools' slots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b

import torch
from attrs import define, field
from torch import Tensor

from lohan_core.engine.packing import Packed
from lohan_core.model.keep import Kept, Occurrence
from lohan_core.model.layer_call import LayerCall

__all__ = ["Saved", "StepData", "UpdateTerms", "micro_batch_seed"]


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


def as_step_inputs(micro_batches: Sequence[Mapping[str, Tensor]], device: torch.device) -> list[dict[str, Tensor]]:
    """Bring micro-batches to the computing device."""
    return [{name: tensor.to(device) for name, tensor in batch.items()} for batch in micro_batches]
