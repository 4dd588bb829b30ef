"""What the suite leaves open: syncing, closing, the choice of engine, and what is said about it."""

import errno
import gc
import os
import weakref
from pathlib import Path

import pytest

from lohan_core.errors import BackendError, StorageError
from lohan_storage_aio import engine as engines
from lohan_storage_aio.config import AioConfig, EngineName
from lohan_storage_aio.plugin import lohan_storage
from lohan_storage_aio.storage import open_storage

PAGE = 4096


@pytest.fixture
def synced(monkeypatch):
    """Names of the files that are synced, as they are."""
    names = []

    def record(descriptor):
        names.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)

    monkeypatch.setattr(os, "fdatasync", record)
    return names


def test_sync_visits_every_file_that_was_written_once(open_aio, drives, random_pages, synced):
    storage = open_aio(directories=drives)
    for name in ("one", "two", "three"):
        storage.allocate(name, 12 * PAGE)
    storage.write("one", 0, random_pages(12)).wait()
    storage.write("three", 0, random_pages(12)).wait()
    storage.read("two", 0, random_pages(12)).wait()
    storage.sync()
    assert sorted(synced) == [f"{name}.{number}of3.extent" for name in ("one", "three") for number in (1, 2, 3)]
    storage.sync()
    assert len(synced) == 6


def test_a_failed_sync_is_told_and_repeated(open_aio, random_pages, monkeypatch, synced):
    storage = open_aio()
    storage.allocate("extent", PAGE)
    storage.write("extent", 0, random_pages(1)).wait()
    working = os.fdatasync

    def fail(_descriptor):
        raise OSError(5, "no")

    monkeypatch.setattr(os, "fdatasync", fail)
    with pytest.raises(StorageError, match=r"extent\.1of1\.extent: cannot be synced: Input/output error"):
        storage.sync()
    monkeypatch.setattr(os, "fdatasync", working)
    storage.sync()
    assert synced == ["extent.1of1.extent"]


def test_an_interrupted_sync_is_repeated(open_aio, random_pages, monkeypatch, synced):
    storage = open_aio()
    storage.allocate("extent", PAGE)
    storage.write("extent", 0, random_pages(1)).wait()

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("lohan_storage_aio.storage.ThreadPoolExecutor", interrupt)
        with pytest.raises(KeyboardInterrupt):
            storage.sync()
    storage.sync()
    assert synced == ["extent.1of1.extent"]


def test_buffers_are_let_go_when_waited_for(open_aio, random_pages):
    storage = open_aio()
    storage.allocate("extent", 4 * PAGE)
    buffer = random_pages(4)
    gone = weakref.ref(buffer)
    transfer = storage.write("extent", 0, buffer)
    del buffer
    transfer.wait()
    gc.collect()
    assert gone() is None


def test_registered_buffers_are_kept_until_closing(open_aio, random_pages):
    storage = open_aio()
    if storage.engine != "io_uring":
        pytest.skip("only io_uring registers")
    buffer = random_pages(4)
    gone = weakref.ref(buffer)
    storage.register([buffer])
    del buffer
    gc.collect()
    assert gone() is not None
    storage.close()
    gc.collect()
    assert gone() is None


def test_buffers_are_let_go_when_they_are_no_longer_registered(open_aio, random_pages):
    storage = open_aio()
    storage.allocate("extent", 4 * PAGE)
    buffer = random_pages(4)
    gone = weakref.ref(buffer)
    storage.register([buffer])
    transfer = storage.write("extent", 0, buffer)
    del buffer
    storage.unregister()
    assert transfer.done()
    assert gone() is None
    storage.unregister()
    again = random_pages(4)
    storage.register([again])
    storage.read("extent", 0, again).wait()


def test_buffers_that_the_kernel_does_not_let_go_are_kept_and_told_of(open_aio, random_pages, monkeypatch):
    storage = open_aio()
    if storage.engine != "io_uring":
        pytest.skip("only io_uring registers")
    monkeypatch.setattr(storage._engine, "remove_memories", lambda: errno.EBUSY)
    buffer = random_pages(4)
    gone = weakref.ref(buffer)
    storage.register([buffer])
    del buffer
    storage.unregister()
    assert gone() is not None
    assert "buffers stay registered with the kernel: Device or resource busy" in storage.describe()


