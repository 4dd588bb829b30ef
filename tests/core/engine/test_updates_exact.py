"""DESIGN.md's exactness of updates: AdamW on fp32 masters, whatever moves the bytes and whenever the update runs."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from tiny_lms import load_lm, make_batch
from tiny_runs import different, open_run, plain_step
from torch import nn

from lohan_core.engine.updates import NonFiniteGradientError
from lohan_core.errors import PlanError, StoreError
from lohan_core.interfaces.optimizer import Hyperparameters
from lohan_core.reference.torch_adamw import AdamWConfig, TorchAdamW

LR = 1e-3
DECAY = 0.1


def exported(engine, directory):
    engine.export(directory, torch.float32)
    return {name: t for path in sorted(directory.glob("*.safetensors")) for name, t in load_file(path).items()}


def decays(name, parameter):
    """Tell which parameters decay, for the models used here: all but biases and norms."""
    return parameter.dim() > 1 and "norm" not in name


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("optimizer", ["cpuadam", "torch_adamw"])
def test_ten_steps_are_those_of_torch_adamw(tmp_path, models, optimizer, clip):
    batches = [make_batch(seed, micro_batches=2) for seed in range(10)]
    settings = {"backend": optimizer, "lr": LR, "weight_decay": DECAY, "max_grad_norm": clip, "betas": [0.8, 0.9]}
    with open_run(tmp_path / "run", models["llama"], batches[0], optimizer=settings) as engine:
        results = [engine.step(batch, lr=LR / (1 + number)) for number, batch in enumerate(batches)]
        ours = exported(engine, tmp_path / "out")

    model = load_lm(models["llama"], torch.float32)
    groups = [[p for n, p in model.named_parameters() if decays(n, p) is kind] for kind in (True, False)]
    adamw = torch.optim.AdamW(
        [{"params": groups[0], "weight_decay": DECAY}, {"params": groups[1], "weight_decay": 0.0}], betas=(0.8, 0.9)
    )
    for number, (batch, result) in enumerate(zip(batches, results, strict=True)):
        loss, gradients = plain_step(model, batch, step=number + 1)
        for name, parameter in model.named_parameters():
            parameter.grad = gradients[name]
        norm = float(nn.utils.clip_grad_norm_(model.parameters(), clip or float("inf")))
        for group in adamw.param_groups:
            group["lr"] = LR / (1 + number)
        adamw.step()
        model.zero_grad(set_to_none=True)
        assert result.step == number + 1
        assert result.loss == pytest.approx(loss, rel=1e-6)
        assert result.gradient_norm == pytest.approx(norm, rel=1e-5)
    theirs = dict(model.named_parameters())
    assert ours.keys() == theirs.keys()
    for name, parameter in theirs.items():
        torch.testing.assert_close(ours[name], parameter.detach(), rtol=0, atol=1e-3 * LR)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_masters_stay_in_fp32_and_weights_are_them_rounded(tmp_path, models, dtype):
    """Bit for bit, by the reference optimizer on whole parameters; the engine's chunks are smaller than one."""
    batches = [make_batch(seed) for seed in range(10)]
    settings = {"backend": "torch_adamw", "lr": LR, "weight_decay": DECAY, "max_grad_norm": None}
    with open_run(
        tmp_path / "run",
        models["llama"],
        batches[0],
        run={"dtype": dtype},
        memory={"chunk": "16KiB"},
        optimizer=settings,
    ) as engine:
        for batch in batches:
            engine.step(batch, lr=LR)
        ours = exported(engine, tmp_path / "out")

    model = load_lm(models["llama"], getattr(torch, dtype))
    masters = {name: p.detach().clone() for name, p in load_lm(models["llama"], torch.float32).named_parameters()}
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in masters.items()}
    optimizer = TorchAdamW(AdamWConfig())
    for number, batch in enumerate(batches):
        _, gradients = plain_step(model, batch, step=number + 1)
        for name, weights in model.named_parameters():
            decay = DECAY if decays(name, weights) else 0.0
            optimizer.update(
                masters[name].view(-1),
                dict(zip(("exp_avg", "exp_avg_sq"), (m.view(-1) for m in moments[name]), strict=True)),
                gradients[name].flatten(),
                weights.detach().view(-1),
                Hyperparameters(step=number + 1, lr=LR, weight_decay=decay),
            )
    assert not different(ours, masters)


