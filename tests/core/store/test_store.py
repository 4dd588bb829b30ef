import json
import logging
import threading

import pytest
from store_doubles import ForgetfulStorage, aligned

from lohan_core.errors import StorageError, StoreError
from lohan_core.store import Store, StoreDirectory
from lohan_core.store.versions import Versions

SECTOR = 4096
IDENTITY = {"model": "tiny"}


@pytest.fixture
def storage():
    return ForgetfulStorage()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "store"


def create(path, storage, extents=None, **options):
    return Store.create(StoreDirectory.at(path), storage, extents or {"a": 2 * SECTOR}, IDENTITY, **options)


def reopen(path, storage, identity=None, **options):
    directory = StoreDirectory.existing(path)
    try:
        return Store.open(directory, storage, identity or IDENTITY, **options)
    except BaseException:
        directory.close()
        raise


def fill(store, value, name="a"):
    store.write(name, 0, aligned(store.extents[name], value)).wait()


def peek(store, name="a", offset=0, n_bytes=SECTOR):
    buffer = aligned(n_bytes)
    store.read(name, offset, buffer).wait()
    assert buffer.min() == buffer.max()
    return int(buffer[0])


def committed(path, storage, value=1, **options):
    store = create(path, storage, **options)
    fill(store, value)
    store.commit(0, {})
    return store


def test_commit_is_found_again_with_step_progress_and_bytes(path, storage):
    store = create(path, storage, {"a": 2 * SECTOR, "b": SECTOR})
    fill(store, 7)
    fill(store, 8, "b")
    store.commit(3, {"position": 12, "rng": [1, 2], "nested": {"x": None}})
    store.close()
    assert storage.closed

    seen = []
    again = reopen(path, storage, progress=lambda done, total: seen.append((done, total)))
    assert (again.committed_step, again.progress) == (3, {"position": 12, "rng": [1, 2], "nested": {"x": None}})
    assert again.extents == {"a": 2 * SECTOR, "b": SECTOR}
    assert (peek(again), peek(again, "b")) == (7, 8)
    assert seen[-1] == (3 * SECTOR, 3 * SECTOR)


def test_reads_see_the_newest_bytes_before_and_after_finish_step(path, storage):
    store = committed(path, storage)
    store.write("a", 0, aligned(SECTOR, 2)).wait()
    assert peek(store, offset=0) == 2
    assert peek(store, offset=SECTOR) == 1
    with pytest.raises(ValueError, match="written only in part"):
        peek(store, n_bytes=2 * SECTOR)
    store.write("a", SECTOR, aligned(SECTOR, 2)).wait()
    store.finish_step()
    assert peek(store, n_bytes=2 * SECTOR) == 2


def test_an_uncommitted_step_is_forgotten(path, storage):
    store = committed(path, storage)
    fill(store, 2)
    store.finish_step()
    fill(store, 3)
    store.finish_step()
    assert peek(store) == 3
    store.close()
    assert peek(reopen(path, storage)) == 1


def test_an_extent_that_was_not_written_keeps_its_version(path, storage):
    store = create(path, storage, {"a": SECTOR, "b": SECTOR})
    fill(store, 1)
    fill(store, 10, "b")
    store.commit(0, {})
    for step in (1, 2, 3):
        fill(store, 1 + step)
        store.commit(step, {})
    store.close()
    again = reopen(path, storage)
    assert (peek(again), peek(again, "b")) == (4, 10)


def test_partly_written_extent_is_named_and_nothing_switches(path, storage):
    store = create(path, storage, {"a": 2 * SECTOR, "b": SECTOR})
    fill(store, 1)
    fill(store, 1, "b")
    store.commit(0, {})
    fill(store, 2, "b")
    store.write("a", SECTOR, aligned(SECTOR, 2)).wait()
    with pytest.raises(ValueError, match="'a': bytes 0 to 4096"):
        store.finish_step()
    store.close()
    again = reopen(path, storage)
    assert (peek(again), peek(again, "b")) == (1, 1)


def test_ranges_of_an_older_step_do_not_count_as_written(path, storage):
    store = committed(path, storage)
    for step in (1, 2):
        for offset in (0, SECTOR):
            store.write("a", offset, aligned(SECTOR, step)).wait()
        store.commit(step, {})
    store.write("a", 0, aligned(SECTOR, 3)).wait()  # into the version that step 1 filled, range by range
    with pytest.raises(ValueError, match="'a': bytes 4096 to 8192"):
        store.finish_step()


