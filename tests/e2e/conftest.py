from __future__ import annotations

import multiprocessing

import pytest
from small_runs import SmallRun, merged, write_samples
from tiny_lms import save_lm


@pytest.fixture(autouse=True)
def no_survivors():
    """End what a test that failed left behind: a process that is halted would keep pytest from ending."""
    yield
    for process in multiprocessing.active_children():
        process.kill()
        process.join()


@pytest.fixture(scope="session")
def materials(tmp_path_factory):
    """A model with dropout and tied embeddings, and data: what all runs here begin from."""
    folder = tmp_path_factory.mktemp("materials")
    save_lm("gpt2", folder / "gpt2")
    write_samples(folder / "train.jsonl", 30)
    write_samples(folder / "eval.jsonl", 24, seed=1)
    write_samples(folder / "long_eval.jsonl", 200, seed=2)
    return folder


@pytest.fixture(scope="session")
def sections(materials):
    """A run of nine steps in fp32, with two micro-batches a step, and an evaluation every third step."""
    return {
        "model": {"path": str(materials / "gpt2")},
        "data": {
            "train": str(materials / "train.jsonl"),
            "eval": str(materials / "eval.jsonl"),
            "sequence_length": 24,
            "packing": False,
        },
        "run": {
            "dir": "run",
            "steps": 9,
            "batch_size": 4,
            "micro_batch_size": 2,
            "seed": 3,
            "device": "cpu",
            "dtype": "float32",
            "eval_every": 3,
        },
        "memory": {"chunk": "32KiB"},
        "storage": {"register_buffers": False},
        "optimizer": {"lr": "1e-3", "schedule": "cosine", "warmup_steps": 2},
        # What is moved in a step must not depend on this machine's rates.
        "planner": {"backend": "keep_nothing"},
        # Rates are measured once each: how much is read and written in a run is then known to the byte.
        "profiler": {"seconds": "1e-9"},
    }


@pytest.fixture
def make_run(tmp_path, sections):
    """Make a run in a folder of its own, with changes to the sections above."""

    def make(name="ours", **changes):
        return SmallRun(tmp_path / name, merged(sections, changes))

    return make


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory, sections):
    """Carry a run out in one go, once for all tests that ask for it; returns its outcome."""
    outcomes = {}

    def outcome(**changes):
        key = repr(sorted(changes.items()))
        if key not in outcomes:
            run = SmallRun(tmp_path_factory.mktemp("undisturbed"), merged(sections, changes))
            ended = run.train()
            assert (ended.code, ended.err) == (0, "")
            outcomes[key] = run.outcome()
        return outcomes[key]

    return outcome
