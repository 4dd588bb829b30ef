"""A new store filled from a checkpoint: master weights, the optimizer's first states, compute weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from lohan_core.engine.states import MASTER, WEIGHTS, StateFormat, extent_name, wait_all
from lohan_core.layout import BlockLayout
from lohan_core.memory import allocate_host
from lohan_core.store import Store
from lohan_core.weights import Checkpoint

__all__ = ["fill_store"]

DOING = "reading the model"


def fill_store(
    store: Store,
    blocks: Sequence[BlockLayout],
    form: StateFormat,
    checkpoint: Checkpoint,
    *,
    chunk_elements: int,
    report: Callable[[str, int, int], None],
) -> None:
    """Write every block's first states, and commit them as step 0. One block's masters are in memory at a time.

    Args:
        store: new, with the extents of ``form``.
        blocks: the model's layouts.
        form: which vectors a block has.
        checkpoint: where the weights come from.
        chunk_elements: how much is written at once.
        report: called with what is done, blocks done, and blocks in all.
    """
    buffer = allocate_host(form.record_bytes(chunk_elements), pin=False)
    for done, block in enumerate(blocks):
        report(DOING, done, len(blocks))
        if not block.elements:
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
    store.commit(0, {})
