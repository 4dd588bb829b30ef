"""The suite on every engine, on one directory and on unequal ones."""

import pytest

from lohan_core.testing.storage import StorageSuite
from lohan_storage_aio.config import AioConfig, EngineName
from lohan_storage_aio.engine import why_unusable
from lohan_storage_aio.plugin import lohan_storage

PAGE = 4096


class _AioSuite(StorageSuite):
    (backend,) = lohan_storage()

    @pytest.fixture(params=["io_uring", "libaio", "threads"])
    def engine(self, request):
        engine = EngineName(request.param)
        if reason := why_unusable(engine):
            pytest.skip(reason)
        return engine


class TestOneDirectory(_AioSuite):
    @pytest.fixture
    def config(self, engine):
        return AioConfig(engine=engine)


class TestStriped(_AioSuite):
    @pytest.fixture
    def config(self, engine, directory):
        drives = [directory / name for name in ("a", "b", "c")]
        for drive in drives:
            drive.mkdir(parents=True)
        return AioConfig(
            directories=tuple(drives), weights=(1, 2, 3), engine=engine, stripe_bytes=8 * PAGE, queue_depth=4
        )


class TestPageCache(_AioSuite):
    @pytest.fixture
    def config(self, engine):
        return AioConfig(engine=engine, direct=False, register_buffers=False)
