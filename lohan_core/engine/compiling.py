"""Compiling a model's layers before anything is measured or reserved, where the config wants them compiled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from lohan_core.engine.parts import Report
from lohan_core.model.cut import CutModel
from lohan_core.model.keep import nothing_saved
from lohan_core.model.rng import seeded

__all__ = ["compile_layers"]


def compile_layers(
    model: CutModel, micro_batches: Sequence[Mapping[str, Tensor]], report: Report, *, evaluates: bool = False
) -> None:
    """Compile each kind of layer for micro-batches like these: some may have a mask and others none.

    Args:
        model: the cut model, its buffers on the device that computes.
        micro_batches: as for its prelude.
        report: told how many are done.
        evaluates: whether layers are to run without dropout too.

    Raises:
        ConfigError: a layer cannot be compiled, or computes something else then.
    """
    if model.compiled is None:
        return
    for done, micro_batch in enumerate(micro_batches):
        report("compiling layers", done, len(micro_batches))
        inputs = {name: tensor.to(model.device) for name, tensor in micro_batch.items()}
        _compile_for(model, inputs)
        if evaluates:
            model.model.eval()
            try:
                _compile_for(model, inputs)
            finally:
                model.model.train()
    report("compiling layers", len(micro_batches), len(micro_batches))


def _compile_for(model: CutModel, inputs: Mapping[str, Tensor]) -> None:
    with seeded(model.device, 0), nothing_saved():
        hidden, calls = model.prelude(model.random_weights(0), inputs)
    for block in model.layers:
        model.prepare(block, hidden.detach().contiguous().requires_grad_(), calls[block - 1])
