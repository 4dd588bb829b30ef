"""A model's states as the engine sees them: on the drives through the store, or resident in host or GPU memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from lohan_core.interfaces.optimizer import Optimizer, StateField
from lohan_core.interfaces.storage import Transfer
from lohan_core.layout import BlockLayout, Chunk
from lohan_core.memory import allocate_host
from lohan_core.plan import Plan, Tier
from lohan_core.states import StateVector, chunk_record_bytes, place_in_record, saving_elements
from lohan_core.store import Store

__all__ = ["MASTER", "WEIGHTS", "Record", "StateFormat", "States", "extent_name", "parameters_in_store", "wait_all"]

Move: TypeAlias = Callable[[str, int, Tensor], Transfer]
"""The store's read or write: extent, offset in bytes, buffer."""

MASTER = "master"
WEIGHTS = "weights"


def extent_name(vector: str, block: int) -> str:
    """Name of the extent that holds one vector of one block."""
    return f"{vector}.{block}"


class StateFormat:
    """Which flat vectors a block has, and of which type: master weights, the optimizer's fields, compute weights."""

    def __init__(self, optimizer: Optimizer, dtype: torch.dtype) -> None:
        self.fields: tuple[StateField, ...] = optimizer.fields
        self.dtypes: dict[str, torch.dtype] = {MASTER: torch.float32}
        self.dtypes.update({field.name: field.dtype for field in self.fields})
        self.states = (
            StateVector(name=MASTER, value_bytes=4),
            *(
                StateVector(
                    name=field.name, value_bytes=field.dtype.itemsize, elements_per_value=field.elements_per_value
                )
                for field in self.fields
            ),
        )
        self.dtypes[WEIGHTS] = dtype
        self.weights = StateVector(name=WEIGHTS, value_bytes=dtype.itemsize)
        self.vectors = (*self.states, self.weights)

    def record_bytes(self, elements: int) -> int:
        """Bytes of a buffer that holds ``elements`` parameters of every vector."""
        return chunk_record_bytes(self.vectors, elements)

    def open_record(self, buffer: Tensor, elements: int) -> Record:
        """Read a uint8 buffer as one record of ``elements`` parameters."""
        places = place_in_record(self.vectors, elements)
        raw = {name: buffer[offset : offset + length] for name, (offset, length) in places.items()}
        values = {
            vector.name: raw[vector.name].view(self.dtypes[vector.name])[: vector.values(elements)]
            for vector in self.vectors
        }
        return Record(raw, values, self.vectors)

    def extents(self, blocks: Sequence[BlockLayout]) -> dict[str, int]:
        """Names and sizes in bytes of the extents that hold all vectors of all blocks."""
        return {
            extent_name(vector.name, block.index): vector.extent_bytes(block.elements)
            for block in blocks
            if block.elements
            for vector in self.vectors
        }