def test_of_three_versions_a_step_is_taken_back_though_none_was_committed_before_it(path, storage):
    store = committed(path, storage, versions=3)
    for value in (2, 3):
        fill(store, value)
        store.finish_step()
    fill(store, 4)
    assert peek(store) == 4
    store.take_back(["a"])
    assert peek(store) == 3
    store.commit(1, {})
    store.close()
    assert peek(reopen(path, storage)) == 3


@pytest.mark.parametrize("versions", [1, 2])
def test_of_fewer_it_cannot_be(path, storage, versions):
    store = committed(path, storage, versions=versions)
    fill(store, 2)
    store.finish_step()
    fill(store, 3)
    with pytest.raises(ValueError, match="'a': its current version has been overwritten"):
        store.take_back(["a"])


@pytest.mark.parametrize("versions", [1, 2, 3])
def test_what_an_earlier_step_wrote_in_place_does_not_count_either(path, storage, versions):
    """Between two commits steps overwrite one version; a step that writes half of it is no step."""
    store = committed(path, storage, versions=versions)
    fill(store, 2)
    store.finish_step()
    store.write("a", 0, aligned(SECTOR, 3)).wait()
    with pytest.raises(ValueError, match="'a': bytes 4096 to 8192"):
        store.commit(1, {})


def test_commit_needs_every_extent_written_once(path, storage):
    store = create(path, storage, {"a": SECTOR, "b": SECTOR})
    fill(store, 1)
    with pytest.raises(ValueError, match="never written: b"):
        store.commit(0, {})


def test_reading_what_was_never_written_is_refused(path, storage):
    with pytest.raises(ValueError, match="before they were written"):
        peek(create(path, storage))


def test_unknown_extent_is_a_key_error(path, storage):
    store = create(path, storage)
    with pytest.raises(KeyError):
        store.read("nope", 0, aligned(SECTOR))
    with pytest.raises(KeyError):
        store.write("nope", 0, aligned(SECTOR))


def test_progress_that_is_not_json_changes_nothing(path, storage):
    store = committed(path, storage)
    for bad in (float("nan"), object()):
        with pytest.raises(ValueError, match=r"JSON|serializable"):
            store.commit(1, {"loss": bad})
    store.commit(1, {"loss": 0.5})
    assert store.committed_step == 1


def test_chunk_size_may_change_between_runs(path, storage):
    store = create(path, storage, {"a": 6 * SECTOR}, versions=1)
    for start in range(0, 6, 2):
        store.write("a", start * SECTOR, aligned(2 * SECTOR, 1)).wait()
    store.commit(0, {})
    for start in range(0, 6, 3):
        store.write("a", start * SECTOR, aligned(3 * SECTOR, 2)).wait()
    store.commit(1, {})
    store.close()
    assert peek(reopen(path, storage), n_bytes=6 * SECTOR) == 2


def test_second_user_is_told_who_holds_the_store(path, storage):
    store = create(path, storage)
    with pytest.raises(StoreError, match=r"in use by process \d+ on \S+ since 20"):
        StoreDirectory.at(path)
    store.close()
    StoreDirectory.at(path).close()


def test_existing_refuses_a_place_without_a_committed_store(path, storage):
    with pytest.raises(StoreError, match="no store here"):
        StoreDirectory.existing(path)
    assert not path.exists()
    create(path, storage).close()
    with pytest.raises(StoreError, match="never completed"):
        StoreDirectory.existing(path)


def test_half_created_store_is_started_over(path, storage, caplog):
    create(path, storage, {"old": SECTOR}).close()
    directory = StoreDirectory.at(path)
    assert not directory.holds_commit
    with caplog.at_level(logging.WARNING):
        Store.create(directory, storage, {"a": SECTOR}, IDENTITY)
    assert "starting over (2 extents given back)" in caplog.text
    assert set(storage.extents()) == {"a.0", "a.1"}


def test_namespace_is_known_before_the_storage_and_stays(path):
    with StoreDirectory.at(path) as directory:
        namespace = directory.namespace
    assert len(namespace) == 16
    with StoreDirectory.at(path) as directory:
        assert directory.namespace == namespace


def test_a_committed_store_is_not_created_again(path, storage):
    committed(path, storage).close()
    with StoreDirectory.at(path) as directory, pytest.raises(ValueError, match="open it"):
        Store.create(directory, storage, {"a": SECTOR}, IDENTITY)


def test_too_little_space_is_found_before_anything_is_allocated(path):
    storage = ForgetfulStorage(free_bytes=3 * SECTOR)
    with pytest.raises(StoreError, match=r"needs 16\.0 KiB and 12\.0 KiB are free"):
        create(path, storage)
    assert not storage.extents()


