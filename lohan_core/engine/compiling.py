"""Compiling a model's layers before anything is measured or reserved, where the config wants them compiled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lohan_core.model.cut import CutModel
from lohan_core.model.keep import nothing_saved
from lohan_core.model.rng import seeded
from lohan_core.progress import Report

__all__ = ["compile_layers"]


def compile_layers(model: CutModel, micro_batches: Sequence[Mapping[str, Tensor]], report: Report) -> None:
    """Compile each kind of layer for micro-batches like these, and for such as need no mask.

    Evaluations run the layers as they are, which is equal to rounding: their rows have lengths of their own.

    Args:
        model: the cut model, its buffers on the device that computes.
        micro_batches: as for its prelude.
        report: told how many are done.

    Raises:
        ConfigError: a layer cannot be compiled, or computes something else then.
    """
    if model.compiled is None:
        return
    wanted = [*micro_batches, _without_mask(micro_batches[0])]
    with seeded(model.device, 0):
        weights = model.random_weights(0)
        for done, micro_batch in enumerate(wanted):
            report("compiling layers", done, len(wanted))
            inputs = {name: tensor.to(model.device) for name, tensor in micro_batch.items()}
            with nothing_saved():
                hidden, calls = model.prelude(weights, inputs)
            for block in model.layers:
                model.prepare(block, hidden.detach().contiguous().requires_grad_(), calls[block - 1])
    report("compiling layers", len(wanted), len(wanted))


def _without_mask(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Make a micro-batch of whole rows, each one document."""
    changed = dict(inputs)
    if "attention_mask" in inputs:
        changed["attention_mask"] = torch.ones_like(inputs["attention_mask"])
    if "position_ids" in inputs:
        ids = inputs["position_ids"]
        changed["position_ids"] = torch.arange(ids.shape[-1], device=ids.device).expand_as(ids)
    return changed
