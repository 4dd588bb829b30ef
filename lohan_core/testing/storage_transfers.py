"""What the storages' conformance suite asks of transfers: the right bytes arrive, whoever waits for them or not."""

from __future__ import annotations

import gc
import random
import time

import pytest
import torch

from lohan_core.interfaces.storage import Storage
from lohan_core.testing.storage_buffers import aligned_buffer, random_buffer, read, write

__all__ = ["StorageTransfers"]


class StorageTransfers:
    """The suite's tests of reads and writes. They take the suite's fixture ``storage``."""

    @pytest.mark.parametrize("units", [1, 2, 3, 255, 256, 257, 1031])
    def test_round_trip(self, storage: Storage, units: int) -> None:
        """What is written is read, whatever number of stripes it takes."""
        storage.allocate("extent", units * storage.alignment)
        written = random_buffer(storage, units, seed=units)
        write(storage, "extent", written)
        assert torch.equal(read(storage, "extent", units), written)

    def test_round_trip_of_parts(self, storage: Storage) -> None:
        """A range inside an extent is written and read without touching its neighbours."""
        storage.allocate("extent", 64 * storage.alignment)
        whole = random_buffer(storage, 64, seed=1)
        write(storage, "extent", whole)
        part = random_buffer(storage, 7, seed=2)
        start, end = 29 * storage.alignment, 36 * storage.alignment
        write(storage, "extent", part, start)
        expected = whole.clone()
        expected[start:end] = part
        assert torch.equal(read(storage, "extent", 64), expected)
        assert torch.equal(read(storage, "extent", 7, start), part)

    def test_overwrite(self, storage: Storage) -> None:
        """The last write wins."""
        storage.allocate("extent", 33 * storage.alignment)
        for seed in range(4):
            last = random_buffer(storage, 33, seed)
            write(storage, "extent", last)
        assert torch.equal(read(storage, "extent", 33), last)

    @pytest.mark.parametrize("seed", range(3))
    def test_random_reads_and_writes_agree_with_memory(self, storage: Storage, seed: int) -> None:
        """Any sequence of writes and reads of any ranges leaves what plain memory would hold."""
        units = 97
        storage.allocate("extent", units * storage.alignment)
        expected = random_buffer(storage, units, seed)
        write(storage, "extent", expected)
        dice = random.Random(seed)  # noqa: S311  # reproducible dice, not secrets
        for turn in range(60):
            start = dice.randrange(units)
            length = dice.randint(1, units - start)
            offset, end = start * storage.alignment, (start + length) * storage.alignment
            if dice.random() < 0.5:
                piece = random_buffer(storage, length, seed=turn)
                write(storage, "extent", piece, offset)
                expected[offset:end] = piece
            else:
                assert torch.equal(read(storage, "extent", length, offset), expected[offset:end])

    def test_transfers_in_flight_together(self, storage: Storage) -> None:
        """Reads of some extents and writes of others overlap without harm; waiting out of order and twice is fine."""
        old = [random_buffer(storage, 40, seed) for seed in range(6)]
        new = [random_buffer(storage, 40, seed + 100) for seed in range(6)]
        for number, buffer in enumerate(old):
            storage.allocate(f"old{number}", 40 * storage.alignment)
            storage.allocate(f"new{number}", 40 * storage.alignment)
            write(storage, f"old{number}", buffer)
        found = [aligned_buffer(storage, 40) for _ in old]
        transfers = []
        for number in range(6):
            transfers.append(storage.write(f"new{number}", 0, new[number]))
            transfers.append(storage.read(f"old{number}", 0, found[number]))
        for transfer in reversed(transfers):
            transfer.wait()
            assert transfer.done()
            transfer.wait()
        for number in range(6):
            assert torch.equal(found[number], old[number])
            assert torch.equal(read(storage, f"new{number}", 40), new[number])

    def test_misalignment_is_refused(self, storage: Storage) -> None:
        """Offset, length and address are checked before anything moves."""
        unit = storage.alignment
        storage.allocate("extent", 4 * unit)
        buffer = aligned_buffer(storage, 4)
        for start in (storage.read, storage.write):
            with pytest.raises(ValueError, match="multiples of"):
                start("extent", unit // 2, buffer[:unit])
            with pytest.raises(ValueError, match="multiples of"):
                start("extent", 0, buffer[: unit + 1])
            with pytest.raises(ValueError, match="multiples of"):
                start("extent", 0, buffer[1 : unit + 1])
        with pytest.raises(ValueError, match="multiple of"):
            storage.allocate("odd", unit + 1)

    def test_outside_is_refused(self, storage: Storage) -> None:
        """A range must lie inside its extent."""
        unit = storage.alignment
        storage.allocate("extent", 4 * unit)
        buffer = aligned_buffer(storage, 2)
        for start in (storage.read, storage.write):
            for offset in (-unit, 3 * unit, 4 * unit):
                with pytest.raises(ValueError, match="lie outside"):
                    start("extent", offset, buffer)
        with pytest.raises(ValueError, match="positive"):
            storage.allocate("empty", 0)

    def test_a_dropped_write_is_still_written(self, storage: Storage) -> None:
        """Neither the transfer nor the buffer has to be kept by the caller."""
        storage.allocate("extent", 512 * storage.alignment)
        storage.write("extent", 0, random_buffer(storage, 512, seed=5))
        gc.collect()
        scribble = [torch.full((512 * storage.alignment,), 7, dtype=torch.uint8) for _ in range(4)]
        while storage.bytes_moved()[1] < 512 * storage.alignment:
            time.sleep(0.001)
        assert torch.equal(read(storage, "extent", 512), random_buffer(storage, 512, seed=5))
        assert all(bool((other == 7).all()) for other in scribble)

    def test_a_dropped_read_corrupts_nothing(self, storage: Storage) -> None:
        """The memory of a read that nobody waits for is not handed to anyone else while it is filled."""
        storage.allocate("extent", 512 * storage.alignment)
        write(storage, "extent", random_buffer(storage, 512, seed=6))
        for _ in range(8):
            storage.read("extent", 0, aligned_buffer(storage, 512))
            bystander = torch.full((513 * storage.alignment,), 7, dtype=torch.uint8)
            read(storage, "extent", 512)
            assert bool((bystander == 7).all())

    def test_bytes_are_counted(self, storage: Storage) -> None:
        """Finished transfers count with their bytes, each in its direction."""
        storage.allocate("extent", 10 * storage.alignment)
        assert storage.bytes_moved() == (0, 0)
        write(storage, "extent", random_buffer(storage, 10, seed=0))
        read(storage, "extent", 3)
        read(storage, "extent", 4)
        assert storage.bytes_moved() == (7 * storage.alignment, 10 * storage.alignment)

    def test_registered_buffers_work_alike(self, storage: Storage) -> None:
        """Buffers that were announced, parts of them, and others are read and written alike."""
        storage.allocate("extent", 32 * storage.alignment)
        pool = random_buffer(storage, 64, seed=4)
        storage.register([pool])
        storage.register([pool])
        part = pool[5 * storage.alignment : 37 * storage.alignment]
        write(storage, "extent", part)
        assert torch.equal(read(storage, "extent", 32), part)
        expected = part.clone()
        storage.read("extent", 0, pool[: 32 * storage.alignment]).wait()
        assert torch.equal(pool[: 32 * storage.alignment], expected)

    def test_buffers_that_are_no_longer_registered_work_alike(self, storage: Storage) -> None:
        """Letting go of buffers is allowed at any time, and they are read and written as others are."""
        storage.unregister()
        storage.allocate("extent", 32 * storage.alignment)
        pool, other = random_buffer(storage, 32, seed=4), random_buffer(storage, 32, seed=5)
        storage.register([pool])
        transfer = storage.write("extent", 0, pool)
        storage.unregister()
        transfer.wait()
        storage.register([other])
        assert torch.equal(read(storage, "extent", 32), pool)
        for buffer in (other, pool):
            write(storage, "extent", buffer)
            assert torch.equal(read(storage, "extent", 32), buffer)

    def test_sync(self, storage: Storage) -> None:
        """Syncing is allowed at any time: before anything is written, after writes, while they are in flight."""
        storage.sync()
        storage.allocate("extent", 256 * storage.alignment)
        write(storage, "extent", random_buffer(storage, 256, seed=0))
        storage.sync()
        transfer = storage.write("extent", 0, random_buffer(storage, 256, seed=1))
        storage.sync()
        transfer.wait()
        storage.sync()
        assert torch.equal(read(storage, "extent", 256), random_buffer(storage, 256, seed=1))