def test_allocation_that_fails_gives_back_what_it_had(path, storage, monkeypatch):
    allocate = storage._allocate

    def fail_on_the_last(name, size_bytes):
        if name == "b.1":
            raise StorageError(28, "full")
        allocate(name, size_bytes)

    monkeypatch.setattr(storage, "_allocate", fail_on_the_last)
    with pytest.raises(StorageError, match="full"):
        create(path, storage, {"a": SECTOR, "b": SECTOR})
    assert not storage.extents()


def test_unaligned_size_is_refused_before_anything_is_allocated(path, storage):
    with pytest.raises(ValueError, match="'b': 100 bytes"):
        create(path, storage, {"a": SECTOR, "b": 100})
    assert not storage.extents()


def test_other_identity_names_keys_and_both_values(path, storage):
    committed(path, storage).close()
    with pytest.raises(StoreError, match=r"model is 'tiny' in the store and 'big' now; rank is 'not set' .* '1' now"):
        reopen(path, storage, {"model": "big", "rank": "1"})


def test_missing_extent_is_named(path, storage):
    committed(path, storage).close()
    del storage.data["a.1"]
    with pytest.raises(StoreError, match=r"'a\.1' is missing \(a dict\)"):
        reopen(path, storage)


def test_truncated_extent_is_named(path, storage):
    committed(path, storage).close()
    del storage.data["a.0"][SECTOR:]
    with pytest.raises(StoreError, match=r"'a\.0' has 4096 bytes, not 8192"):
        reopen(path, storage)


def test_one_flipped_bit_is_found_and_located(path, storage):
    store = create(path, storage)
    store.write("a", 0, aligned(SECTOR, 1)).wait()
    store.write("a", SECTOR, aligned(SECTOR, 2)).wait()
    store.commit(0, {})
    store.close()
    storage.data["a.0"][SECTOR + 5] ^= 1
    with pytest.raises(StoreError, match="extent 'a' is corrupted between bytes 4096 and 8192"):
        reopen(path, storage)


def test_a_range_longer_than_the_verifying_buffers_is_verified_in_pieces(path, storage, monkeypatch):
    monkeypatch.setattr("lohan_core.store.verify.BUFFER_BYTES", SECTOR)
    store = create(path, storage, {"a": 11 * SECTOR, "b": SECTOR})
    values = aligned(11 * SECTOR)
    values.copy_((values.new_tensor(range(251)).repeat(180))[: values.numel()])
    store.write("a", 0, values).wait()
    fill(store, 3, "b")
    store.commit(0, {})
    store.close()
    reopen(path, storage).close()
    storage.data["a.0"][10 * SECTOR] ^= 1
    with pytest.raises(StoreError, match="between bytes 0 and 45056"):
        reopen(path, storage)


def test_without_checksums_nothing_is_read_back(path, storage):
    committed(path, storage, checksums=False).close()
    storage.data["a.0"][0] ^= 1
    reopen(path, storage).close()


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-20],
        lambda _: "",
        lambda _: "[]",
        lambda text: text.replace('"step":0', '"step":1'),
        lambda text: text.replace('"checksum": "', '"checksum": "0'),
    ],
)
def test_damaged_manifest_is_refused(path, storage, damage):
    committed(path, storage).close()
    manifest = path / "manifest.json"
    manifest.write_text(damage(manifest.read_text()))
    with pytest.raises(StoreError, match=r"manifest\.json: damaged"):
        StoreDirectory.at(path)
    with pytest.raises(StoreError, match=r"manifest\.json: damaged"):  # and the lock was let go of
        StoreDirectory.existing(path)


def test_manifest_of_a_newer_format_says_so(path, storage):
    committed(path, storage).close()
    manifest = path / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 2}))
    with pytest.raises(StoreError, match="format 2, this version reads 1; update"):
        StoreDirectory.at(path)


def test_single_version_survives_a_stop_between_steps(path, storage):
    store = committed(path, storage, versions=1)
    assert set(storage.extents()) == {"a.0"}
    fill(store, 2)
    store.commit(1, {})
    store.close()
    assert peek(reopen(path, storage)) == 2


def test_single_version_interrupted_while_overwriting_says_so(path, storage):
    store = committed(path, storage, versions=1)
    fill(store, 2)
    store.close()
    with pytest.raises(StoreError, match=r"run\.durability: none was interrupted after step 0"):
        reopen(path, storage)


