"""Whether a model keeps packed documents apart: tried out on one layer, since no config says so."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lohan_core.model.cut import CutModel
from lohan_core.model.rng import preserved

__all__ = ["isolates_documents"]


def isolates_documents(model: CutModel, inputs: Mapping[str, Tensor]) -> bool:
    """Change a row's first document and see if the first layer's output for the second stays as it was.

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
        with preserved(model.device), torch.no_grad():
            torch.manual_seed(0)
            hidden, calls = model.prelude(model.random_weights(0), inputs)
            weights = model.random_weights(1)
            before = model.layer(1, weights, hidden, calls[0])
            changed = hidden.clone()
            changed[row, :start] += 1.0
            after = model.layer(1, weights, changed, calls[0])
    finally:
        model.model.train()
    return torch.allclose(before[row, start:], after[row, start:], rtol=1e-2, atol=1e-3)
