"""The suite on every engine, on one directory, on unequal ones, and through the page cache."""

import pytest

from lohan_core.testing.storage import StorageSuite
from lohan_storage_aio.config import AioConfig
from lohan_storage_aio.plugin import lohan_storage

PAGE = 4096


class _AioSuite(StorageSuite):
    (backend,) = lohan_storage()


class TestOneDirectory(_AioSuite):
    @pytest.fixture
    def config(self, engine):
        return AioConfig(engine=engine)


class TestStriped(_AioSuite):
    @pytest.fixture
    def config(self, engine, directory):
        drives = tuple(directory / name for name in ("a", "b", "c"))
        for drive in drives:
            drive.mkdir(parents=True)
        return AioConfig(directories=drives, weights=(1, 2, 3), engine=engine, stripe_bytes=8 * PAGE, queue_depth=4)


class TestPageCache(_AioSuite):
    @pytest.fixture
    def config(self):
        return AioConfig(direct=False, register_buffers=False)
