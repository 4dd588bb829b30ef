from __future__ import annotations

import json
import sys

import pytest
import yaml
from transformers import GPT2Config, LlamaConfig

from lohan_core import cli
from lohan_core.profile import Profile


def run(monkeypatch, capsys, *arguments):
    """Run the command line in this process; return exit code, what it printed, and what it complained of."""
    monkeypatch.setattr(sys, "argv", ["lohan", *map(str, arguments)])
    with pytest.raises(SystemExit) as raised:
        cli.main()
    captured = capsys.readouterr()
    return raised.value.code, captured.out, captured.err


@pytest.fixture
def config(tmp_path):
    """A run whose model is nothing but a config.json, and which has no data."""
    model = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=96,
        architectures=["LlamaForCausalLM"],
    )
    model.save_pretrained(tmp_path / "model")
    path = tmp_path / "run.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "model": {"path": "model"},
                "data": {"train": "absent.jsonl", "sequence_length": 32},
                "run": {"dir": "run", "steps": 1, "batch_size": 8, "micro_batch_size": 2, "device": "cpu"},
                "storage": {"backend": "memory"},
                "optimizer": {"backend": "torch_adamw", "lr": 1e-4},
                "planner": {"backend": "keep_nothing"},
                "profiler": {"backend": "measured", "seconds": 0.001},
            }
        )
    )
    return path


def test_a_plan_for_a_machine_that_is_elsewhere(monkeypatch, capsys, config):
    code, out, _ = run(monkeypatch, capsys, "plan", config, "--hardware", "rtx-4090", "--drives", "3", "--json")
    assert code == 0
    plan = json.loads(out)
    assert plan["fits"] is True
    forecast = plan["forecast"]
    assert forecast["parameters"] == sum(p.numel() for p in tiny_llama().parameters())
    assert (forecast["batch_size"], forecast["micro_batch_size"], forecast["sequence_length"]) == (8, 2, 32)
    assert forecast["tokens_per_second"] == pytest.approx(8 * 32 / forecast["seconds"])
    assert set(forecast["busy"]) == {"gpu", "h2d", "d2h", "ssd_read", "ssd_write", "cpu"}
    assert forecast["bounds"] in forecast["occupied"]
    assert forecast["drive_life_steps"] == pytest.approx(3 * 7e15 / forecast["ssd_written_bytes"])
    assert forecast["machine"] == "RTX 4090, 12 drives (here with 3 drives)"
    assert plan["advice"]["tried"] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
    assert plan["advice"]["micro_batch_size"] in plan["advice"]["tried"]
    assert plan["largest"] is None
    assert not (config.parent / "run").exists(), "it only predicts"


def test_a_page_shows_the_planned_step(monkeypatch, capsys, config):
    page = config.parent / "plan.html"
    code, _, _ = run(monkeypatch, capsys, "plan", config, "--hardware", "rtx-4090", "--report", page)
    assert code == 0
    text = page.read_text()
    assert "keep_nothing" in text
    assert "ssd_write" in text


def tiny_llama():
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(
        LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, vocab_size=96)
    )


def test_more_drives_are_no_slower_and_the_table_says_what_bounds(monkeypatch, capsys, config):
    seconds = {}
    for drives in (1, 12):
        _, out, _ = run(monkeypatch, capsys, "plan", config, "--hardware", "rtx-4090", "--drives", drives, "--json")
        seconds[drives] = json.loads(out)["forecast"]["seconds"]
    assert seconds[12] < seconds[1]
    code, out, _ = run(monkeypatch, capsys, "plan", config, "--hardware", "rtx-4090", "--drives", "1")
    assert code == 0
    for words in ("Fits.", "tokens/s", "bound by ", "ssd_write", "rated life", "Recommended: run.batch_size:"):
        assert words in out


def test_compiled_layers_are_predicted_to_be_faster(monkeypatch, capsys, config):
    seconds = {}
    for compiles in ("false", "true"):
        change = ("--set", f"model.compile={compiles}")
        code, out, _ = run(monkeypatch, capsys, "plan", config, "--hardware", "rtx-4090", "--json", *change)
        assert code == 0
        seconds[compiles] = json.loads(out)["forecast"]["seconds"]
    assert seconds["true"] < seconds["false"]


def test_updates_are_deferred_unless_the_config_says_otherwise(monkeypatch, capsys, config):
    """By default, that is; here all of them, since the optimizer clips by default too."""

    def seconds(*settings):
        changes = [word for setting in settings for word in ("--set", setting)]
        _, out, _ = run(monkeypatch, capsys, "plan", config, "--hardware", "rtx-4090", "--json", *changes)
        return json.loads(out)["forecast"]["seconds"]

    deferred, at_once = seconds(), seconds("run.update=optimized")
    assert deferred == seconds("run.update=deferred") < at_once
    unclipped = "optimizer.max_grad_norm=0"
    assert seconds(unclipped) == seconds(unclipped, "run.update=optimized") < at_once, (
        "keep_nothing then defers nothing"
    )


def test_what_does_not_fit_is_told_and_is_exit_code_1(monkeypatch, capsys, config):
    arguments = ("plan", config, "--hardware", "rtx-4090", "--set", "memory.gpu=64KiB")
    code, out, _ = run(monkeypatch, capsys, *arguments)
    assert code == 1
    assert "Does not fit" in out
    assert "lower run.micro_batch_size" in out
    page = config.parent / "plan.html"
    code, out, err = run(monkeypatch, capsys, *arguments, "--json", "--report", page)
    assert f"warning: --report: {page} was not written" in err
    assert not page.exists()
    plan = json.loads(out)
    assert (code, plan["fits"], plan["forecast"], plan["advice"]) == (1, False, None, None)
    assert "on gpu" in plan["refusal"]


