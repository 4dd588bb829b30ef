"""What a profiler is given where there is no run: rows as the run's data would have them."""

from __future__ import annotations

from contextlib import closing

import pytest
import torch
from tiny_backends import TestBackends, make_registry
from tiny_lms import make_lm
from transformers import MambaConfig

from lohan_core.config.load import config_from_mapping
from lohan_core.engine.parts import open_storage, store_path
from lohan_core.engine.subject import open_subject
from lohan_core.store import StoreDirectory


def inputs_of_subject(directory, model, *, packing):
    registry = make_registry(TestBackends())
    values = {
        "model": {"path": str(model)},
        "data": {"train": "none.jsonl", "sequence_length": 7, "packing": packing},
        "run": {"dir": str(directory / "run"), "steps": 1, "batch_size": 4, "micro_batch_size": 2},
        "storage": {"backend": "memory"},
        "optimizer": {"backend": "recorder"},
    }
    config = config_from_mapping(values, registry)
    with open_subject(config, registry, torch.device("cpu"), lambda *_: None) as subject:
        first, _ = subject.batch.micro_batches
        return first


def test_what_a_killed_process_left_is_given_back(tmp_path):
    """Not only when a plan's own is allocated: a profile is measured before, and may want another size."""
    registry = make_registry(TestBackends())
    sections = {"storage": {"backend": "aio", "directories": [str(tmp_path / "drive")]}}
    values = {"model": {"path": "m"}, "data": {"train": "d"}, "run": {"dir": str(tmp_path), "steps": 1}, **sections}
    config = config_from_mapping(values, registry)
    (tmp_path / "drive").mkdir()
    with closing(StoreDirectory.at(store_path(config))) as directory:
        with closing(open_storage(config, registry, directory)) as storage:
            storage.allocate("scratch/profile", 1 << 20)
            storage.allocate("states", 1 << 20)
        with closing(open_storage(config, registry, directory)) as storage:
            assert set(storage.extents()) == {"states"}


@pytest.mark.parametrize(
    ("packing", "name", "row"),
    [(True, "position_ids", [0, 1, 2, 3, 0, 1, 2]), (False, "attention_mask", [1, 1, 1, 1, 1, 1, 0])],
)
def test_rows_are_as_the_data_would_be_laid_out(tmp_path, models, packing, name, row):
    inputs = inputs_of_subject(tmp_path, models["llama"], packing=packing)
    assert set(inputs) == {"input_ids", "labels", name}
    assert inputs[name].tolist() == [row, row]


def test_a_model_is_given_what_it_takes(tmp_path):
    make_lm(MambaConfig(vocab_size=96, hidden_size=48, num_hidden_layers=2, state_size=4)).save_pretrained(
        tmp_path / "m"
    )
    assert set(inputs_of_subject(tmp_path, tmp_path / "m", packing=True)) == {"input_ids", "labels"}