BASE = {
    "run": {"dtype": "bfloat16"},
    "optimizer": {"backend": "cpuadam", "lr": LR, "weight_decay": DECAY, "max_grad_norm": 0.5, "threads": 1},
}
VARIATIONS = {
    "the smallest chunks": {"memory": {"chunk": "16KiB"}},
    "chunks larger than blocks": {"memory": {"chunk": "4MiB"}},
    "two threads": {"optimizer": {**BASE["optimizer"], "threads": 2}},
    "scalar instructions": {"optimizer": {**BASE["optimizer"], "simd": "scalar"}},
    "update naively": {"run": {**BASE["run"], "update": "naive"}},
    "update after backward": {"run": {**BASE["run"], "update": "optimized"}},
    "update serially": {"run": {**BASE["run"], "update": "serial"}},
    "states on host": {"planner": {"backend": "keep_nothing", "states": "host"}},
    "states on the gpu": {"planner": {"backend": "keep_nothing", "states": "gpu"}},
    "states on the gpu, updated at once": {
        "run": {**BASE["run"], "update": "optimized"},
        "planner": {"backend": "keep_all", "states": "gpu"},
    },
    "keep all on ssd": {"planner": {"backend": "keep_all", "candidates": "ssd", "inputs": "ssd"}},
    "roll dice": {"planner": {"backend": "dice", "seed": 3}},
    "no durability": {"run": {**BASE["run"], "durability": "none"}},
    "aio": {"storage": {"backend": "aio", "engine": "threads"}},
    "io_uring": {"storage": {"backend": "aio", "engine": "io_uring"}},
    "libaio": {"storage": {"backend": "aio", "engine": "libaio", "queue_depth": 2}},
    "three stripes": {"storage": {"backend": "aio", "stripe_bytes": 8192, "directories": ["a", "b", "c"]}},
    "three unequal stripes and dice": {
        "storage": {"backend": "aio", "stripe_bytes": 4096, "directories": ["a", "b", "c"], "weights": [1, 2, 3]},
        "planner": {"backend": "dice", "seed": 5},
    },
}


def three_steps(directory, model, **sections):
    """Losses, norms and masters of three steps, dropout and clipping included."""
    batches = [make_batch(seed, micro_batches=2) for seed in range(3)]
    with open_run(directory / "run", model, batches[0], **{**BASE, **sections}) as engine:
        results = [engine.step(batch, lr=LR) for batch in batches]
        masters = exported(engine, directory / "out")
    assert all(result.gradient_norm > 0.5 for result in results), "nothing was clipped"
    return [(result.loss, result.gradient_norm) for result in results], masters


@pytest.fixture(scope="module")
def base(tmp_path_factory, models):
    return three_steps(tmp_path_factory.mktemp("base"), models["gpt2"])


@pytest.mark.parametrize("variation", VARIATIONS)
def test_results_do_not_depend_on_how_the_step_is_carried_out(tmp_path, models, base, variation):
    sections = {name: dict(values) for name, values in VARIATIONS[variation].items()}
    storage = sections.get("storage", {})
    if storage.get("engine", "auto") != "auto":
        aio = pytest.importorskip("lohan_storage_aio.engine")
        if reason := aio.why_unusable(aio.EngineName(storage["engine"])):
            pytest.skip(reason)
    if "directories" in storage:
        storage["directories"] = [str(tmp_path / name) for name in storage["directories"]]
        for path in storage["directories"]:
            (tmp_path / path).mkdir()
    metrics, masters = three_steps(tmp_path, models["gpt2"], **sections)
    assert metrics == base[0]
    assert not different(masters, base[1])