def test_a_machine_that_the_profiler_knows_wears_its_drives_as_that_of_hardware(monkeypatch, capsys, config):
    lives = []
    for machine in (("--hardware", "h200"), ("--set", "profiler={backend: file, hardware: h200}")):
        _, out, _ = run(monkeypatch, capsys, "plan", config, "--json", *machine)
        lives.append(json.loads(out)["forecast"]["drive_life_steps"])
    assert lives[0] == lives[1] > 0


def test_advice_is_about_as_fast_as_the_runs_own_step_or_faster(monkeypatch, capsys, config):
    """And it says where it only saw the run's own micro-batch."""
    own = ("data.sequence_length=1024", "run.batch_size=512", "run.micro_batch_size=512")
    settings = [word for setting in own for word in ("--set", setting)]
    _, out, _ = run(monkeypatch, capsys, "plan", config, "--hardware", "rtx-4090", "--json", *settings)
    plan = json.loads(out)
    assert plan["advice"]["tokens_per_second"] >= plan["forecast"]["tokens_per_second"]
    assert plan["advice"]["tried"] == [1, 2, 4, 8, 16, 32, 512]
    _, out, _ = run(monkeypatch, capsys, "plan", config, "--set", "profiler={backend: file, hardware: rtx-4090}")
    assert "other micro-batches were not tried" in out


@pytest.mark.slow
def test_the_largest_of_a_family(monkeypatch, capsys, config):
    GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=50257, architectures=["GPT2LMHeadModel"]).save_pretrained(
        config.parent / "model"
    )
    chosen = ("--hardware", "gaming-pc-1-drive", "--set", "run.durability=none", "--largest", "--json")
    code, out, _ = run(monkeypatch, capsys, "plan", config, *chosen)
    assert code == 0
    largest = json.loads(out)["largest"]
    # 16 bytes of each parameter lie on the one drive (the gradient too, for it waits until the norm is known): its 2 TB
    # hold 70 B parameters, and no 135 B.
    assert (largest["layers"], largest["heads"], largest["hidden"]) == (80, 64, 8192)
    assert largest["parameters"] == pytest.approx(64.9e9, rel=0.01)


def test_this_machine_is_measured_without_weights_or_data(monkeypatch, capsys, config):
    code, out, _ = run(monkeypatch, capsys, "plan", config, "--json")
    assert code == 0
    plan = json.loads(out)
    assert plan["forecast"]["seconds"] > 0
    assert plan["advice"]["micro_batch_size"] == 2, "the one that was measured"
    assert plan["forecast"]["drive_life_steps"] is None


def test_a_profile_is_written_and_planned_with(monkeypatch, capsys, config):
    out_file = config.parent / "profile.json"
    code, out, _ = run(monkeypatch, capsys, "profile", config, "-o", out_file)
    assert code == 0
    assert str(out_file) in out
    profile = Profile.from_json(out_file.read_text())
    assert (profile.micro_batch_size, profile.sequence_length, len(profile.blocks)) == (2, 32, 4)
    chosen = ("--set", f"profiler={{backend: file, path: {out_file}}}", "--json")
    code, out, _ = run(monkeypatch, capsys, "plan", config, *chosen)
    assert code == 0
    assert json.loads(out)["forecast"]["machine"] == profile.machine.name


def test_a_derived_profile_is_written_too(monkeypatch, capsys, config):
    out_file = config.parent / "profile.json"
    chosen = ("--set", "profiler={backend: file, hardware: h200, drives: 4}")
    code, _, _ = run(monkeypatch, capsys, "profile", config, "-o", out_file, *chosen)
    assert code == 0
    assert Profile.from_json(out_file.read_text()).machine.name == "H200, 8 drives (here with 4 drives)"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("plan", "--report", "absent/plan.html"), "--report: absent/plan.html cannot be written"),
        (("plan", "--report", "."), "--report: . cannot be written"),
        (("compare", "--planners", "keep_nothing", "--report", "."), "--report: . cannot be written"),
        (("profile", "-o", "."), "--out: . cannot be written"),
        (("profile", "-o", "profile"), "--out: profile could not be read back as a profile"),
    ],
    ids=str,
)
def test_an_output_that_cannot_be_is_told_before_anything_is_done(monkeypatch, capsys, command, message):
    name, *arguments = command
    code, out, err = run(monkeypatch, capsys, name, "absent.yaml", *arguments)
    assert (code, out) == (2, "")
    (line,) = err.strip().splitlines()
    assert message in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--drives", "2"), "--drives, --host and --largest are about the machine of --hardware"),
        (("--largest",), "--drives, --host and --largest are about the machine of --hardware"),
        (("--hardware", "cray-1"), "no machine is called 'cray-1'"),
        (
            ("--hardware", "profile.json"),
            "profile.json: a profile is no hardware file; plan with it by --set",
        ),
        (("--hardware", "rtx-4090", "--host", "much"), "--host: wants a size such as 24GiB"),
        (("--hardware", "rtx-4090", "--host", "1GiB"), "--host: 'memory' must be more than what is reserved"),
        (("--hardware", "absent.yaml"), "absent.yaml: cannot read"),
        (("--set", "model.path=elsewhere"), "model.path: no directory"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(monkeypatch, capsys, config, arguments, message):
    code, out, err = run(monkeypatch, capsys, "plan", config, *arguments)
    assert (code, out) == (2, "")
    (line,) = err.strip().splitlines()
    assert message in line
