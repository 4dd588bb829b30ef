"""Two small storages: one whose drive forgets what was not synced, one in plain files that outlive a killed process."""

from pathlib import Path

import torch

from lohan_core.errors import StorageError
from lohan_core.interfaces.storage import Capacity, Storage


class Finished:
    def wait(self):
        pass

    def done(self):
        return True


class Failed:
    def wait(self):
        raise StorageError(5, "drive gone")

    def done(self):
        return True


class ForgetfulStorage(Storage):
    """Bytes in a dict. ``crash(keep)`` decides for every write since the last sync whether it reached the drive."""

    def __init__(self, free_bytes=1 << 30):
        self.data = {}
        self.unsynced = []
        self.free_bytes = free_bytes
        self.fail_next_write = False
        self.fail_next_sync = False
        self.closed = False

    def crash(self, keep):
        for name, offset, before in reversed(self.unsynced):
            if not keep():
                self.data[name][offset : offset + len(before)] = before
        self.unsynced.clear()

    def extents(self):
        return {name: len(data) for name, data in self.data.items()}

    def capacity(self):
        return Capacity(total_bytes=1 << 30, free_bytes=self.free_bytes)

    def bytes_moved(self):
        return 0, 0

    def close(self):
        self.closed = True

    def describe(self):
        return "a dict"

    def _allocate(self, name, size_bytes):
        self.data.setdefault(name, bytearray(size_bytes))

    def _read(self, name, offset, buffer):
        view = self.data[name][offset : offset + buffer.numel()]
        buffer.copy_(torch.frombuffer(view, dtype=torch.uint8))
        return Finished()

    def _write(self, name, offset, buffer):
        if self.fail_next_write:
            self.fail_next_write = False
            return Failed()
        end = offset + buffer.numel()
        self.unsynced.append((name, offset, bytes(self.data[name][offset:end])))
        self.data[name][offset:end] = bytes(buffer.numpy().data)
        return Finished()

    def _sync(self):
        if self.fail_next_sync:
            self.fail_next_sync = False
            raise StorageError(5, "sync failed")
        self.unsynced.clear()

    def _free(self, name):
        del self.data[name]


class FileStorage(Storage):
    """One file per extent, synchronous."""

    def __init__(self, directory: Path, namespace: str):
        self.directory = directory / namespace
        self.directory.mkdir(parents=True, exist_ok=True)

    def extents(self):
        return {path.name: path.stat().st_size for path in self.directory.iterdir()}

    def capacity(self):
        return Capacity(total_bytes=1 << 30, free_bytes=1 << 30)

    def bytes_moved(self):
        return 0, 0

    def close(self):
        pass

    def describe(self):
        return f"files in {self.directory}"

    def _allocate(self, name, size_bytes):
        with (self.directory / name).open("ab") as file:
            file.truncate(size_bytes)

    def _read(self, name, offset, buffer):
        with (self.directory / name).open("rb", buffering=0) as file:
            file.seek(offset)
            file.readinto(buffer.numpy().data)
        return Finished()

    def _write(self, name, offset, buffer):
        with (self.directory / name).open("r+b", buffering=0) as file:
            file.seek(offset)
            file.write(buffer.numpy().data)
        return Finished()

    def _sync(self):
        pass  # a killed process loses nothing that it wrote; only the machine can

    def _free(self, name):
        (self.directory / name).unlink()


def aligned(n_bytes, value=0):
    """A host buffer at a multiple of 4096 bytes, every byte ``value``."""
    block = torch.empty(n_bytes + 4096, dtype=torch.uint8)
    shift = -block.data_ptr() % 4096
    return block[shift : shift + n_bytes].fill_(value)
