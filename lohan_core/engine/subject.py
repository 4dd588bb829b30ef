"""What a profiler is given before there is a run: the model as cut, opened backends, and a batch of random tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from inspect import signature
from typing import TYPE_CHECKING

import torch

from lohan_core.config.sections import Config
from lohan_core.data.batches import Batch
from lohan_core.engine.compiling import compile_layers
from lohan_core.engine.device_memory import cap_device_memory, out_of_memory_told
from lohan_core.engine.model import build_model, place_model
from lohan_core.engine.parts import open_optimizer, open_storage, store_path
from lohan_core.engine.states import StateFormat
from lohan_core.interfaces.profiler import Subject
from lohan_core.planning_inputs import chunk_elements
from lohan_core.progress import Report
from lohan_core.registry import Registry
from lohan_core.store import StoreDirectory

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["open_subject"]


@contextmanager
def open_subject(config: Config, registry: Registry, device: torch.device, report: Report) -> Iterator[Subject]:
    """Open what a config's profiler is to look at. Neither weights nor data are read.

    The device's memory is capped as for a run, which thus finds what is found here. Storage is opened where the run
    itself would open it, under the run's lock; nothing is left there but what a run begins with, and a run that is
    there already stays as it is.

    Raises:
        LohanError: anything that the user can mend; also from within, where the device runs out of memory.
    """
    cap_device_memory(config, device)
    with out_of_memory_told(config.model.loss):
        yield from _open_subject(config, registry, device, report)


def _open_subject(config: Config, registry: Registry, device: torch.device, report: Report) -> Iterator[Subject]:
    model, _ = build_model(config, device)
    place_model(model, device)
    optimizer = open_optimizer(config, registry, device)
    with closing(StoreDirectory.at(store_path(config))) as directory:
        storage = open_storage(config, registry, directory)
        with closing(storage):
            batch = _random_batch(config, model.model)
            compile_layers(model, batch.micro_batches, report)
            yield Subject(
                model=model,
                storage=storage,
                optimizer=optimizer,
                batch=batch,
                chunk_elements=chunk_elements(config, StateFormat(optimizer, model.dtype).vectors),
                report=report,
            )


def _random_batch(config: Config, model: PreTrainedModel) -> Batch:
    """Draw tokens as the run's data would be laid out: two documents in each row, or one and some padding.

    Whole rows of one document would be computed without a mask, which rows of a real data set rarely are.
    """
    generator = torch.Generator().manual_seed(config.run.seed)
    rows, length = config.run.micro_batch_size, config.data.sequence_length
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    tokens = torch.randint(vocabulary, (rows, length), generator=generator)
    positions = torch.arange(length).expand(rows, length)
    layout = (
        {"position_ids": positions % -(-length // 2)}
        if config.data.packing
        else {"attention_mask": (positions < length - 1).long()}
    )
    taken = {name: tensor for name, tensor in layout.items() if name in signature(model.forward).parameters}
    micro_batches = config.run.batch_size // config.run.micro_batch_size
    return Batch.of(
        [{"input_ids": tokens, "labels": tokens, **taken}] * micro_batches, tokens=micro_batches * tokens.numel()
    )
