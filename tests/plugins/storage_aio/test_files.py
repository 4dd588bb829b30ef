"""What lies on the drives, and what is said when it is not what it was."""

import errno
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from lohan_core.errors import ConfigError, StorageError, StoreError
from lohan_storage_aio import files, index
from lohan_storage_aio.directories import capacity_of, encode

PAGE = 4096


@pytest.fixture
def written(open_aio, drives, random_pages):
    """A closed storage over three drives that holds one extent of ten pages."""
    storage = open_aio(directories=drives)
    storage.allocate("block/0", 10 * PAGE)
    storage.write("block/0", 0, random_pages(10)).wait()
    storage.close()
    return [drive / "run" / f"block%2F0.{number}of3.extent" for number, drive in enumerate(drives, start=1)]


def test_each_drive_has_its_share_and_its_blocks_are_reserved(open_aio, drives):
    open_aio(directories=drives, weights=(1, 1, 2)).allocate("extent", 80 * PAGE)
    found = [(drive / "run" / f"extent.{number}of3.extent").stat() for number, drive in enumerate(drives, start=1)]
    assert [status.st_size for status in found] == [20 * PAGE, 20 * PAGE, 40 * PAGE]
    assert all(status.st_blocks * 512 >= status.st_size for status in found)


def test_an_extent_of_one_stripe_leaves_the_other_drives_empty_files(open_aio, drives, random_pages):
    storage = open_aio(directories=drives)
    storage.allocate("small", PAGE)
    storage.write("small", 0, random_pages(1)).wait()
    storage.close()
    assert dict(open_aio(directories=drives).extents()) == {"small": PAGE}


def test_a_namespace_without_extents_leaves_nothing_behind(open_aio, drives):
    storage = open_aio(directories=drives)
    for name in ("one", "other"):
        storage.allocate(name, 10 * PAGE)
    storage.free("one")
    storage.close()
    assert all((drive / "run").is_dir() for drive in drives), "it holds an extent still"
    storage = open_aio(directories=drives)
    storage.free("other")
    storage.close()
    assert not [path for drive in drives for path in drive.iterdir()]


@pytest.mark.parametrize(
    ("damage", "advice"),
    [
        (lambda path: path.unlink(), "check that storage.directories names"),
        (lambda path: os.truncate(path, PAGE), "restore it from a copy or use another run.dir"),
    ],
)
@pytest.mark.parametrize("number", range(3))
def test_a_missing_or_truncated_file_is_named_on_reopening(open_aio, drives, written, *, damage, advice, number):
    damage(written[number])
    with pytest.raises(StoreError, match=f"{written[number]}: .*; {advice}"):
        open_aio(directories=drives)


def test_drives_in_another_order_are_noticed(open_aio, drives, written):
    a, b, c = drives
    with pytest.raises(StoreError, match="same drives in the same order"):
        open_aio(directories=(a, c, b))
    with pytest.raises(StoreError, match="same drives in the same order"):
        open_aio(directories=(b, a, c))
    assert all(path.exists() for path in written)
    open_aio(directories=(a, b, c))


def test_an_old_empty_index_does_not_hide_that_drives_were_swapped(open_aio, drives, random_pages):
    a, b, _ = drives
    open_aio(directories=(b,)).close()
    storage = open_aio(directories=(a, b))
    storage.allocate("extent", 8 * PAGE)
    storage.write("extent", 0, random_pages(8)).wait()
    storage.close()
    for wrong in ((b, a), (b,)):
        with pytest.raises(StoreError, match="same drives in the same order"):
            open_aio(directories=wrong)
    assert dict(open_aio(directories=(a, b)).extents()) == {"extent": 8 * PAGE}


def test_a_lost_index_is_noticed(open_aio, drives, written):
    (drives[0] / "run" / "index.json").unlink()
    with pytest.raises(StoreError, match="same drives in the same order"):
        open_aio(directories=drives)
    assert all(path.exists() for path in written)


def test_another_geometry_is_refused(open_aio, drives, written):
    a, b, c = drives
    with pytest.raises(StoreError, match="over 3 directories"):
        open_aio(directories=(a, b))
    with pytest.raises(StoreError, match=r"storage\.stripe_bytes 8192, not 4096"):
        open_aio(directories=(a, b, c), stripe_bytes=PAGE)
    with pytest.raises(StoreError, match=r"storage\.weights"):
        open_aio(directories=(a, b, c), weights=(1, 2, 1))
    assert all(path.exists() for path in written)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"format": 1, "stripe_bytes": "x", "shares": [], "extents": {}}']
)
@pytest.mark.usefixtures("written")
def test_a_damaged_index_is_refused(open_aio, drives, text):
    path = drives[0] / "run" / "index.json"
    path.write_text(text)
    with pytest.raises(StoreError, match=f"{path}: damaged"):
        open_aio(directories=drives)