def test_a_dropped_storage_waits_for_what_is_in_flight(tmp_path, random_pages):
    storage = open_storage(AioConfig(), namespace="run", default_directory=tmp_path)
    storage.allocate("extent", 2000 * PAGE)
    buffer = random_pages(2000)
    transfer = storage.write("extent", 0, buffer)
    del storage
    gc.collect()
    assert transfer.done()
    transfer.wait()
    assert (tmp_path / "run" / "extent.1of1.extent").read_bytes() == buffer.numpy().tobytes()


def test_a_part_that_was_registered_does_not_hide_the_whole(open_aio, random_pages, monkeypatch):
    storage = open_aio()
    added = []
    monkeypatch.setattr(storage._engine, "add_memory", lambda address, size: added.append((address, size)) or 0)
    buffer = random_pages(4)
    for _ in range(2):
        storage.register([buffer[:PAGE], buffer])
    assert added == [(buffer.data_ptr(), PAGE), (buffer.data_ptr(), 4 * PAGE)]


def test_closed_means_closed(open_aio, random_pages):
    storage = open_aio()
    storage.allocate("extent", PAGE)
    buffer = random_pages(1)
    storage.write("extent", 0, buffer).wait()
    storage.close()
    assert storage.bytes_moved() == (0, PAGE)
    for act in (
        lambda: storage.read("extent", 0, buffer),
        lambda: storage.write("extent", 0, buffer),
        lambda: storage.allocate("other", PAGE),
        lambda: storage.free("extent"),
        lambda: storage.register([buffer]),
        storage.unregister,
        storage.sync,
    ):
        with pytest.raises(ValueError, match="closed"):
            act()


def test_a_forked_child_leaves_its_parent_s_storage_alone(open_aio, random_pages, monkeypatch):
    storage = open_aio()
    storage.allocate("extent", PAGE)
    buffer = random_pages(1)
    with monkeypatch.context() as child:
        child.setattr(os, "getpid", lambda: -1)
        with pytest.raises(ValueError, match=r"do not survive fork\(\): open it in the process that uses it"):
            storage.write("extent", 0, buffer)
        storage.close()  # would wait for threads that only the parent has
    storage.write("extent", 0, buffer).wait()


def test_closing_leaves_no_descriptor(open_aio, engine, drives, random_pages):
    before = len(list(Path("/proc/self/fd").iterdir()))
    storage = open_aio(directories=drives, engine=engine)
    storage.allocate("extent", PAGE)
    storage.allocate("freed", PAGE)
    storage.write("freed", 0, random_pages(1))
    storage.free("freed")
    storage.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_auto_takes_the_best_that_works_and_says_why(monkeypatch):
    monkeypatch.setattr(engines, "why_unusable", lambda _name: None)
    assert engines.choose_engine(EngineName.AUTO).name == "io_uring"
    monkeypatch.setattr(engines, "why_unusable", lambda name: "broken" if name == "io_uring" else None)
    choice = engines.choose_engine(EngineName.AUTO)
    assert (choice.name, choice.reason) == ("libaio", "not io_uring: broken")
    assert "no io_uring: broken" in engines.summary()
    monkeypatch.setattr(engines, "why_unusable", lambda name: None if name == "threads" else "broken")
    choice = engines.choose_engine(EngineName.AUTO)
    assert (choice.name, choice.reason) == ("threads", "not io_uring: broken; not libaio: broken")


def test_an_engine_that_is_asked_for_is_not_replaced(monkeypatch):
    monkeypatch.setattr(engines, "why_unusable", lambda _name: "broken")
    with pytest.raises(BackendError, match=r"storage\.engine: libaio does not work on this machine: broken"):
        engines.choose_engine(EngineName.LIBAIO)


def test_describe_tells_engine_places_and_geometry(open_aio, drives, engine):
    text = open_aio(directories=drives, engine=engine, weights=(1, 1, 2), queue_depth=7).describe()
    assert f"aio: {engine} (as configured), queue depth 7, stripes of 8.00 KiB over {drives[0]}" in text
    assert "in shares [1, 1, 2]" in text


def test_the_plugin_offers_a_usable_backend():
    (backend,) = lohan_storage()
    assert backend.name == "aio"
    assert backend.probe() is None
    assert "threads" in backend.summary


@pytest.mark.parametrize(
    "settings",
    [
        {"stripe_bytes": 1000},
        {"stripe_bytes": 0},
        {"stripe_bytes": 2 << 30},
        {"queue_depth": 0},
        {"weights": (1.0, 0.0)},
        {"engine": "spdk"},
    ],
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError, match=r".+"):
        AioConfig(**settings)
