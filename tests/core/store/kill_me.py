"""Trains forever on a store in files: every byte of both extents is the step's number. Run by test_store_kill.py."""

import sys
from pathlib import Path

from store_doubles import FileStorage, aligned

from lohan_core.store import Store, StoreDirectory

SIZE = 1 << 18
CHUNK = 1 << 16


def main(root):
    directory = StoreDirectory.at(root / "store")
    storage = FileStorage(root / "extents", directory.namespace)
    if directory.holds_commit:
        store = Store.open(directory, storage, {})
        step = store.committed_step
        assert store.progress == {"value": step % 251}
    else:
        store = Store.create(directory, storage, {"a": SIZE, "b": SIZE}, {})
        step = -1
    while True:
        step += 1
        for name in ("a", "b"):
            for offset in range(0, SIZE, CHUNK):
                if step:
                    buffer = aligned(CHUNK)
                    store.read(name, offset, buffer).wait()
                    assert buffer.unique().tolist() == [(step - 1) % 251]
                store.write(name, offset, aligned(CHUNK, step % 251)).wait()
        store.commit(step, {"value": step % 251})
        print(step, flush=True)


main(Path(sys.argv[1]))
