"""What a person can get wrong: one line that says what, where and what to do, exit code 2, and nothing lost."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess

import command_line
import pytest
from small_runs import SmallRun, write_samples
from tiny_lms import CONFIGS, make_lm, save_lm
from transformers import BertConfig, ViTConfig

REFUSED = 2
STOPPED = 3


def assert_refused(ended, *parts):
    assert ended.code == REFUSED, ended
    assert ended.err.startswith("error: "), ended
    assert len(ended.err.splitlines()) == 1, ended
    for part in parts:
        assert str(part) in ended.err


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, sections):
    """A run that was stopped after a few of its steps."""
    run = SmallRun(tmp_path_factory.mktemp("stopped") / "ours", sections)
    assert run.start().stop_when(lambda: run.steps() >= 2, signal.SIGTERM).code == STOPPED
    return run


@pytest.fixture
def copied(stopped, tmp_path):
    """A copy of it that may be damaged."""
    run = SmallRun(tmp_path / "copy", stopped.sections)
    shutil.copytree(stopped.directory, run.directory)
    return run


@pytest.fixture(scope="module")
def wrong(tmp_path_factory, materials):
    """Files and directories to get wrong."""
    folder = tmp_path_factory.mktemp("wrong")
    for name, config in {
        "bert": BertConfig(vocab_size=96, hidden_size=48, num_hidden_layers=2, num_attention_heads=4),
        "vit": ViTConfig(hidden_size=48, num_hidden_layers=2, num_attention_heads=4),
    }.items():
        config.save_pretrained(folder / name)
    save_lm("llama", folder / "llama")
    make_lm(CONFIGS["gpt2"](), seed=8).save_pretrained(folder / "other_weights")
    shutil.copytree(materials / "gpt2", folder / "no_weights")
    (folder / "no_weights" / "model.safetensors").unlink()
    write_samples(folder / "other.jsonl", 30, seed=9)
    (folder / "empty.jsonl").touch()
    (folder / "blank.jsonl").write_text("\n\n")
    (folder / "malformed.jsonl").write_text('{"input_ids": [3, 4, 5]}\n{"input_ids": [3, 4, \n')
    (folder / "tokens.jsonl").write_text('{"input_ids": [3, 4, 96]}\n')
    (folder / "short.jsonl").write_text('{"input_ids": [3]}\n')
    (folder / "text.jsonl").write_text('{"text": "one two three"}\n')
    return folder


# What is set, and what the line must hold. WRONG stands for the folder above.
MISTAKES = {
    "misspelt key": (["optimizer.lerning_rate=1"], ["optimizer.lerning_rate: unknown key"]),
    "misspelt section": (["optimiser.lr=1"], ["optimiser: unknown section", "optimizer"]),
    "wrong type": (["run.steps=many"], ["run.steps", "whole number", "'many'"]),
    "impossible value": (["run.micro_batch_size=3"], ["run.micro_batch_size", "divide batch_size (4)"]),
    "no such backend": (["storage.backend=aoi"], ["storage.backend", "aio"]),
    "no such model": (["model.path=WRONG/none"], ["model.path", "WRONG/none"]),
    "model without weights": (["model.path=WRONG/no_weights"], ["WRONG/no_weights", "model.safetensors"]),
    "an encoder": (["model.path=WRONG/bert"], ["model.path", "'bert'", "not a causal LM"]),
    "a vision model": (["model.path=WRONG/vit"], ["model.path", "'vit'", "not a causal LM"]),
    "no such data": (["data.train=WRONG/none.jsonl"], ["WRONG/none.jsonl", "no such file"]),
    "a folder for data": (["data.train=WRONG"], ["WRONG", "not a file"]),
    "empty data": (["data.train=WRONG/empty.jsonl"], ["WRONG/empty.jsonl", "empty"]),
    "blank data": (["data.eval=WRONG/blank.jsonl"], ["WRONG/blank.jsonl", "blank"]),
    "malformed line": (["data.train=WRONG/malformed.jsonl"], ["WRONG/malformed.jsonl:2", "not JSON"]),
    "token of another vocabulary": (["data.train=WRONG/tokens.jsonl"], ["WRONG/tokens.jsonl:1", "96"]),
    "nothing to learn": (["data.train=WRONG/short.jsonl"], ["WRONG/short.jsonl", "learn"]),
    "no tokenizer": (["data.train=WRONG/text.jsonl"], ["gpt2", "tokenizer", "input_ids"]),
    "no such drive": (["storage.directories=[WRONG/none]"], ["storage.directories", "WRONG/none", "does not exist"]),
    "a file for a drive": (["storage.directories=[WRONG/empty.jsonl]"], ["storage.directories", "not a directory"]),
    "a run below a file": (["run.dir=WRONG/empty.jsonl/run"], ["run.dir", "WRONG/empty.jsonl/run", "Not a directory"]),
    # Told before the data are looked at, which may take hours.
    "no such machine": (
        ["profiler={backend: file, hardware: rtx4090}", "data.train=WRONG/none.jsonl"],
        ["profiler.hardware", "Did you mean 'rtx-4090'"],
    ),
    "no such drive, and no data": (
        ["storage.directories=[WRONG/none]", "data.train=WRONG/none.jsonl"],
        ["storage.directories", "WRONG/none", "does not exist"],
    ),
    "no flash-attn here": (
        ["model.attention=flash", "data.train=WRONG/none.jsonl"],
        ["model.attention", "flash-attn", "auto"],
    ),
    "no such planner to mix": (
        ["planner.backend=mixed", "planner.activations=gredy", "planner.states=greedy", "data.train=WRONG/none.jsonl"],
        ["planner.activations", "greedy"],
    ),
    "too little host memory": (["memory.host=64KiB"], ["on host", "64.0 KiB", "memory.host"]),
    "too little device memory": (["memory.gpu=64KiB"], ["on gpu", "60.0 KiB", "memory.gpu"]),
    "too little disk": (["memory.ssd=1MiB"], ["on ssd", "1.00 MiB", "run.durability"]),
}
# Likewise, of a store that there is.
CHANGES = {
    "another architecture": (["model.path=WRONG/llama"], ["another run", "model (config)"]),
    "other weights": (["model.path=WRONG/other_weights"], ["another run", "model (weights)"]),
    "other data": (["data.train=WRONG/other.jsonl"], ["another run", "data.train"]),
    "another sequence length": (
        ["data.sequence_length=16"],
        ["another run", "data.sequence_length is '24' in the store and '16' now; data.train changed, which may"],
    ),
    "another batch size": (["run.batch_size=6"], ["another run", "run.batch_size is '4' in the store and '6' now"]),
    "another dtype": (["run.dtype=bfloat16"], ["another run", "run.dtype"]),
    "another seed": (["run.seed=4"], ["another run", "run.seed"]),
    "another optimizer": (["optimizer.backend=torch_adamw"], ["another run", "optimizer.backend"]),
    "less durability": (["run.durability=none"], ["another run", "run.durability"]),
    "other stripes": (["storage.stripe_bytes=64KiB"], ["storage.stripe_bytes 1048576, not 65536"]),
}


def filled_in(texts, wrong):
    return [text.replace("WRONG", str(wrong)) for text in texts]


@pytest.mark.parametrize(("overrides", "parts"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_begins_nothing(make_run, wrong, overrides, parts):
    run = make_run()
    ended = run.train(*filled_in(overrides, wrong))
    assert_refused(ended, *filled_in(parts, wrong))
    assert run.extents() == []
    remains = {path.name for path in run.directory.iterdir()} if run.directory.exists() else set()
    assert remains <= {"data", "store"}
    if "store" in remains:
        assert run.manifest()["commit"] is None
    assert not list(run.directory.rglob("*.partial"))


@pytest.mark.parametrize(("overrides", "parts"), (MISTAKES | CHANGES).values(), ids=MISTAKES | CHANGES)
def test_a_mistake_harms_no_run(stopped, wrong, overrides, parts):
    def worth_something():
        # Beside it there are other data's tokens, and scratch space for one process.
        scrap = re.compile(r"^data/|/scratch|/index\.json$")
        return {name: content for name, content in stopped.files().items() if not scrap.search(name)}

    before = worth_something()
    ended = stopped.train(*filled_in(overrides, wrong))
    assert_refused(ended, *filled_in(parts, wrong))
    assert worth_something() == before


def test_a_run_goes_on_after_mistakes(copied, undisturbed):
    assert_refused(copied.train("run.seed=4"))
    assert_refused(copied.train("memory.host=64KiB"))
    ended = copied.train()
    assert (ended.code, ended.err) == (0, "")
    assert copied.outcome() == undisturbed()


def test_a_first_start_that_failed_binds_nothing(make_run, tmp_path):
    run = make_run()
    drives = [tmp_path / name for name in ("first", "second")]
    for drive in drives:
        drive.mkdir()
    both = f"storage.directories=[{drives[0]}, {drives[1]}]"
    assert_refused(run.train(f"storage.directories=[{drives[0]}]", "memory.ssd=1MiB"))
    ended = run.train(both, "storage.stripe_bytes=64KiB", "run.seed=8", "run.steps=1")
    assert (ended.code, ended.err) == (0, "")
    assert all(list(drive.rglob("*.extent")) for drive in drives)


def test_rows_longer_than_the_model_s_positions_are_refused_before_the_first_step(make_run, tmp_path):
    """Past the last one that it has learned there is nothing to look up: on a GPU that ends the process."""
    late = tmp_path / "late.jsonl"
    write_samples(late, 20)
    with late.open("a") as file:
        file.write(json.dumps({"input_ids": [5] * 200}) + "\n")
    run = make_run(data={"train": str(late), "sequence_length": 256})
    assert_refused(run.train(), "late.jsonl: 256 tokens in a row", "lower data.sequence_length to 48")
    assert run.metrics() == []


def test_gradients_that_are_no_numbers_end_a_run(make_run):
    run = make_run()
    ended = run.train("optimizer.lr=1e30")
    assert (ended.code, len(ended.err.splitlines())) == (1, 1), ended
    assert f"error: step {run.steps() + 1}: the gradient norm is " in ended.err
    assert "optimizer.lr" in ended.err
    assert run.manifest()["commit"]["step"] == run.steps()


def test_tensorboard_is_asked_for_and_missing(make_run):
    run = make_run(run={"tensorboard": True})
    assert_refused(run.train(without=["tensorboard"]), "run.tensorboard", "pip install")
    assert not run.directory.exists()


def test_no_such_config(tmp_path):
    ended = command_line.run(["train", tmp_path / "none.yaml"], tmp_path)
    assert_refused(ended, tmp_path / "none.yaml", "No such file")


def test_no_such_run_to_export(tmp_path):
    ended = command_line.run(["export", tmp_path, tmp_path / "out"], tmp_path)
    assert_refused(ended, tmp_path, "no config.yaml")


def test_samples_too_long_are_counted(make_run, tmp_path):
    lines = ['{"input_ids": [3, 4, 5, 6]}', '{"input_ids": [' + ", ".join(["7"] * 60) + "]}"]
    (tmp_path / "long.jsonl").write_text("\n".join(lines))
    ended = make_run().train(f"data.train={tmp_path / 'long.jsonl'}", "run.steps=1", "run.batch_size=2")
    assert (ended.code, ended.err) == (0, "")
    assert "1 longer than a row and cut off" in ended.out


def flip(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def committed_extent(run, name):
    """The file of an extent's committed version."""
    version = run.manifest()["commit"]["extents"][name]["version"]
    wanted = f"{name}.{version}".replace(".", "%2E")
    return next(path for path in run.extents() if path.name.startswith(wanted))


