"""First states, in a new store or in memory: master weights, the optimizer's first values, compute weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lohan_core.engine.states import MASTER, WEIGHTS, Record, StateFormat, extent_name, wait_all
from lohan_core.layout import BlockLayout
from lohan_core.memory import allocate_host
from lohan_core.progress import Report
from lohan_core.store import Store
from lohan_core.weights import WeightSource

__all__ = ["fill_record", "fill_store"]

DOING = "reading the model"


def fill_store(
    store: Store,
    blocks: Sequence[BlockLayout],
    form: StateFormat,
    checkpoint: WeightSource,
    *,
    chunk_elements: int,
    report: Report,
) -> None:
    """Write the first states of every block that has extents. One block's masters are in memory at a time.

    Args:
        store: new; nothing is committed.
        blocks: the model's layouts.
        form: which vectors a block has.
        checkpoint: where the weights come from.
        chunk_elements: how much is written at once.
        report: called with what is done, blocks done, and blocks in all.
    """
    buffer = allocate_host(form.record_bytes(chunk_elements), pin=False)
    for done, block in enumerate(blocks):
        report(DOING, done, len(blocks))
        if extent_name(MASTER, block.index) not in store.extents:
            continue
        masters = torch.empty(block.elements, dtype=torch.float32)
        checkpoint.read_block(block, masters)
        for chunk in block.chunks(chunk_elements):
            record = form.open_record(buffer, chunk.elements)
            piece = masters[chunk.start : chunk.stop]
            record.values[MASTER].copy_(piece)
            record.values[WEIGHTS].copy_(piece)
            for field in form.fields:
                record.values[field.name].fill_(field.initial)
            wait_all(
                [
                    store.write(
                        extent_name(vector.name, block.index), vector.chunk_range(chunk)[0], record.raw[vector.name]
                    )
                    for vector in form.vectors
                ]
            )
    report(DOING, len(blocks), len(blocks))
    store.finish_step()


def fill_record(record: Record, block: BlockLayout, form: StateFormat, checkpoint: WeightSource) -> None:
    """Write a block's first states into a record of the whole block."""
    masters = record.values[MASTER]
    if masters.device.type == "cpu":
        checkpoint.read_block(block, masters)
    else:
        read = torch.empty(block.elements, dtype=torch.float32)
        checkpoint.read_block(block, read)
        masters.copy_(read)
    record.values[WEIGHTS].copy_(masters)
    for field in form.fields:
        record.values[field.name].fill_(field.initial)
