"""Where a model's first weights come from, and what its other files are when it is written."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from lohan_core.layout import BlockLayout

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

__all__ = ["WeightSource"]


class WeightSource(Protocol):
    """A model directory's own weights (:class:`~lohan_core.weights.checkpoint.Checkpoint`), or random ones."""

    @property
    def path(self) -> Path:
        """The model directory."""

    @property
    def model(self) -> PreTrainedModel:
        """The skeleton: the model on the meta device, its tied parameters tied."""

    @property
    def tied(self) -> Mapping[str, tuple[str, ...]]:
        """All names of every parameter that has several, under each of them."""

    def fingerprint(self) -> str:
        """What tells these weights from others, in a few characters."""

    def read_block(self, layout: BlockLayout, flat: torch.Tensor) -> None:
        """Fill ``flat``, shape (layout.elements,), with a block's parameters, each at its slot; padding becomes zero.

        Raises:
            ModelError: the source has no such values.
        """

    def load_buffers(self) -> None:
        """Give the skeleton's persistent buffers their values."""

    def untrained(self, written: Collection[str], dtype: torch.dtype) -> Iterator[dict[str, torch.Tensor]]:
        """Yield what a written model holds beside the parameters ``written``, in pieces; parameters in ``dtype``."""
