"""First weights as the architecture itself draws them: for training from scratch, or to try a model without its files.

[Note: drawing by the block] ``from_config`` draws all parameters at once, in memory for the whole model. Here the
parameters of one block at a time take the place of the skeleton's meta tensors, the architecture's own
``_init_weights`` is called on the modules around them, children first, as transformers does, and the meta tensors are
put back. On the modules of other blocks it finds meta tensors only, which it cannot change.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from lohan_core.errors import ModelError
from lohan_core.layout import BlockLayout
from lohan_core.model.rng import seeded
from lohan_core.weights.checkpoint import tied_names

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["RandomWeights"]


class RandomWeights:
    """Draws the parameters of a skeleton: the same ones each time on the same kind of device.

    Attributes:
        path: the model directory, of which no weights are read.
        model: the skeleton.
        tied: all names of every parameter that has several, under each of them.
    """

    def __init__(self, path: Path, model: PreTrainedModel, *, seed: int, device: torch.device) -> None:
        """Draw nothing yet.

        Args:
            path: the model directory.
            model: the skeleton.
            seed: other seeds give other weights.
            device: draws the numbers; a GPU does it in no time, and draws others than a CPU.
        """
        self.path = path
        self.model = model
        self.tied = tied_names(model)
        self._seed = seed
        self._device = device

    def fingerprint(self) -> str:
        """Say that they are random, and of which seed."""
        return f"random, of seed {self._seed}"

    def read_block(self, layout: BlockLayout, flat: torch.Tensor) -> None:
        """Draw a block's parameters into ``flat``, shape (layout.elements,); padding becomes zero.

        Raises:
            ModelError: the architecture leaves one of them without a first value.
        """
        flat.zero_()
        drawn = self._draw([slot.name for slot in layout.slots])
        for slot in layout.slots:
            flat[slot.offset : slot.stop].view(slot.shape).copy_(drawn[slot.name])

    def load_buffers(self) -> None:
        """Leave the skeleton's buffers as the model has made them: that is how they begin."""

    def untrained(self, written: Collection[str], dtype: torch.dtype) -> Iterator[dict[str, torch.Tensor]]:
        """Yield the parameters that are not among ``written``, drawn as the others are.

        Buffers are made anew by whoever loads the model.
        """
        known = {tied for name in written for tied in self.tied.get(name, (name,))}
        for name, _ in self.model.named_parameters():
            if name not in known:
                yield {name: self._draw([name])[name].to("cpu", dtype)}

    def _draw(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """Draw parameters, fp32, on the device. The random state of the process stays as it was."""
        if not names:
            return {}
        digest = hashlib.blake2b(f"{self._seed} {names[0]}".encode(), digest_size=8).digest()
        seed = int.from_bytes(digest) >> 1
        # The CPU too: some architectures draw there, and copy.
        with (
            seeded(torch.device("cpu"), seed),
            seeded(self._device, seed),
            _in_place_of_meta(self.model, names, self._device) as drawn,
        ):
            self._initialize(names)
        for name, parameter in drawn.items():
            if not parameter.isfinite().all():
                raise ModelError(
                    f"{self.path}: {type(self.model).__name__} does not say how {name} is initialized; train this "
                    "model from a checkpoint (model.weights: pretrained)"
                )
        return drawn

    def _initialize(self, names: Sequence[str]) -> None:
        """Call ``_init_weights`` on every module that holds one of ``names``, children first.

        Of nested models each initializes its own modules, as in ``PreTrainedModel.initialize_weights``.
        """
        from transformers import PreTrainedModel

        around = {name[:end] for name in names for end in range(len(name)) if name[end] == "."} | {""}
        modules = [(name, module) for name, module in self.model.named_modules() if name in around]
        models = {name: module for name, module in modules if isinstance(module, PreTrainedModel)}
        for name, module in reversed(modules):
            nearest = max((outer for outer in models if _is_within(name, outer)), key=len)
            models[nearest]._init_weights(module)  # noqa: SLF001 - transformers has no public name for it


def _is_within(name: str, outer: str) -> bool:
    return not outer or name == outer or name.startswith(f"{outer}.")


@contextmanager
def _in_place_of_meta(
    model: nn.Module, names: Sequence[str], device: torch.device
) -> Iterator[dict[str, torch.Tensor]]:
    """Put real parameters, fp32, in the place of the meta tensors ``names``; they are NaN until something is drawn."""
    places = [(name, model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in names]
    before = [module.get_parameter(leaf) for _, module, leaf in places]
    real: dict[str, torch.Tensor] = {}
    try:
        for (name, module, leaf), meta in zip(places, before, strict=True):
            empty = torch.full(meta.shape, float("nan"), device=device)
            real[name] = empty
            module.register_parameter(leaf, nn.Parameter(empty, requires_grad=False))
        yield real
    finally:
        for (_, module, leaf), meta in zip(places, before, strict=True):
            module.register_parameter(leaf, meta)