@pytest.mark.parametrize(
    ("update", "planner"),
    [
        ("naive", {}),
        ("optimized", {}),
        ("deferred", {"backend": "dice", "seed": 1}),
        ("deferred", {"backend": "dice", "seed": 2}),
    ],
)
def test_without_clipping_it_does_not_matter_when_updates_run(tmp_path, models, update, planner):
    """During backward, or some then and others in the next forward, as the dice decide."""
    batches = [make_batch(seed) for seed in range(3)]
    outcomes = []
    for mode, decides in (("serial", {}), (update, planner)):
        with open_run(
            tmp_path / mode,
            models["gemma3"],
            batches[0],
            run={"update": mode},
            optimizer={**BASE["optimizer"], "max_grad_norm": None},
            planner=decides,
        ) as engine:
            metrics = [(r.loss, r.gradient_norm) for r in (engine.step(batch, lr=LR) for batch in batches)]
            outcomes.append((metrics, exported(engine, tmp_path / f"{mode}-out")))
    assert outcomes[0][0] == outcomes[1][0]
    assert not different(outcomes[0][1], outcomes[1][1])


SAVED = {"ssd": {"states": "ssd"}, "host": {"states": "host"}, "dice": {"backend": "dice", "seed": 4}}


@pytest.mark.parametrize("planner", SAVED)
def test_a_step_saved_soon_is_durable_after_the_next_one(tmp_path, models, planner):
    """Or at once, where a plan defers only some updates; and what is found then is that step, bit for bit."""
    batches = [make_batch(seed) for seed in range(3)]
    sections = {**BASE, "planner": SAVED[planner], "storage": {"backend": "aio"}}
    with open_run(tmp_path / "whole", models["gpt2"], batches[0], **sections) as engine:
        for batch in batches[:2]:
            engine.step(batch, lr=LR)
        expected = exported(engine, tmp_path / "whole-out")
    with open_run(tmp_path / "run", models["gpt2"], batches[0], **sections) as engine:
        for number, batch in enumerate(batches):
            engine.step(batch, lr=LR)
            assert engine.durable_step == number
            engine.save_soon({"seen": number + 1})
            assert engine.durable_step == number + (planner == "dice")
    with open_run(tmp_path / "run", models["gpt2"], batches[0], **sections) as engine:
        last = 3 if planner == "dice" else 2
        assert (engine.finished_step, engine.progress) == (last, {"seen": last})
        if planner != "dice":
            assert not different(exported(engine, tmp_path / "out"), expected)


def test_evaluating_and_exporting_see_the_newest_updates(tmp_path, models):
    batches = [make_batch(seed) for seed in range(2)]
    found = []
    for update in ("optimized", "deferred"):
        sections = {**BASE, "run": {**BASE["run"], "update": update}}
        with open_run(tmp_path / update, models["gpt2"], batches[0], **sections) as engine:
            engine.step(batches[0], lr=LR)
            loss = engine.evaluate(batches)
            engine.step(batches[1], lr=LR)
            found.append((loss, exported(engine, tmp_path / f"{update}-out")))
    assert found[0][0] == found[1][0]
    assert not different(found[0][1], found[1][1])


@pytest.mark.parametrize("states", ["ssd", "host"])
def test_a_run_taken_up_again_goes_on_as_if_never_stopped(tmp_path, models, states):
    batches = [make_batch(seed) for seed in range(4)]
    sections = {**BASE, "planner": {"backend": "keep_nothing", "states": states}, "storage": {"backend": "aio"}}
    with open_run(tmp_path / "whole", models["gpt2"], batches[0], **sections) as engine:
        whole = [engine.step(batch, lr=LR).loss for batch in batches]
        expected = exported(engine, tmp_path / "whole-out")
    losses = []
    for part in (batches[:1], batches[1:3], batches[3:]):
        with open_run(tmp_path / "parts", models["gpt2"], batches[0], **sections) as engine:
            assert engine.finished_step == engine.durable_step == len(losses)
            assert engine.progress == ({"seen": len(losses)} if losses else {})
            losses += [engine.step(batch, lr=LR).loss for batch in part]
            engine.save({"seen": len(losses)})
            parts = exported(engine, tmp_path / f"parts-out-{len(losses)}")
    assert losses == whole
    assert not different(parts, expected)


@pytest.mark.parametrize("states", ["ssd", "host"])
def test_what_was_not_saved_is_done_again_alike(tmp_path, models, states):
    batches = [make_batch(seed) for seed in range(3)]
    sections = {**BASE, "planner": {"backend": "keep_nothing", "states": states}, "storage": {"backend": "aio"}}
    with open_run(tmp_path / "run", models["gpt2"], batches[0], **sections) as engine:
        first = [engine.step(batches[0], lr=LR).loss]
        engine.save({})
        first += [engine.step(batch, lr=LR).loss for batch in batches[1:]]
        assert (engine.finished_step, engine.durable_step) == (3, 1)
    with open_run(tmp_path / "run", models["gpt2"], batches[0], **sections) as engine:
        assert engine.finished_step == 1
        assert [engine.step(batch, lr=LR).loss for batch in batches[1:]] == first[1:]


