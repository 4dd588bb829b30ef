"""The data sets of a run, as its config describes them; one place, so that a preview shows what training will see."""

from __future__ import annotations

from pathlib import Path

from lohan_core.config import Config
from lohan_core.data.dataset import Dataset, open_dataset
from lohan_core.errors import DataError
from lohan_core.model.skeleton import read_config

__all__ = ["open_run_dataset"]

CACHE_FOLDER = "data"
"""Folder in the run directory for tokenised files."""


def open_run_dataset(config: Config, path: Path) -> Dataset:
    """Open ``config.data.train`` or ``config.data.eval`` with the run's model and settings.

    Raises:
        DataError: the data, or the tokenizer that they need, are not usable, or rows are longer than the model's
            positions.
        ModelError: the model directory's config cannot be read.
    """
    model = read_config(config.model.path, trust_remote_code=config.model.trust_remote_code)
    text_config = model.get_text_config(decoder=True)
    dataset = open_dataset(
        [path],
        model_path=config.model.path,
        cache_dir=config.run.dir / CACHE_FOLDER,
        sequence_length=config.data.sequence_length,
        packing=config.data.packing,
        vocabulary_size=getattr(text_config, "vocab_size", None),
        trust_remote_code=config.model.trust_remote_code,
    )
    _require_positions(dataset, path, getattr(text_config, "max_position_embeddings", None))
    return dataset


def _require_positions(dataset: Dataset, path: Path, limit: int | None) -> None:
    """A model that has learned its positions has no others; one that computes them was not trained on others.

    Raises:
        DataError: a document, or a row where positions run through it, is longer than the model's positions.
    """
    longest = dataset.longest_document if dataset.packing else dataset.row_length
    if limit is not None and longest > limit:
        raise DataError(
            f"{path}: {longest:,} tokens in a row, one after the other, and the model has {limit:,} positions; lower "
            f"data.sequence_length to {limit}; or, if it computes positions, raise max_position_embeddings in its "
            "config.json"
        )