def test_a_store_that_is_never_to_be_committed_is_not_gone_on_from(path, storage):
    store = create(path, storage, versions=1)
    fill(store, 1)
    store.finish_step()
    store.never_commit()
    store.never_commit()
    fill(store, 2)
    store.finish_step()
    assert peek(store) == 2
    store.close()
    with StoreDirectory.at(path) as directory, pytest.raises(StoreError, match="no space on the drives"):
        directory.require_kept()
    with pytest.raises(StoreError, match="no space on the drives"):
        StoreDirectory.existing(path)


def test_what_was_committed_is_not_given_up(path, storage):
    store = committed(path, storage, versions=1)
    with pytest.raises(ValueError, match="can be kept"):
        store.never_commit()


@pytest.mark.parametrize("moment", ["write", "finish_step", "commit"])
def test_a_failed_write_surfaces_even_if_nobody_waited_for_it(path, storage, moment):
    store = committed(path, storage)
    storage.fail_next_write = True
    store.write("a", 0, aligned(2 * SECTOR, 2))
    with pytest.raises(StorageError, match="drive gone"):
        {"write": lambda: fill(store, 2), "finish_step": store.finish_step, "commit": lambda: store.commit(1, {})}[
            moment
        ]()
    with pytest.raises(StoreError, match="takes no writes after a failure: drive gone"):
        fill(store, 3)
    with pytest.raises(StoreError, match="after a failure"):
        store.commit(1, {})
    store.close()
    assert peek(reopen(path, storage)) == 1


def test_a_failed_sync_commits_nothing(path, storage):
    store = committed(path, storage)
    fill(store, 2)
    storage.fail_next_sync = True
    with pytest.raises(StorageError, match="sync failed"):
        store.commit(1, {})
    with pytest.raises(StoreError, match="after a failure"):
        fill(store, 3)
    store.close()
    assert peek(reopen(path, storage)) == 1


@pytest.mark.parametrize("where", ["sync", "manifest"])
def test_an_interrupted_commit_ends_the_writing(path, storage, monkeypatch, where):
    """Whether it came about is on the drives; what this process would overwrite next must not depend on a guess."""
    store = committed(path, storage)
    fill(store, 2)

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(*((storage, "sync") if where == "sync" else (Versions, "commit")), interrupt)
        with pytest.raises(KeyboardInterrupt):
            store.commit(1, {})
    with pytest.raises(StoreError, match="after a failure"):
        fill(store, 3)
    store.close()
    assert peek(reopen(path, storage)) == (1 if where == "sync" else 2)


def test_a_manifest_that_cannot_be_replaced_ends_the_writing(path, storage):
    store = committed(path, storage)
    fill(store, 2)
    (path / "manifest.json.new").mkdir()
    with pytest.raises(StorageError, match=r"manifest\.json: cannot be written"):
        store.commit(1, {})
    with pytest.raises(StoreError, match="after a failure"):
        fill(store, 3)
    assert store.committed_step == 0
    store.close()
    assert peek(reopen(path, storage)) == 1


def test_a_lost_manifest_is_not_replaced_where_extents_are(path, storage):
    committed(path, storage).close()
    (path / "manifest.json").unlink()
    StoreDirectory.at(path).close()  # a crash between the lock and the first manifest leaves nothing that could be lost
    (path / "manifest.json").unlink()
    (path / "extents").mkdir()
    with pytest.raises(StoreError, match=rf"manifest\.json: missing, and extents of .* remove {path} to start over"):
        StoreDirectory.at(path)
    assert sorted(file.name for file in path.iterdir()) == ["extents", "lock"]


def test_close_twice(path, storage):
    store = create(path, storage)
    store.close()
    store.close()


def test_concurrent_reads_and_writes(path, storage):
    chunks = 4
    store = create(path, storage, {"a": chunks * SECTOR, "b": chunks * SECTOR})
    fill(store, 0)
    fill(store, 0, "b")
    store.commit(0, {})
    errors = []

    def work(name, offset):
        try:
            for step in range(5):
                assert peek(store, name, offset) == step
                store.write(name, offset, aligned(SECTOR, step + 1)).wait()
                barrier.wait()
                if (name, offset) == ("a", 0):
                    store.finish_step()
                barrier.wait()
        except BaseException as error:  # noqa: BLE001 - carried over to the test's thread
            errors.append(error)
            barrier.abort()

    barrier = threading.Barrier(2 * chunks)
    threads = [threading.Thread(target=work, args=(name, i * SECTOR)) for name in ("a", "b") for i in range(chunks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert (peek(store), peek(store, "b")) == (5, 5)


def test_directory_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be made"):
        StoreDirectory.at(tmp_path / "file" / "store")
