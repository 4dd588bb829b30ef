"""A run from its config to the model at its end, and everything that it leaves in its directory."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_runs import SmallRun, merged
from tiny_lms import CONFIGS, make_lm
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast

from lohan_core.config import load_config
from lohan_core.registry import load_registry

KEYS = [
    "step",
    "loss",
    "lr",
    "grad_norm",
    "clipped",
    "speculated",
    "tokens",
    "seconds",
    "tokens_per_second",
    "storage_read_bytes",
    "storage_write_bytes",
]
WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "saw",
    "how",
    "dogs",
    "run",
    "in",
    "circles",
    "round",
    "it",
    "all",
    "day",
    "long",
]
UNKNOWN, END, PAD = "<unk>", "<end>", "<pad>"
STEPS = 12


def _sample(k):
    """The words of prompt and completion of the sample ``k``."""
    return WORDS[k % 7 : k % 7 + 3], WORDS[k % 5 : k % 5 + 6]


@pytest.fixture(scope="module")
def run(tmp_path_factory, sections):
    """A Llama of five layers with a tokenizer, trained on prompts and completions in bfloat16 to its end."""
    folder = tmp_path_factory.mktemp("llama")
    config = LlamaConfig(**{**CONFIGS["llama"]().to_dict(), "num_hidden_layers": 5})
    make_lm(config).save_pretrained(folder / "model")
    vocabulary = {word: number for number, word in enumerate([UNKNOWN, END, PAD, *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token=UNKNOWN, eos_token=END, pad_token=PAD)
    tokenizer.save_pretrained(folder / "model")
    for name, samples in (("train", 40), ("eval", 8)):
        pairs = ((" ".join(words) for words in _sample(k)) for k in range(samples))
        lines = [json.dumps({"prompt": prompt, "completion": f" {completion}"}) for prompt, completion in pairs]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    ours = SmallRun(
        folder / "ours",
        merged(
            sections,
            {
                "model": {"path": str(folder / "model")},
                "data": {"train": "../train.jsonl", "eval": "../eval.jsonl", "packing": True},
                "run": {"steps": STEPS, "dtype": "bfloat16", "eval_every": 4, "tensorboard": True},
            },
        ),
    )
    # As a person would, from anywhere; the other tests fork.
    command = [sys.executable, "-P", "-m", "lohan_core.cli", "train", ours.config, "--set", "optimizer.lr=5e-3"]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, cwd=folder, env=os.environ)
    assert (ended.returncode, ended.stderr) == (0, "")
    return ours


def test_metrics_have_a_line_for_every_step(run):
    entries = [entry for entry in run.metrics() if "loss" in entry]
    assert [list(entry) for entry in entries] == [KEYS] * STEPS
    assert [entry["step"] for entry in entries] == list(range(1, STEPS + 1))
    numbers = [value for entry in entries for value in entry.values() if not isinstance(value, bool)]
    assert all(math.isfinite(value) and value > 0 for value in numbers)
    assert [entry["clipped"] for entry in entries] == [entry["grad_norm"] > 1.0 for entry in entries]
    assert not any(entry["speculated"] for entry in entries)
    assert entries[-1]["loss"] < entries[0]["loss"]
    rates = [entry["lr"] for entry in entries]
    assert rates[:3] == [2.5e-3, 5e-3, 5e-3]
    assert rates[2:] == pytest.approx([2.5e-3 * (1 + math.cos(math.pi * k / 10)) for k in range(10)])
    for entry in entries:
        assert entry["tokens_per_second"] == pytest.approx(entry["tokens"] / entry["seconds"])


def test_evaluations_are_in_the_metrics(run):
    entries = [entry for entry in run.metrics() if "loss" not in entry]
    assert [list(entry) for entry in entries] == [["step", "eval_loss", "eval_seconds"]] * len(entries)
    assert [entry["step"] for entry in entries] == [0, 4, 8, 12]
    assert entries[-1]["eval_loss"] < entries[0]["eval_loss"]


def test_bytes_moved_are_the_schedules(run):
    """Of steps that clip, with all states on the drives and room for three of the five layers on the GPU.

    Updates are deferred: the first step, and those after an evaluation, find none to do; the others read no weights in
    forward, which come fresh from their updates.
    """
    sizes = {name: record["size_bytes"] for name, record in run.manifest()["commit"]["extents"].items()}
    weights = [sizes[f"weights.{block}"] for block in range(7)]
    states = sum(size for name, size in sizes.items() if not name.startswith("weights"))
    gradients = sum(weights)  # of the same type; they wait on the drives for the norm
    once, twice = sum(weights[3:]), sum(weights[:3])  # the last three layers stay for backward, head follows them
    finished = [entry["step"] for entry in run.metrics() if "eval_loss" in entry]
    for entry in run.metrics():
        if "loss" in entry and entry["step"] - 1 in finished:
            assert entry["storage_read_bytes"] == once + 2 * twice
            assert entry["storage_write_bytes"] == gradients
        elif "loss" in entry:
            assert entry["storage_read_bytes"] == twice + gradients + states
            assert entry["storage_write_bytes"] == gradients + states + sum(weights)


def test_the_config_is_there_as_resolved(run):
    registry = load_registry()
    resolved = load_config(run.directory / "config.yaml", [], registry)
    assert resolved == load_config(run.config, ["optimizer.lr=5e-3"], registry)
    assert resolved.data.train == run.folder / "../train.jsonl"


def test_events_are_there(run):
    for name in [*KEYS[1:], "eval_loss"]:
        expected = [(entry["step"], pytest.approx(float(entry[name]))) for entry in run.metrics() if name in entry]
        assert run.events(name) == expected


def test_the_model_loads_and_is_the_one_that_was_evaluated(run):
    model = AutoModelForCausalLM.from_pretrained(run.directory / "model", dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(run.directory / "model")
    assert model.dtype == torch.bfloat16
    total = tokens = 0
    for k in range(8):
        prompt, completion = (tokenizer(" ".join(words))["input_ids"] for words in _sample(k))
        ids = torch.tensor([[*prompt, *completion, tokenizer.eos_token_id]])
        labels = ids.clone()
        labels[:, : len(prompt)] = -100
        with torch.no_grad():
            total += float(model(input_ids=ids, labels=labels).loss) * (len(completion) + 1)
        tokens += len(completion) + 1
    assert total / tokens == pytest.approx(run.metrics()[-1]["eval_loss"], rel=0.02)


def test_export_writes_the_masters_or_their_rounding(run):
    for dtype in ("float32", "bfloat16"):
        ended = run.export(dtype, dtype)
        assert (ended.code, ended.err) == (0, "")
    load = AutoModelForCausalLM.from_pretrained
    masters = load(run.folder / "float32", dtype="auto").state_dict()
    rounded = load(run.folder / "bfloat16", dtype="auto").state_dict()
    final = load(run.directory / "model", dtype="auto").state_dict()
    assert all(torch.equal(masters[name].bfloat16(), rounded[name]) for name in masters)
    assert any(not torch.equal(masters[name], rounded[name].float()) for name in masters)
    assert all(torch.equal(final[name], rounded[name]) for name in masters)
    assert AutoTokenizer.from_pretrained(run.folder / "float32").get_vocab()["cat"] == 4
    held = _masters_in_the_store(run)
    assert [name for name, tensor in masters.items() if tensor.numpy().tobytes() not in held] == []


def _masters_in_the_store(run):
    """The bytes of all master extents, as committed."""
    extents = run.manifest()["commit"]["extents"]
    wanted = {f"{name}.{record['version']}".replace(".", "%2E") for name, record in extents.items() if "master" in name}
    return b"".join(path.read_bytes() for path in run.extents() if any(path.name.startswith(name) for name in wanted))


def test_a_run_whose_kernels_need_a_gpu_is_exported_without_one(run):
    config = run.directory / "config.yaml"
    before = config.read_text()
    changed = before.replace("loss: whole", "loss: liger").replace("attention: auto", "attention: flash")
    assert changed.count("liger") == changed.count("flash") == 1
    config.write_text(changed)
    ended = run.export("elsewhere")
    config.write_text(before)
    assert (ended.code, ended.err) == (0, "")


def test_export_refuses_a_model_that_is_not_the_run_s_any_more(run):
    path = Path(run.sections["model"]["path"]) / "config.json"
    before = path.read_text()
    path.write_text(json.dumps(json.loads(before) | {"n_head": 2}))
    ended = run.export("another")
    path.write_text(before)
    assert (ended.code, len(ended.err.splitlines())) == (2, 1)
    assert "model (config)" in ended.err
    assert not (run.folder / "another").exists()


def test_export_refuses_to_overwrite(run):
    (run.folder / "taken").mkdir()
    (run.folder / "taken" / "something").touch()
    ended = run.export("taken")
    assert (ended.code, len(ended.err.splitlines())) == (2, 1)
    assert str(run.folder / "taken") in ended.err
    assert [path.name for path in (run.folder / "taken").iterdir()] == ["something"]


def test_a_finished_run_has_nothing_to_do(run):
    before = run.outcome(), run.manifest()
    ended = run.train("optimizer.lr=5e-3")
    assert (ended.code, ended.err) == (0, "")
    assert (run.outcome(), run.manifest()) == before


def test_more_steps_make_another_model(run):
    before = run.outcome()[1]
    ended = run.train("optimizer.lr=5e-3", f"run.steps={STEPS + 2}")
    assert (ended.code, ended.err) == (0, "")
    entries, after = run.outcome()
    assert [entry["step"] for entry in entries if "loss" in entry] == list(range(1, STEPS + 3))
    assert after.keys() == before.keys()
    assert after != before
    ended = run.export("extended", "bfloat16")
    exported = {path.name: path.read_bytes() for path in (run.folder / "extended").iterdir()}
    assert exported == after
