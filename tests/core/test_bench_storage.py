import json
import shutil

import attrs
import pytest

from lohan_core.bench import storage as bench
from lohan_core.bench.fio import FioJob, Sample, parse_fio
from lohan_core.errors import BackendError, ConfigError
from lohan_core.registry import load_registry

MIB = 1 << 20


@pytest.fixture
def options(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    return bench.StorageBenchOptions(
        directories=(tmp_path / "a", tmp_path / "b"),
        size_bytes=8 * MIB,
        block_bytes=MIB // 4,
        depth=4,
        rounds=2,
        seconds=0.1,
    )


@pytest.fixture
def registry():
    registry = load_registry()
    if not any(offer.backend.name == "aio" and offer.unusable() is None for offer in registry.offers):
        pytest.skip("the backend aio is not installed")
    return registry


def job(tmp_path, **changes):
    settings = {
        "files": [tmp_path / "a:1", tmp_path / "b"],
        "file_bytes": 64 * MIB,
        "block_bytes": MIB,
        "depth": 8,
        "engine": "io_uring",
        "seconds": 1.0,
    }
    return FioJob(**(settings | changes))


def test_it_runs_without_fio(options, registry, monkeypatch):
    monkeypatch.setattr(bench, "fio_version", lambda: None)
    result = bench.run(options, registry)
    assert [row.operation for row in result.rows] == ["write", "read"]
    for row in result.rows:
        assert row.bytes_per_second > 0
        assert row.cpu_seconds_per_gb > 0
        assert len(row.rounds_bytes_per_second) == 2
        assert row.ratio_to_fio is None
    assert "fio is not installed" in bench.render(result)
    assert not [path for directory in options.directories for path in directory.iterdir()]


@pytest.mark.skipif(shutil.which("fio") is None, reason="fio is not installed")
@pytest.mark.parametrize("engine", ["auto", "threads"])
def test_fio_measures_the_same_files(options, registry, engine):
    result = bench.run(attrs.evolve(options, engine=engine), registry)
    for row in result.rows:
        assert row.ratio_to_fio > 0
        assert len(row.fio_rounds_bytes_per_second) == 2
    assert result.fio_command in bench.render(result)
    assert result.fio_command.count("bench.") == 2
    assert not [path for directory in options.directories for path in directory.iterdir()]


def test_sizes_must_divide(options, registry):
    with pytest.raises(ConfigError, match="whole number of blocks"):
        bench.run(attrs.evolve(options, size_bytes=8 * MIB + 4096), registry)


def test_a_directory_that_is_missing_is_named(options, registry, tmp_path):
    with pytest.raises(ConfigError, match=str(tmp_path / "none")):
        bench.run(attrs.evolve(options, directories=(tmp_path / "none",)), registry)


def test_more_than_is_free_is_refused(options, registry):
    with pytest.raises(ConfigError, match=r"^--size: 100 TiB are more than the .* free in .*/a, .*/b; ask for less"):
        bench.run(attrs.evolve(options, size_bytes=100 << 40), registry)
    assert not [path for directory in options.directories for path in directory.iterdir()]


def test_fio_is_given_the_same_work(tmp_path):
    command = job(tmp_path).command("read")
    assert rf"--filename={tmp_path}/a\:1:{tmp_path}/b" in command
    assert {"--rw=read", f"--size={128 * MIB}", f"--bs={MIB}", "--iodepth=8", "--numjobs=1"} <= set(command)
    assert {"--ioengine=io_uring", "--fixedbufs=1", "--registerfiles=1", "--direct=1"} <= set(command)


def test_threads_of_fio_divide_the_files(tmp_path):
    command = set(job(tmp_path, engine="threads", file_bytes=60 * MIB).command("write"))
    assert {"--ioengine=psync", "--numjobs=8", "--iodepth=1"} <= command
    assert {f"--size={14 * MIB}", f"--offset_increment={7 * MIB}"} <= command


def test_figures_are_read_from_the_report():
    entry = {"io_bytes": 4 * 10**9, "bw_bytes": 2 * 10**9}
    report = {"jobs": [{"read": entry, "job_runtime": 2000, "usr_cpu": 10.0, "sys_cpu": 30.0}]}
    sample = parse_fio("note: something\n" + json.dumps(report), "read")
    assert sample == Sample(bytes_per_second=2e9, cpu_seconds_per_gb=pytest.approx(0.2))


def test_what_fio_complains_of_is_passed_on(tmp_path):
    if shutil.which("fio") is None:
        pytest.skip("fio is not installed")
    with pytest.raises(BackendError, match="fio failed: "):
        job(tmp_path, block_bytes=MIB, engine="libaio", files=[tmp_path]).run("read")


def test_the_ratio_is_that_of_the_rounds():
    own = [Sample(bytes_per_second=rate, cpu_seconds_per_gb=0.1) for rate in (10.0, 2.0, 30.0)]
    fio = [Sample(bytes_per_second=rate, cpu_seconds_per_gb=0.2) for rate in (10.0, 1.0, 60.0)]
    row = bench.summarise("read", own, fio)
    assert (row.bytes_per_second, row.fio_bytes_per_second, row.ratio_to_fio) == (10.0, 10.0, 1.0)
