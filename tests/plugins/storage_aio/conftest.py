from __future__ import annotations

import pytest

from lohan_core.memory import allocate_host
from lohan_storage_aio.config import AioConfig, EngineName
from lohan_storage_aio.engine import why_unusable
from lohan_storage_aio.storage import open_storage

PAGE = 4096


@pytest.fixture(params=["io_uring", "libaio", "threads"])
def engine(request):
    engine = EngineName(request.param)
    if reason := why_unusable(engine):
        pytest.skip(reason)
    return engine


@pytest.fixture
def drives(tmp_path):
    """Three directories, as if each were on a drive of its own."""
    drives = tuple(tmp_path / name for name in ("a", "b", "c"))
    for drive in drives:
        drive.mkdir()
    return drives


@pytest.fixture
def open_aio(tmp_path):
    opened = []

    def open_aio(namespace="run", **settings):
        config = AioConfig(**({"stripe_bytes": 2 * PAGE} | settings))
        opened.append(open_storage(config, namespace=namespace, default_directory=tmp_path / "default"))
        return opened[-1]

    yield open_aio
    for storage in opened:
        storage.close()


@pytest.fixture
def random_pages():
    def random_pages(pages):
        return allocate_host(pages * PAGE, pin=False).random_(0, 256)

    return random_pages