def test_a_corrupted_manifest(copied):
    path = copied.directory / "store" / "manifest.json"
    flip(path, path.stat().st_size // 2)
    assert_refused(copied.train(), path, "damaged")


def test_a_truncated_manifest(copied):
    path = copied.directory / "store" / "manifest.json"
    os.truncate(path, path.stat().st_size // 2)
    assert_refused(copied.train(), path, "damaged")


def test_a_lost_manifest_of_a_run_whose_states_are_on_other_drives(tmp_path, make_run):
    drive = tmp_path / "drive"
    drive.mkdir()
    run = make_run(storage={"directories": [str(drive)]})
    assert run.train("run.steps=1").code == 0
    path = run.directory / "store" / "manifest.json"
    kept = path.rename(tmp_path / "copy.json")
    before = run.files()
    assert_refused(run.train("run.steps=2"), path, "missing", "metrics.jsonl", "another run.dir")
    assert run.files() == before
    kept.rename(path)
    assert run.train("run.steps=2").code == 0


def test_a_flipped_bit_in_an_extent(copied):
    path = committed_extent(copied, "exp_avg.2")
    flip(path, 5000)
    before = copied.files()
    assert_refused(copied.train(), "'exp_avg.2' is corrupted between bytes 0 and 32768", "run.dir")
    assert_refused(command_of_export(copied), "'exp_avg.2' is corrupted")
    assert copied.files() == before
    flip(path, 5000)
    assert copied.train().code == 0


def command_of_export(run):
    ended = run.export("exported")
    assert not (run.folder / "exported").exists()
    return ended


def test_a_truncated_extent(copied):
    path = committed_extent(copied, "master.1")
    os.truncate(path, path.stat().st_size - 4096)
    assert_refused(copied.train(), path, "truncated")


def test_a_missing_extent(copied):
    path = committed_extent(copied, "master.1")
    path.unlink()
    assert_refused(copied.train(), path, "missing")


def test_two_runs_never_share_a_store(make_run, undisturbed):
    run = make_run()
    running = run.start()
    running.freeze_when(lambda: run.steps() >= 1)
    ended = run.train()
    assert_refused(ended, f"in use by process {running.process.pid} on", "run.dir")
    assert_refused(command_of_export(run), f"in use by process {running.process.pid} on")
    running.signal(signal.SIGCONT)
    assert running.wait().code == 0
    assert run.outcome() == undisturbed()


def test_two_first_starts_at_once(make_run, undisturbed):
    run = make_run()
    ended = [running.wait() for running in [run.start(), run.start()]]
    assert sorted(end.code for end in ended) == [0, REFUSED]
    assert_refused(*(end for end in ended if end.code), "in use by ")  # who, if it has written so yet
    assert run.outcome() == undisturbed()


def test_runs_side_by_side_on_the_same_drives(make_run, tmp_path, undisturbed):
    drive = tmp_path / "drive"
    drive.mkdir()
    runs = [make_run(name, storage={"directories": [str(drive)]}) for name in ("one", "other")]
    for running in [run.start() for run in runs]:
        assert running.wait().code == 0
    assert [run.outcome() for run in runs] == [undisturbed()] * 2


@pytest.fixture
def small_drive(tmp_path):
    """A file system of 4 MiB."""
    drive = tmp_path / "small"
    drive.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4M", "tmpfs", drive], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"mounting needs root: {mounted.stderr.decode().strip()}")
    yield drive
    subprocess.run(["umount", "--lazy", drive], check=True)  # a run of a test that failed may still be at it


def test_a_drive_that_is_too_small(make_run, small_drive):
    run = make_run(storage={"directories": [str(small_drive)]})
    assert_refused(run.train(), "on ssd", "storage.directories")
    assert not list(small_drive.rglob("*.extent"))


@pytest.mark.parametrize(
    ("step", "left_bytes", "expected"),
    [(3, 0, (1, "No space left on device")), (8, 200 << 10, (REFUSED, "the model takes"))],
    ids=["steps", "model"],
)
def test_a_run_directory_that_fills_up(make_run, undisturbed, small_drive, step, left_bytes, expected):  # noqa: PLR0917 - fixtures and a case
    run = make_run()
    drive = run.folder / "drive"
    drive.mkdir()
    run.directory.symlink_to(small_drive)
    running = run.start(f"storage.directories=[{drive}]")
    running.freeze_when(lambda: run.steps() >= step)
    filler = small_drive / "filler"
    facts = os.statvfs(small_drive)
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, facts.f_bavail * facts.f_frsize - left_bytes)
    running.signal(signal.SIGCONT)
    ended = running.wait()
    code, what = expected
    assert (ended.code, len(ended.err.splitlines())) == (code, 1), ended
    assert ended.err.startswith("error: ")
    assert what in ended.err
    filler.unlink()
    assert run.train(f"storage.directories=[{drive}]").code == 0
    assert run.outcome() == undisturbed()


def test_a_drive_that_cannot_be_written(make_run, small_drive):
    subprocess.run(["mount", "-o", "remount,ro", small_drive], check=True)
    assert_refused(make_run(storage={"directories": [str(small_drive)]}).train(), "storage.directories", small_drive)
    assert_refused(make_run("other", run={"dir": str(small_drive)}).train(), "run.dir", small_drive)
