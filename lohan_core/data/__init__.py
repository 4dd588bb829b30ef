"""Data: JSON lines in, batches of rows out. ``docs/data.md`` describes the formats and what is learned of them."""

from lohan_core.data.batches import Batch, Batches, evaluation_batches
from lohan_core.data.dataset import Dataset, Row, open_dataset
from lohan_core.data.report import DatasetReport
from lohan_core.data.tokenizer import load_tokenizer

__all__ = [
    "Batch",
    "Batches",
    "Dataset",
    "DatasetReport",
    "Row",
    "evaluation_batches",
    "load_tokenizer",
    "open_dataset",
]
