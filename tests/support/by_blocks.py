"""Gradients of a cut model, block by block and by hand: what the engine does, without engine, schedule or buffers."""

from __future__ import annotations

import random
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lohan_core.model.cut import CutModel
from lohan_core.model.keep import Keeping, nothing_saved
from lohan_core.model.replay import Replayer
from lohan_core.model.rng import get_random_state, set_random_state

CPU = torch.device("cpu")


class _Half:
    """Holds every second operator or so that it is asked for."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice

    def __contains__(self, occurrence: object) -> bool:
        return self._dice.random() < 0.5


def gradients_by_blocks(
    cut: CutModel, model: PreTrainedModel, inputs: Mapping[str, Tensor], dice: random.Random
) -> tuple[Tensor, dict[str, Tensor]]:
    """Run forward and backward with the weights of ``model``, keeping every second operator or so.

    Returns:
        The loss, and gradients by name; parameters that none reaches are left out.
    """
    parameters = dict(model.named_parameters())

    def weights_of(index: int) -> dict[str, Tensor]:
        block = cut.blocks[index]
        names = [slot.name for slot in block.slots] + [entry.name for entry in block.borrowed]
        return {name: parameters[name].detach().requires_grad_() for name in names}

    gradients: dict[str, Tensor] = {}

    def backward(output: Tensor, hidden: Tensor | None, weights: Mapping[str, Tensor], above: Tensor | None) -> Tensor:
        wanted = ([] if hidden is None else [hidden]) + list(weights.values())
        found = list(torch.autograd.grad(output, wanted, above, allow_unused=True))
        below = found.pop(0) if hidden is not None else None
        for name, gradient in zip(weights, found, strict=True):
            if gradient is not None:
                gradients[name] = gradients[name] + gradient if name in gradients else gradient
        return below

    saved = []
    state = get_random_state(CPU)
    with nothing_saved():
        hidden, calls = cut.prelude(weights_of(0), inputs)
    for index in cut.layers:
        hidden = hidden.detach().contiguous()
        keeping = Keeping(_Half(dice), CPU)
        entered, drawn = hidden, get_random_state(CPU)
        with nothing_saved() as saves, keeping:
            hidden = cut.layer(index, weights_of(index), entered.requires_grad_(), calls[index - 1])
        saved.append((entered, drawn, keeping.kept, saves.count))
    hidden, weights = hidden.detach().contiguous().requires_grad_(), weights_of(len(cut.blocks) - 1)
    loss = cut.postlude(weights, inputs, hidden)
    above = backward(loss, hidden, weights, None)
    for index in reversed(cut.layers):
        entered, drawn, kept, saves = saved.pop()
        entered, weights = entered.detach().requires_grad_(), weights_of(index)
        run = partial(cut.layer, index, weights, entered, calls[index - 1])
        output = Replayer(CPU).run(index, run, kept, saves, drawn)
        above = backward(output, entered, weights, above)
    set_random_state(CPU, state)
    weights = weights_of(0)
    output, _ = cut.prelude(weights, inputs)
    backward(output, None, weights, above)
    return loss.detach(), gradients
