"""``kill -9`` at random instants: the next process finds the last commit, whole, and may lock the store at once."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

from store_doubles import FileStorage, aligned

from lohan_core.store import Store, StoreDirectory

SCRIPT = Path(__file__).with_name("kill_me.py")


def test_kill_at_random_instants_loses_nothing_committed(tmp_path):
    instants = random.Random(20261120)
    reported = -1
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for _ in range(4):
        process = subprocess.Popen(
            [sys.executable, SCRIPT, tmp_path], stdout=subprocess.PIPE, text=True, env=environment
        )
        first = process.stdout.readline()
        assert first, "the run could not take up the store"
        time.sleep(instants.uniform(0.0, 0.05))
        process.kill()
        rest = process.stdout.read()
        process.wait()
        process.stdout.close()
        reported = int((first + rest).split()[-1])

        directory = StoreDirectory.existing(tmp_path / "store")
        storage = FileStorage(tmp_path / "extents", directory.namespace)
        store = Store.open(directory, storage, {})
        assert store.committed_step in {reported, reported + 1}  # killed between the commit and its report
        for name, size_bytes in store.extents.items():
            buffer = aligned(size_bytes)
            store.read(name, 0, buffer).wait()
            assert buffer.unique().tolist() == [store.committed_step % 251]
        store.close()
    assert reported >= 3
