from __future__ import annotations

import errno
import os

import pytest

from lohan_core import durable_files
from lohan_core.durable_files import replace_durably
from lohan_core.errors import StorageError


def test_a_full_drive_keeps_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    replace_durably(tmp_path / "file", b"old")

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(durable_files.os, "fsync", full)
    with pytest.raises(StorageError, match="file: cannot be written: No space left on device"):
        replace_durably(tmp_path / "file", b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", b"old")]


def test_what_is_no_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StorageError, match="pipe: cannot be written: it is not a regular file"):
        replace_durably(tmp_path / "pipe", b"new")
    assert [path.is_fifo() for path in tmp_path.iterdir()] == [True]
