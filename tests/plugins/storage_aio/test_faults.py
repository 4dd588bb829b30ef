"""Failing drives: each engine survives what passes, and tells what does not."""

import errno

import pytest
import torch

from lohan_core.errors import ConfigError, StorageError
from lohan_storage_aio.faults import FAULT_VARIABLE, Fault, parse_faults

PAGE = 4096


@pytest.fixture
def storage(monkeypatch, engine, drives, open_aio):
    """A function that opens a storage of three drives with a fault armed."""

    def storage(fault):
        monkeypatch.setenv(FAULT_VARIABLE, fault)
        storage = open_aio(directories=drives, engine=engine, queue_depth=4)
        storage.allocate("extent", 50 * PAGE)
        return storage

    return storage


@pytest.mark.parametrize("fault", ["EINTR:times=9", "EAGAIN:times=3", "short=4096:after=1:times=5", "short=1:times=9"])
def test_what_passes_is_hidden(storage, random_pages, fault):
    storage = storage(f"read:{fault},write:{fault}")
    written, found = random_pages(50), random_pages(50)
    storage.write("extent", 0, written).wait()
    storage.read("extent", 0, found).wait()
    assert torch.equal(written, found)
    assert storage.bytes_moved() == (50 * PAGE, 50 * PAGE)


@pytest.mark.parametrize("operation", ["read", "write"])
@pytest.mark.parametrize("name", ["EIO", "ENOSPC"])
def test_a_failure_names_file_offset_and_errno(storage, drives, random_pages, operation, name):
    storage = storage(f"{operation}:{name}:after=4")
    buffer = random_pages(50)
    transfer = getattr(storage, operation)("extent", 0, buffer)
    for _ in range(2):
        with pytest.raises(StorageError) as caught:
            transfer.wait()
        # The fifth operation: stripes of two pages, dealt to three drives.
        assert caught.value.errno == getattr(errno, name)
        assert caught.value.offset == 2 * PAGE
        path = drives[1] / "run" / "extent.2of3.extent"
        assert caught.value.filename == str(path)
        assert str(caught.value).startswith(f"{path}: {operation} at byte {2 * PAGE} failed: ")
        assert str(caught.value).endswith(f"({name})")
    getattr(storage, operation)("extent", 0, buffer).wait()
    moved = dict(zip(("read", "write"), storage.bytes_moved(), strict=True))
    assert moved[operation] == 50 * PAGE


def test_one_failure_leaves_other_transfers_alone(storage, random_pages):
    storage = storage("write:EIO:after=7")
    buffers = [random_pages(4) for _ in range(10)]
    transfers = [storage.write("extent", number * 4 * PAGE, buffer) for number, buffer in enumerate(buffers)]
    failed = []
    for number, transfer in enumerate(transfers):
        try:
            transfer.wait()
        except StorageError:
            failed.append(number)
    assert failed == [3]  # each is two operations
    found = random_pages(4)
    for number in set(range(10)) - {3}:
        storage.read("extent", number * 4 * PAGE, found).wait()
        assert torch.equal(found, buffers[number])


def test_lasting_shortage_is_given_up(storage, random_pages):
    storage = storage("read:EAGAIN:times=5000")
    with pytest.raises(StorageError) as caught:
        storage.read("extent", 0, random_pages(2)).wait()
    assert caught.value.errno == errno.EAGAIN


def test_a_failed_registration_is_said_and_harms_nothing(storage, random_pages, caplog):
    storage = storage("register:ENOMEM:times=99")
    buffer = random_pages(50)
    assert "not registered" not in storage.describe()
    storage.register([buffer])
    assert "buffers not registered with the kernel: raise the memlock limit (ulimit -l)" in storage.describe()
    assert "raise the memlock limit" in caplog.text
    storage.write("extent", 0, buffer).wait()


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("", []),
        ("write:EIO", [Fault(direction="write", error=errno.EIO, short_bytes=0, after=0, times=1)]),
        (
            "read:short=512:times=3,register:ENOMEM:after=2",
            [
                Fault(direction="read", error=0, short_bytes=512, after=0, times=3),
                Fault(direction="register", error=errno.ENOMEM, short_bytes=0, after=2, times=1),
            ],
        ),
    ],
)
def test_faults_are_read_from_text(text, faults):
    assert parse_faults(text) == faults


@pytest.mark.parametrize("text", ["write", "write:EWHAT", "erase:EIO", "write:EIO:after=x", "write:short=", "x"])
def test_nonsense_is_refused(text):
    with pytest.raises(ConfigError, match=FAULT_VARIABLE):
        parse_faults(text)
