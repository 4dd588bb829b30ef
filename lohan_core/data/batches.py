"""Batches of a data set: a pure function of the step, as CPU tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from attrs import frozen

from lohan_core.data.dataset import Dataset, Row
from lohan_core.data.order import rows_of_step
from lohan_core.data.samples import NO_LOSS

__all__ = ["Batch", "Batches", "evaluation_batches"]


@frozen(eq=False)
class Batch:
    """What one step computes on."""

    micro_batches: tuple[dict[str, torch.Tensor], ...]
    """Each the keyword arguments of a model's forward: int64, shape (micro_batch_size, row_length), ``input_ids``,
    ``labels``, and ``position_ids`` of a packed data set or else ``attention_mask``."""
    tokens: int
    """Tokens that are not padding."""
    loss_tokens: tuple[int, ...]
    """Per micro-batch, and at least 1 in all: labels other than -100 after the first column, which is what a model's
    loss is the mean of."""

    @classmethod
    def of(cls, micro_batches: Iterable[dict[str, torch.Tensor]], *, tokens: int) -> Batch:
        """Make a batch from micro-batches that hold ``labels``, of which ``tokens`` tokens are not padding."""
        together = tuple(micro_batches)
        return cls(together, tokens, tuple(int((m["labels"][:, 1:] != NO_LOSS).sum()) for m in together))


@frozen(kw_only=True)
class Batches:
    """The batch of every step, from 0, without end: ``batches[step]`` is always the same.

    Steps go on through the epochs; with ``shuffle`` each epoch has an order of its own, drawn from ``seed``. So a run
    is resumed by asking for the next step.
    """

    dataset: Dataset
    batch_size: int
    micro_batch_size: int
    seed: int = 0
    shuffle: bool = True

    def __attrs_post_init__(self) -> None:
        if self.micro_batch_size < 1 or self.batch_size < 1 or self.batch_size % self.micro_batch_size:
            raise ValueError(f"batch_size {self.batch_size} is no multiple of micro_batch_size {self.micro_batch_size}")

    def __getitem__(self, step: int) -> Batch:
        if step < 0:
            raise IndexError(f"step {step}")
        return _batch(self.dataset, self._rows(step), self.micro_batch_size)

    def sample(self) -> Batch:
        """Return the first batch with one row exchanged for :meth:`Dataset.masked_row`.

        Whatever a model makes of documents and padding, and needs for it, this batch shows: memory is planned by it.
        """
        return _batch(self.dataset, [self.dataset.masked_row(), *self._rows(0)[1:]], self.micro_batch_size)

    def _rows(self, step: int) -> list[int]:
        rows = rows_of_step(
            step, rows=len(self.dataset), batch_size=self.batch_size, seed=self.seed, shuffle=self.shuffle
        )
        return [int(row) for row in rows]


def evaluation_batches(dataset: Dataset, *, batch_size: int, micro_batch_size: int) -> Iterator[Batch]:
    """Every row once, in order. The last batch, and its last micro-batch, may be smaller."""
    for begin in range(0, len(dataset), batch_size):
        yield _batch(dataset, range(begin, min(begin + batch_size, len(dataset))), micro_batch_size)


def _batch(dataset: Dataset, numbers: Iterable[int], micro_batch_size: int) -> Batch:
    rows = [dataset[number] for number in numbers]
    groups = [rows[begin : begin + micro_batch_size] for begin in range(0, len(rows), micro_batch_size)]
    return Batch.of((_micro_batch(dataset, group) for group in groups), tokens=sum(len(row.input_ids) for row in rows))


def _micro_batch(dataset: Dataset, rows: list[Row]) -> dict[str, torch.Tensor]:
    shape = len(rows), dataset.row_length
    arrays = {
        "input_ids": np.full(shape, dataset.pad_id, dtype=np.int64),
        "labels": np.full(shape, NO_LOSS, dtype=np.int64),
        "position_ids" if dataset.packing else "attention_mask": np.zeros(shape, dtype=np.int64),
    }
    for number, row in enumerate(rows):
        length = len(row.input_ids)
        arrays["input_ids"][number, :length] = row.input_ids
        arrays["labels"][number, :length] = row.labels
        if dataset.packing:
            arrays["position_ids"][number, :length] = row.position_ids
            # The padding is documents of its own: no mask is given, so that positions tell documents apart.
            arrays["position_ids"][number, length:] = np.arange(dataset.row_length - length) % dataset.longest_document
        else:
            arrays["attention_mask"][number, :length] = 1
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