@pytest.mark.usefixtures("written")
def test_an_index_of_a_later_format_is_refused(open_aio, drives):
    path = drives[0] / "run" / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2}))
    with pytest.raises(StoreError, match="format 2"):
        open_aio(directories=drives)


@pytest.mark.usefixtures("written")
def test_what_an_interrupted_allocation_left_is_removed(open_aio, drives):
    leftover = drives[1] / "run" / "half.2of3.extent"
    leftover.write_bytes(bytes(PAGE))
    foreign = drives[1] / "run" / "notes.txt"
    foreign.write_text("mine")
    storage = open_aio(directories=drives)
    assert not leftover.exists()
    assert foreign.exists()
    assert dict(storage.extents()) == {"block/0": 10 * PAGE}


def test_a_killed_process_leaves_what_it_synced(open_aio, drives, random_pages, tmp_path):
    script = textwrap.dedent(
        """
        import os, pathlib, sys
        from lohan_core.memory import allocate_host
        from lohan_storage_aio.config import AioConfig
        from lohan_storage_aio.storage import open_storage

        config = AioConfig(directories=tuple(map(pathlib.Path, sys.argv[1:])), stripe_bytes=8192)
        storage = open_storage(config, namespace="run", default_directory=".")
        storage.allocate("extent", 50 * 4096)
        buffer = allocate_host(50 * 4096, pin=False).fill_(42)
        storage.write("extent", 0, buffer).wait()
        storage.sync()
        storage.write("extent", 0, buffer)
        os.kill(os.getpid(), 9)
        """
    )
    killed = subprocess.run([sys.executable, "-c", script, *drives], check=False, cwd=tmp_path)
    assert killed.returncode == -9
    found = random_pages(50)
    open_aio(directories=drives).read("extent", 0, found).wait()
    assert torch.equal(found, torch.full_like(found, 42))


def test_space_that_runs_out_while_reserving_is_cleaned_up(open_aio, drives, monkeypatch):
    storage = open_aio(directories=drives)
    reserve = os.posix_fallocate

    def reserve_on_two_drives(descriptor, offset, length):
        if "/c/" in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            raise OSError(errno.ENOSPC, "full")
        reserve(descriptor, offset, length)

    monkeypatch.setattr(os, "posix_fallocate", reserve_on_two_drives)
    with pytest.raises(StorageError, match=f"{drives[2] / 'run'}/extent") as caught:
        storage.allocate("extent", 30 * PAGE)
    assert caught.value.errno == errno.ENOSPC
    assert not [path for drive in drives for path in (drive / "run").glob("*.extent")]
    assert dict(storage.extents()) == {}
    monkeypatch.undo()
    storage.allocate("extent", 30 * PAGE)


def test_an_extent_that_cannot_be_opened_is_taken_back(open_aio, drives, monkeypatch):
    storage = open_aio(directories=drives)

    def refuse(path, **_options):
        raise StorageError(errno.EMFILE, "too many", str(path))

    before = len(list(Path("/proc/self/fd").iterdir()))
    monkeypatch.setattr(files, "open_file", refuse)
    with pytest.raises(StorageError, match="too many"):
        storage.allocate("extent", 30 * PAGE)
    monkeypatch.undo()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert not [path for drive in drives for path in (drive / "run").glob("*.extent")]
    storage.allocate("extent", 40 * PAGE)


def test_an_index_that_cannot_be_written_takes_the_extent_back(open_aio, drives, monkeypatch):
    storage = open_aio(directories=drives)
    before = len(list(Path("/proc/self/fd").iterdir()))

    def refuse(folder, _index):
        raise StorageError(errno.EIO, f"{folder}: no")

    monkeypatch.setattr(index, "save_index", refuse)
    with pytest.raises(StorageError, match="no"):
        storage.allocate("extent", 30 * PAGE)
    monkeypatch.undo()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert dict(storage.extents()) == {}
    storage.allocate("extent", 40 * PAGE)
    storage.close()
    assert dict(open_aio(directories=drives).extents()) == {"extent": 40 * PAGE}


def test_an_empty_namespace_takes_any_geometry(open_aio, drives):
    open_aio(directories=drives).close()
    open_aio(directories=drives[:2], stripe_bytes=PAGE).allocate("extent", PAGE)
    with pytest.raises(StoreError):
        open_aio(directories=drives)


def test_too_little_space_names_the_drive_and_what_is_missing(open_aio, drives):
    storage = open_aio(directories=drives)
    with pytest.raises(StorageError, match=rf"{drives[0] / 'run'}: no space for .*: \d+ bytes \(.*\) are missing"):
        storage.allocate("extent", 1 << 60)