class Record:
    """A slice of every vector of a block, in memory: raw bytes for I/O, typed values for the optimizer."""

    def __init__(self, raw: Mapping[str, Tensor], values: Mapping[str, Tensor], vectors: Sequence[StateVector]) -> None:
        self.raw = raw
        self.values = values
        self._vectors = vectors
        self._slices: dict[tuple[int, int], Mapping[str, Tensor]] = {}

    def slice(self, start: int, stop: int) -> Mapping[str, Tensor]:
        """Return the values of elements ``start:stop`` of every vector.

        They are cut once: a record that stays is updated in the same pieces in every step, and each cut would have to
        win Python's lock back from the thread that launches kernels.
        """
        slices = self._slices.get((start, stop))
        if slices is None:
            slices = self._slices[start, stop] = {
                vector.name: self.values[vector.name][start // vector.elements_per_value : vector.values(stop)]
                for vector in self._vectors
            }
        return slices


class States:
    """Reads and writes chunks of states wherever the plan put them.

    A block on ssd is moved chunk by chunk through the store. A block on host or on the GPU is one record that stays
    there; it goes to the store when the engine makes a checkpoint.

    Attributes:
        resident: records of the blocks on host and on the GPU, by index.
        on_gpu: those on the GPU.
        copies: a second record of each block on host whose updates are speculative: these are made there.
        unstored: those of them for which the store has no extents. Whoever makes this fills them.
    """

    def __init__(
        self,
        blocks: Sequence[BlockLayout],
        plan: Plan,
        form: StateFormat,
        store: Store,
        chunk_elements: int,
        *,
        device: torch.device,
    ) -> None:
        self.form = form
        self.store = store
        self._blocks = blocks
        self._chunk_elements = chunk_elements
        self._speculative_on_drives = [
            extent_name(vector.name, block.index)
            for block, decisions in zip(blocks, plan.blocks, strict=True)
            if decisions.speculative and decisions.states is Tier.SSD and block.elements
            for vector in form.vectors
        ]
        self.resident: dict[int, Record] = {}
        self.copies: dict[int, Record] = {}
        for block, decisions in zip(blocks, plan.blocks, strict=True):
            if decisions.states is Tier.SSD or not block.elements:
                continue
            size = form.record_bytes(block.elements)
            if decisions.states is Tier.HOST:
                buffer = allocate_host(size, pin=device.type == "cuda")
            else:
                buffer = torch.empty(size, dtype=torch.uint8, device=device)
            self.resident[block.index] = form.open_record(buffer, block.elements)
            if decisions.speculative:
                copy = allocate_host(size, pin=device.type == "cuda")
                self.copies[block.index] = form.open_record(copy, block.elements)
        self.on_gpu = {
            index: record for index, record in self.resident.items() if plan.blocks[index].states is Tier.GPU
        }
        self.unstored = frozenset(index for index in self.resident if extent_name(MASTER, index) not in store.extents)
        saved = self.resident.keys() - self.unstored
        self._saving_elements = saving_elements(form.vectors, max(block.elements for block in blocks))
        self._saving = allocate_host(form.record_bytes(self._saving_elements) if saved else 0, pin=False)
        names = [vector.name for vector in form.vectors]
        for index, chunk, here, there in self._resident_chunks():
            wait_all(self.read(index, chunk, there, names))
            for name in names:
                here[name].copy_(there.values[name])

    def chunks(self, block: int) -> tuple[Chunk, ...]:
        """The chunks of one block."""
        return self._blocks[block].chunks(self._chunk_elements)

    def read(self, block: int, chunk: Chunk, record: Record, names: Sequence[str]) -> list[Transfer]:
        """Start to read a chunk's slice of the named vectors from the drives."""
        return self._transfers(self.store.read, block, chunk, record, names)

    def write(self, block: int, chunk: Chunk, record: Record, names: Sequence[str]) -> list[Transfer]:
        """Start to write a chunk's slice of the named vectors to the drives."""
        return self._transfers(self.store.write, block, chunk, record, names)

    def read_weights(self, block: int, chunk: Chunk, buffer: Tensor) -> Transfer:
        """Start to read a chunk of compute weights into a uint8 buffer."""
        offset, length = self.form.weights.chunk_range(chunk)
        return self.store.read(extent_name(WEIGHTS, block), offset, buffer[:length])

    def end_speculation(self, *, holds: bool) -> None:
        """Take this step's speculative updates as made, or go on with the states as they were before.

        Those in memory have been made in the copies, which take the places of what they were made of.
        """
        if not holds:
            self.store.take_back(self._speculative_on_drives)
            return
        for block, copy in self.copies.items():
            self.resident[block], self.copies[block] = copy, self.resident[block]

    def write_resident(self) -> None:
        """Write every block that lives in memory, and has extents, to the store.

        P16 is rounded from the masters: in its own place, gradients may be waiting for their update.
        """
        for block, chunk, here, there in self._resident_chunks():
            for vector in self.form.states:
                there.values[vector.name].copy_(here[vector.name])
            there.values[WEIGHTS].copy_(there.values[MASTER])
            wait_all(self.write(block, chunk, there, list(there.values)))

    def parameters(self, dtype: torch.dtype) -> Iterator[dict[str, Tensor]]:
        """Yield each block's parameters by name, from the master weights, in ``dtype``. One block is held at a time."""
        return parameters_in_store(
            self.store, self._blocks, self.form, self._chunk_elements, dtype, resident=self.resident
        )

    def _resident_chunks(self) -> Iterator[tuple[int, Chunk, Mapping[str, Tensor], Record]]:
        """Go through what lives in memory and has extents: block, chunk, its values, and a record to move them by."""
        elements = self._saving_elements
        for block in sorted(self.resident.keys() - self.unstored):
            for chunk in self._blocks[block].chunks(elements):
                here = self.resident[block].slice(chunk.start, chunk.stop)
                yield block, chunk, here, self.form.open_record(self._saving, chunk.elements)

    def _transfers(self, move: Move, block: int, chunk: Chunk, record: Record, names: Sequence[str]) -> list[Transfer]:
        transfers = []
        for vector in self.form.vectors:
            if vector.name in names:
                offset, length = vector.chunk_range(chunk)
                transfers.append(move(extent_name(vector.name, block), offset, record.raw[vector.name][:length]))
        return transfers


def parameters_in_store(
    store: Store,
    blocks: Sequence[BlockLayout],
    form: StateFormat,
    chunk_elements: int,
    dtype: torch.dtype,
    *,
    resident: Mapping[int, Record] | None = None,
) -> Iterator[dict[str, Tensor]]:
    """Yield each block's parameters by name, from the master weights in the store; one block is held at a time.

    Args:
        store: where the masters are.
        blocks: the model's layouts.
        form: which vectors a block has.
        chunk_elements: how much is read at once.
        dtype: what is yielded.
        resident: blocks whose masters are newer in memory.
    """
    scratch = allocate_host(form.states[0].extent_bytes(chunk_elements), pin=False)
    for block in blocks:
        flat = torch.empty(block.elements, dtype=dtype)
        if resident and block.index in resident:
            flat.copy_(resident[block.index].values[MASTER])
        else:
            for chunk in block.chunks(chunk_elements):
                offset, length = form.states[0].chunk_range(chunk)
                store.read(extent_name(MASTER, block.index), offset, scratch[:length]).wait()
                flat[chunk.start : chunk.stop].copy_(scratch[:length].view(torch.float32)[: chunk.elements])
        yield {slot.name: flat[slot.offset : slot.stop].view(slot.shape) for slot in block.slots}


def wait_all(transfers: Sequence[Transfer]) -> None:
    """Wait for every transfer, then raise the first failure: none may still own a buffer behind the caller's back."""
    failure: BaseException | None = None
    for transfer in transfers:
        try:
            transfer.wait()
        except OSError as error:
            failure = failure or error
    if failure is not None:
        raise failure
