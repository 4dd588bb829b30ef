"""A model directory's weights, by the names of the model as it is built, one tensor at a time."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lohan_core.errors import ModelError
from lohan_core.layout import BlockLayout
from lohan_core.weights.conversion import Recipe, find_conversions
from lohan_core.weights.files import TensorFiles, shorten

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Checkpoint"]

logger = logging.getLogger(__name__)

COPIED_SHARD_BYTES = 1 << 30

TRAINABLE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

OUTDATED_BUFFERS = (r"rotary_emb\.inv_freq", r"(^|\.)position_ids$")
"""What older checkpoints store and models now compute: patterns that from_pretrained ignores for every model."""


class Checkpoint:
    """The safetensors of a model directory, seen through a skeleton: the model on the meta device.

    Attributes:
        path: the directory.
        model: the skeleton, its tied parameters tied.
        files: the tensors by the checkpoint's own names.
        tied: all names of every parameter that has several, under each of them.
        unexpected: the checkpoint's names that the model has no use for; they were logged.
    """

    def __init__(self, path: Path, model: PreTrainedModel) -> None:
        """Match every parameter of ``model`` with the checkpoint's tensors. Nothing is read but headers.

        Raises:
            ModelError: no safetensors, a damaged file, a quantized model, parameters that the checkpoint lacks, or
                parameters that the config ties although the checkpoint holds different values for them.
        """
        if getattr(model.config, "quantization_config", None) is not None:
            raise ModelError(f"{path}: the model is quantized; training needs its unquantized weights")
        self.path = path
        self.model = model
        self.files = TensorFiles(path)
        conversions = find_conversions(model, self.files.names)
        self._recipes = conversions.recipes
        # save_pretrained's way back (revert_weight_conversion) looks here; from_pretrained leaves the same behind.
        model._weight_conversions = conversions.rules_used  # noqa: SLF001 - transformers has no public name for it
        self.tied = tied_names(model)
        self._refuse_missing()
        self._refuse_untied()
        ignored = [
            re.compile(pattern)
            for pattern in (*OUTDATED_BUFFERS, *(model._keys_to_ignore_on_load_unexpected or ()))  # noqa: SLF001 - likewise
        ]
        self.unexpected = tuple(
            name for name in conversions.unexpected if not any(pattern.search(name) for pattern in ignored)
        )
        if self.unexpected:
            logger.warning("%s: %d tensors are not used: %s", path, len(self.unexpected), shorten(self.unexpected))

    def recipe(self, name: str) -> Recipe | None:
        """Return how the model's tensor ``name`` is made, or one tied to it; None if the checkpoint lacks it."""
        return next((self._recipes[tied] for tied in self.tied.get(name, (name,)) if tied in self._recipes), None)

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (name, tensor) for the model's tensors ``names``, in the checkpoint's dtype, in any order.

        One recipe is in memory at a time: usually one tensor, for merged experts those of one layer.

        Raises:
            ModelError: the checkpoint lacks one, or cannot be converted.
        """
        wanted: dict[Recipe, list[str]] = {}
        for name in names:
            recipe = self.recipe(name)
            if recipe is None:
                raise ModelError(f"{self.path}: the checkpoint lacks {name}")
            wanted.setdefault(recipe, []).append(name)
        for recipe, together in wanted.items():
            try:
                cooked = recipe.cook(self.files.load, self.model)
            except (ValueError, RuntimeError, KeyError, IndexError) as error:
                line = str(error).partition("\n")[0]
                raise ModelError(
                    f"{self.path}: {recipe.targets[0]} cannot be converted from the checkpoint: {line}"
                ) from error
            for name in together:
                tied = next((tied for tied in self.tied.get(name, (name,)) if tied in cooked), None)
                if tied is None:
                    raise ModelError(f"{self.path}: converting {recipe.sources[0][0]} did not give {name}")
                yield name, cooked[tied]
            del cooked  # or it would stay while the next recipe is read: two layers' experts instead of one

    def read_block(self, layout: BlockLayout, flat: torch.Tensor) -> None:
        """Fill ``flat`` with a block's parameters, each at its slot, in the dtype of ``flat``; padding becomes zero.

        Args:
            layout: the block.
            flat: shape (layout.elements,), contiguous, on the host.

        Raises:
            ModelError: a parameter has another shape than the model's, or a dtype that cannot be trained.
        """
        if flat.shape != (layout.elements,):
            raise ValueError(f"block {layout.name}: buffer of shape {tuple(flat.shape)}, want ({layout.elements},)")
        flat.zero_()
        slots = {slot.name: slot for slot in layout.slots}
        for name, tensor in self.read(slots):
            slot = slots[name]
            if tuple(tensor.shape) != slot.shape:
                raise ModelError(
                    f"{self.path}: {name} has shape {tuple(tensor.shape)} in the checkpoint and {slot.shape} by "
                    f"config.json; they do not belong together"
                )
            if tensor.dtype not in TRAINABLE_DTYPES:
                raise ModelError(f"{self.path}: {name} is {tensor.dtype}; training needs unquantized weights")
            flat[slot.offset : slot.stop].view(slot.shape).copy_(tensor)
            del tensor  # for the same reason as in `read`

    def fingerprint(self) -> str:
        """Digest of the weights that tells most checkpoints apart: see :meth:`TensorFiles.fingerprint`."""
        return self.files.fingerprint()

    def untrained(self, written: Collection[str], dtype: torch.dtype) -> Iterator[dict[str, torch.Tensor]]:
        """Yield what is not among ``written`` as the checkpoint stores it, in pieces of about ``COPIED_SHARD_BYTES``.

        Args:
            written: names of the model's parameters that were written otherwise.
            dtype: of the parameters; buffers keep theirs.

        Raises:
            ValueError: a parameter is stored as one with others, of which some are written and some are not.
        """
        parameters = {name for name, _ in self.model.named_parameters(remove_duplicate=False)}
        known = {tied for name in written for tied in self.tied.get(name, (name,))}
        trained = {self.recipe(name) for name in known}
        copied: set[Recipe] = set()
        piece: dict[str, torch.Tensor] = {}
        for name in self.model.state_dict():
            recipe = self.recipe(name)
            # A buffer without a recipe is one that the checkpoint left out, since the model makes it anew.
            if recipe is None or recipe in copied or name in known:
                continue
            if recipe in trained:
                raise ValueError(f"{name} is in no block, but {recipe.targets[0]}, which is stored with it, is")
            copied.add(recipe)
            for source, _ in recipe.sources:
                tensor = self.files.load(source)
                piece[source] = tensor.to(dtype) if name in parameters and tensor.is_floating_point() else tensor
            if sum(tensor.nbytes for tensor in piece.values()) >= COPIED_SHARD_BYTES:
                yield piece
                piece = {}
        yield piece

    def load_buffers(self) -> None:
        """Give the skeleton's persistent buffers the checkpoint's values; those that it lacks stay as they are."""
        persistent = set(self.model.state_dict())
        buffers = {name: buffer for name, buffer in self.model.named_buffers() if name in persistent}
        for name, tensor in self.read(name for name in buffers if self.recipe(name) is not None):
            if tensor.shape != buffers[name].shape:
                raise ModelError(f"{self.path}: buffer {name} has another shape in the checkpoint than by config.json")
            buffers[name].copy_(tensor)

    def _refuse_missing(self) -> None:
        missing = [name for name, _ in self.model.named_parameters() if self.recipe(name) is None]
        if missing:
            raise ModelError(
                f"{self.path}: the checkpoint lacks {shorten(missing)}; its files and its config.json do not belong "
                f"together"
            )

    def _refuse_untied(self) -> None:
        """Two values for one parameter: transformers would untie them, and the skeleton would be another model."""
        for names in set(self.tied.values()):
            present = [name for name in names if name in self._recipes]
            if len(present) < 2:
                continue
            first, *others = (self._recipes[name].cook(self.files.load, self.model)[name] for name in present)
            if not all(torch.equal(first, other) for other in others):
                raise ModelError(
                    f"{self.path}: config.json ties {' and '.join(present)}, but the checkpoint holds different values "
                    f"for them; set tie_word_embeddings to false in config.json"
                )


def tied_names(model: PreTrainedModel) -> dict[str, tuple[str, ...]]:
    """Return all names of every parameter that has several, under each of them."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {name: tuple(together) for together in names.values() if len(together) > 1 for name in together}