DIVERGED = r"^step 3: the gradient norm is (nan|inf); lower optimizer\.lr, or look at the data of this step; .*{}$"


def test_a_step_that_diverges_leaves_nothing_where_states_were_overwritten(tmp_path, models):
    batch = make_batch(1)
    sections = {
        **BASE,
        "run": {"durability": "none"},
        "planner": {"backend": "keep_nothing", "states": "ssd"},
        "storage": {"backend": "aio"},
    }
    with open_run(tmp_path / "run", models["gpt2"], batch, **sections) as engine:
        engine.step(batch, lr=LR)
        engine.save({})
        engine.step(batch, lr=1e38)
        remedy = r"overwritten in place \(run\.durability: none\): start again in another run\.dir"
        with pytest.raises(NonFiniteGradientError, match=DIVERGED.format(remedy)):
            engine.step(batch, lr=LR)
    with pytest.raises(StoreError, match=r"durability: none was interrupted after step 1"):
        open_run(tmp_path / "run", models["gpt2"], batch, **sections)


@pytest.mark.parametrize("states", ["ssd", "host"])
def test_a_step_that_diverges_leaves_the_one_before_that_waited_to_be_durable(tmp_path, models, states):
    batch = make_batch(1)
    sections = {**BASE, "planner": {"backend": "keep_nothing", "states": states}, "storage": {"backend": "aio"}}
    with open_run(tmp_path / "run", models["gpt2"], batch, **sections) as engine:
        engine.step(batch, lr=LR)
        engine.step(batch, lr=1e38)
        engine.save_soon({"seen": 2})
        with pytest.raises(
            NonFiniteGradientError, match=DIVERGED.format("step 2 would lead there again: start in another run.dir")
        ):
            engine.step(batch, lr=LR)
        assert (engine.finished_step, engine.durable_step) == (2, 2)
    with open_run(tmp_path / "run", models["gpt2"], batch, **sections) as engine:
        assert (engine.finished_step, engine.progress) == (2, {"seen": 2})


@pytest.mark.parametrize("update", ["optimized", "serial"])
@pytest.mark.parametrize("states", ["ssd", "host"])
def test_a_step_that_diverges_leaves_the_last_durable_one(tmp_path, models, states, update):
    batch = make_batch(1)
    sections = {
        "run": {"update": update},
        "optimizer": {**BASE["optimizer"], "max_grad_norm": None},
        "planner": {"backend": "keep_nothing", "states": states},
        "storage": {"backend": "aio"},
    }
    with open_run(tmp_path / "run", models["gpt2"], batch, **sections) as engine:
        engine.step(batch, lr=LR)
        engine.save({})
        expected = exported(engine, tmp_path / "expected")
        engine.step(batch, lr=1e38)
        with pytest.raises(NonFiniteGradientError, match=DIVERGED.format("go on from step 1, the last durable one")):
            engine.step(batch, lr=LR)
        assert (engine.finished_step, engine.durable_step) == (2, 1)
        with pytest.raises(StoreError, match=r"^step 3 failed part of the way; .* step 1, the last durable one$"):
            engine.save({})
    with open_run(tmp_path / "run", models["gpt2"], batch, **sections) as engine:
        assert not different(exported(engine, tmp_path / "found"), expected)
        assert engine.step(batch, lr=LR).step == 2


def test_states_on_the_gpu_without_an_update_there_are_refused(tmp_path, models, monkeypatch):
    """As where a profile was kept from a time when there was one."""
    monkeypatch.setattr(TorchAdamW, "on_device", lambda *_: None)
    with pytest.raises(PlanError, match=r"has no update for cpu here.*planner\.states on host"):
        open_run(
            tmp_path,
            models["llama"],
            make_batch(1),
            optimizer={"backend": "torch_adamw"},
            planner={"backend": "keep_nothing", "states": "gpu"},
        )
