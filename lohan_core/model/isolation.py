"""Whether a model keeps packed documents apart: tried out on its layers, since no config says so."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lohan_core.model.cut import CutModel
from lohan_core.model.rng import seeded

__all__ = ["isolates_documents"]


def isolates_documents(model: CutModel, inputs: Mapping[str, Tensor]) -> bool:
    """Change a row's first document and see if each kind of layer's output for the second stays as it was.

    Args:
        model: the cut model.
        inputs: one packed micro-batch, with ``position_ids`` that begin again from 0 at each document.

    Returns:
        False if the second document sees the first. True also where no row holds two documents.
    """
    inputs = {name: tensor.to(model.device) for name, tensor in inputs.items()}
    starts = (inputs["position_ids"] == 0).nonzero().tolist()
    row, start = next(((row, start) for row, start in starts if start > 0), (0, 0))
    if start == 0:
        return True
    model.model.eval()  # dropout would change the output too
    try:
        with seeded(model.device, 0), torch.no_grad():
            hidden, calls = model.prelude(model.random_weights(0), inputs)
            # Not by a constant, which a layer norm takes out again.
            changed = hidden.clone()
            changed[row, :start] += torch.randn_like(changed[row, :start])
            kinds = {model.kind_of(block, calls[block - 1]): block for block in reversed(model.layers)}
            for block in kinds.values():
                weights = model.random_weights(block)
                before = model.layer(block, weights, hidden, calls[block - 1])[row, start:]
                after = model.layer(block, weights, changed, calls[block - 1])[row, start:]
                if not torch.allclose(before, after, rtol=1e-3, atol=1e-6):
                    return False
    finally:
        model.model.train()
    return True