def test_directories_that_cannot_be_used_are_named(open_aio, tmp_path, drives):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"storage\.directories: .*/absent does not exist"):
        open_aio(directories=(tmp_path / "absent",))
    with pytest.raises(ConfigError, match=r"storage\.directories: .*/file is not a directory"):
        open_aio(directories=(tmp_path / "file",))
    with pytest.raises(ConfigError, match=r"storage\.directories: .* are the same directory"):
        open_aio(directories=(drives[0], drives[0] / ".." / "a"))
    with pytest.raises(ConfigError, match=r"storage\.weights: 2 weights for 3 directories"):
        open_aio(directories=drives, weights=(1, 2))


def test_a_directory_without_write_permission_is_named(open_aio, drives, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, _mode: path != drives[1])  # root may write anywhere
    with pytest.raises(ConfigError, match=rf"storage\.directories: {drives[1]} cannot be written"):
        open_aio(directories=drives)


def test_the_default_directory_is_made(open_aio, tmp_path):
    open_aio().allocate("extent", PAGE)
    assert (tmp_path / "default" / "run" / "extent.1of1.extent").stat().st_size == PAGE


def test_a_default_directory_that_cannot_be_made_is_named(open_aio, tmp_path):
    (tmp_path / "default").write_text("in the way")
    with pytest.raises(ConfigError, match=r"storage\.directories: .*default: cannot be made"):
        open_aio()


def test_names_are_safe_and_apart():
    names = ["a/b", "a%2Fb", ".", "..", "", "ä", "a b", "a.b", "A"]
    encoded = [encode(name) for name in names]
    assert len(set(encoded)) == len(names)
    assert not any(character in text for text in encoded for character in "/.\\ ")


def test_a_file_system_counts_once(monkeypatch, drives):
    facts = type("Facts", (), {"f_blocks": 1000, "f_bavail": 600, "f_frsize": PAGE})
    monkeypatch.setattr(os, "statvfs", lambda _path: facts)
    capacity = capacity_of(drives, [1, 1, 2])
    assert (capacity.total_bytes, capacity.free_bytes) == (1000 * PAGE, 600 * PAGE)


def test_the_drive_that_fills_first_is_the_limit(monkeypatch, drives):
    class Drive(type(drives[0])):
        def stat(self, **options):
            real = super().stat(**options)
            return os.stat_result((*real[:2], ord(self.name), *real[3:10]))

    free = {"a": 100, "b": 100, "c": 400}
    monkeypatch.setattr(
        os, "statvfs", lambda path: type("F", (), {"f_blocks": 500, "f_bavail": free[path.name], "f_frsize": PAGE})
    )
    apart = [Drive(drive) for drive in drives]
    assert capacity_of(apart, [1, 1, 1]).free_bytes == 300 * PAGE
    assert capacity_of(apart, [1, 1, 2]).free_bytes == 400 * PAGE


def test_a_file_system_without_direct_io_is_announced(open_aio, drives, monkeypatch, random_pages, caplog):
    real_open = os.open

    def refuse_on_one_drive(path, flags, *mode, **where):
        if flags & os.O_DIRECT and "/b/" in str(path):
            raise OSError(errno.EINVAL, "no")
        return real_open(path, flags, *mode, **where)

    monkeypatch.setattr(os, "open", refuse_on_one_drive)
    storage = open_aio(directories=drives)
    assert f"{drives[1]} goes through the page cache: its file system refuses O_DIRECT" in storage.describe()
    assert "goes through the page cache" in caplog.text
    storage.allocate("extent", 20 * PAGE)
    written, found = random_pages(20), random_pages(20)
    storage.write("extent", 0, written).wait()
    storage.read("extent", 0, found).wait()
    assert torch.equal(written, found)


def test_direct_io_is_direct(open_aio, drives):
    storage = open_aio(directories=drives)
    if "page cache" in storage.describe():
        pytest.skip("the file system of the temporary directory has no direct I/O")
    storage.allocate("extent", PAGE)
    descriptors = [link.name for link in Path("/proc/self/fd").iterdir() if str(link.resolve()).endswith(".extent")]
    assert len(descriptors) == 3
    for descriptor in descriptors:
        facts = dict(line.split() for line in Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines()[:3])
        assert int(facts["flags:"], base=8) & os.O_DIRECT


def test_more_files_than_the_soft_limit_are_opened(tmp_path):
    script = textwrap.dedent(
        """
        import resource, sys
        from lohan_storage_aio.config import AioConfig
        from lohan_storage_aio.storage import open_storage

        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 4096))
        storage = open_storage(AioConfig(), namespace="run", default_directory=sys.argv[1])
        for number in range(70):
            storage.allocate(str(number), 4096)
        storage.close()
        """
    )
    subprocess.run([sys.executable, "-c", script, tmp_path / "many"], check=True)


def test_the_hard_limit_of_files_is_an_error_with_a_remedy(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")

    def refuse(*_arguments):
        raise OSError(errno.EMFILE, "too many")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(StorageError, match="ulimit -Hn"):
        files.open_file(tmp_path / "file", direct=False)
