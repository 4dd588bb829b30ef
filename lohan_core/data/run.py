"""The data sets of a run, as its config describes them; one place, so that a preview shows what training will see."""

from __future__ import annotations

from pathlib import Path

from lohan_core.config import Config
from lohan_core.data.dataset import Dataset, open_dataset
from lohan_core.model.skeleton import read_config

__all__ = ["open_run_dataset"]

CACHE_FOLDER = "data"
"""Folder in the run directory for tokenised files."""


def open_run_dataset(config: Config, path: Path) -> Dataset:
    """Open ``config.data.train`` or ``config.data.eval`` with the run's model and settings.

    Raises:
        DataError: the data, or the tokenizer that they need, are not usable.
        ModelError: the model directory's config cannot be read.
    """
    model = read_config(config.model.path, trust_remote_code=config.model.trust_remote_code)
    return open_dataset(
        [path],
        model_path=config.model.path,
        cache_dir=config.run.dir / CACHE_FOLDER,
        sequence_length=config.data.sequence_length,
        packing=config.data.packing,
        vocabulary_size=getattr(model.get_text_config(decoder=True), "vocab_size", None),
        trust_remote_code=config.model.trust_remote_code,
    )
