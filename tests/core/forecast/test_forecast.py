from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch
from attrs import evolve, frozen
from by_tiers import least_gpu_bytes
from forecast_problems import GIB, LAYERS, MACHINE, P, case_with, profile_of
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from transformers import (
    FalconConfig,
    GPT2Config,
    GPTNeoConfig,
    Llama4TextConfig,
    LlamaConfig,
    PreTrainedConfig,
    SmolLM3Config,
)

from lohan_core.budget import plannable_gpu_bytes
from lohan_core.engine.derive import Outline
from lohan_core.errors import ModelError, PlanError
from lohan_core.forecast import forecast_plan, largest_that_fits, recommend_batch
from lohan_core.forecast.advise import LARGEST_BATCH, End, sizes_to_try
from lohan_core.forecast.family import SHAPES, Shape, scaled_config, scaled_outline
from lohan_core.forecast.parts import Part
from lohan_core.forecast.render import render
from lohan_core.forecast.report import LargestModel, PlanReport
from lohan_core.plan import Tier
from lohan_core.schedule.build import build_memory
from lohan_core.schedule.task import Lane
from lohan_core.units import format_bytes


def forecast_of(profile, *, batch_size=1, states=Tier.SSD, **limits):
    case = case_with(states, **limits)
    plan, workload = case.plan(profile, batch_size // profile.micro_batch_size)
    return forecast_plan(
        plan,
        profile,
        workload,
        case.budget(profile.machine),
        parameters=(LAYERS + 2) * P,
    )


def advice_of(case, make, micro_batch_sizes):
    """Recommend a batch for profiles that ``make`` makes of a micro-batch size."""

    def forecast(batch_size, micro_batch_size):
        profile = make(micro_batch_size)
        try:
            plan, workload = case.plan(profile, batch_size // micro_batch_size)
        except PlanError:
            return None
        return forecast_plan(plan, profile, workload, case.budget(profile.machine), parameters=(LAYERS + 2) * P)

    return recommend_batch(forecast, micro_batch_sizes)


def test_a_step_that_the_gpu_bounds():
    forecast = forecast_of(profile_of(4, gpu_seconds=1.0), batch_size=8)
    assert (forecast.batch_size, forecast.micro_batch_size, forecast.sequence_length) == (8, 4, 100)
    assert forecast.seconds == pytest.approx(4 * LAYERS * 8, rel=0.01), "forward, recomputation and twice that backward"
    assert forecast.tokens_per_second == 800 / forecast.seconds
    assert forecast.bounds is Part.GPU
    assert forecast.clearly_bound
    assert forecast.busy[Lane.GPU] == forecast.occupied[Part.GPU] > 0.99


def test_a_step_that_the_drives_bound_and_their_life():
    slow = profile_of(
        gpu_seconds=1e-6,
        ssd_read_bytes_per_second=1e6,
        ssd_write_bytes_per_second=1e6,
        ssd_mixed_bytes_per_second=1e6,
        ssd_endurance_bytes=14 * (LAYERS + 2) * P * 1000,
    )
    forecast = forecast_of(slow)
    assert forecast.bounds is Part.DRIVES
    assert forecast.clearly_bound
    assert forecast.busy[Lane.SSD_READ] + forecast.busy[Lane.SSD_WRITE] > forecast.occupied[Part.DRIVES]
    assert forecast.occupied[Part.DRIVES] <= 1
    assert forecast.ssd_written_bytes == 14 * (LAYERS + 2) * P
    assert forecast.drive_life_steps == 1000


def test_nothing_written_wears_nothing():
    forecast = forecast_of(profile_of(ssd_endurance_bytes=10**15), states=Tier.HOST, ssd=0)
    assert (forecast.ssd_written_bytes, forecast.saved_bytes) == (0, 0)
    assert forecast.drive_life_steps is None
    assert forecast_of(profile_of()).drive_life_steps is None, "endurance is not known"


def test_saving_states_in_memory_wears_the_drives():
    forecast = forecast_of(profile_of(gpu_seconds=1e-3, ssd_endurance_bytes=10**15), states=Tier.HOST)
    assert forecast.ssd_written_bytes == 0
    assert forecast.saved_bytes == pytest.approx(14 * (LAYERS + 2) * P, rel=0.1)
    assert forecast.drive_life_steps == pytest.approx(10**15 * forecast.save_every / forecast.saved_bytes)
    text = shown(evolve(ANSWER, forecast=forecast))
    for words in (f"and {format_bytes(forecast.saved_bytes)} more with each save", "saves included"):
        assert words in text


def test_limits_of_the_user_bound_the_budget():
    case = case_with(gpu=GIB // 2, host=4 * GIB)
    budget = case.budget(MACHINE)
    assert (budget.gpu_bytes, budget.host_bytes, budget.ssd_bytes) == (plannable_gpu_bytes(GIB // 2), GIB, GIB)


def test_layers_too_large_for_three_get_by_with_fewer():
    profile = profile_of()
    roomy, workload = case_with().plan(profile, 1)
    assert (workload.layer_slots, workload.gradient_slots) == (3, 2)
    taken = forecast_of(profile).peak_bytes[Tier.GPU]
    tight, workload = case_with(gpu=least_gpu_bytes(taken) - 1).plan(profile, 1)
    assert (workload.layer_slots, workload.gradient_slots) == (2, 1)
    assert tight == roomy
    with pytest.raises(PlanError, match=r"needs .* on gpu"):
        case_with(gpu=GIB // 16).plan(profile, 1)


def test_the_advice_is_the_smallest_batch_that_is_about_as_fast_as_any():
    # Weights and states take 0.05 s of drives a step, a row 0.024 s of GPU: more rows hide the drives, up to a point.
    rate = 30 * (LAYERS + 2) * P / 0.05
    drives = {f"ssd_{way}_bytes_per_second": rate for way in ("read", "write", "mixed")}

    def make(size):
        return profile_of(size, gpu_seconds=0.001, **drives)

    advice = advice_of(case_with(), make, (1, 2, 4, 8))
    assert advice is not None
    rates = {}
    for batch_size in (1, 2, 4, 8, 16, 32):
        rates[batch_size] = forecast_of(make(1), batch_size=batch_size).tokens_per_second
    assert advice.tokens_per_second == rates[advice.batch_size]
    assert rates[advice.batch_size] > 0.9 * max(rates.values())
    assert rates[advice.batch_size // 4] < 0.9 * max(rates.values())
    assert advice.ends_at is End.SPEED
    assert advice_of(case_with(gpu=1), make, (1, 2)) is None


@pytest.mark.parametrize(("faster", "micro_batch_size"), [(1.001, 1), (1.2, 32)])
def test_a_larger_micro_batch_is_advised_if_it_is_worth_it(faster, micro_batch_size):
    def forecast(_batch_size, size):
        return SimpleNamespace(tokens_per_second=1000.0 * (faster if size == 32 else 1))

    advice = recommend_batch(forecast, (1, 2, 4, 8, 16, 32))
    assert (advice.batch_size, advice.micro_batch_size) == (micro_batch_size, micro_batch_size)


def test_short_sequences_come_in_larger_micro_batches():
    assert sizes_to_try(1024) == sizes_to_try(131072) == (1, 2, 4, 8, 16, 32)
    assert sizes_to_try(256)[-1] == 128
    assert sizes_to_try(1)[-1] == 1024


def test_the_advice_says_why_no_larger_batch_is_advised():
    room = forecast_of(profile_of(1), batch_size=4).peak_bytes[Tier.HOST]
    slow_drives = {f"ssd_{way}_bytes_per_second": 1e6 for way in ("read", "write", "mixed")}

    def make(size):
        return profile_of(size, gpu_seconds=1e-6, **slow_drives)

    tight = advice_of(case_with(host=room), make, (1,))
    assert tight is not None
    assert (tight.batch_size, tight.ends_at) == (4, End.MEMORY)
    roomy = advice_of(case_with(), make, (1,))
    assert roomy is not None
    assert (roomy.batch_size, roomy.ends_at) == (LARGEST_BATCH, End.SEARCH)


def test_a_batch_that_only_fits_whole_is_found():
    """Several micro-batches of a 16-bit model need room on the GPU for their gradients' sums; one does not."""
    slow_drives = {f"ssd_{way}_bytes_per_second": 1e6 for way in ("read", "write", "mixed")}

    def make(size):
        return profile_of(size, gpu_seconds=1e-6, row_bytes=0, **slow_drives)

    plan, workload = case_with().plan(make(2), 1)
    leanest = build_memory(plan, make(2), evolve(workload, layer_slots=1, gradient_slots=1))
    case = case_with(gpu=least_gpu_bytes(leanest.bytes_on(Tier.GPU)))
    with pytest.raises(PlanError, match="on gpu"):
        case.plan(make(1), 2)
    advice = advice_of(case, make, (1, 2))
    assert advice is not None
    assert (advice.batch_size, advice.micro_batch_size, advice.ends_at) == (2, 2, End.MEMORY)


@given(limit=st.integers(0, len(SHAPES)))
def test_the_largest_is_found_by_few_trials(limit):
    tried = []

    def fits(shape):
        tried.append(shape)
        return SHAPES.index(shape) < limit

    assert largest_that_fits(fits) == (SHAPES[limit - 1] if limit else None)
    assert len(tried) <= 4


def test_shapes_ascend_and_are_called_by_their_size():
    sizes = []
    for shape in SHAPES:
        parameters = 12 * shape.layers * shape.hidden**2 + 50257 * shape.hidden
        assert parameters == pytest.approx(float(shape.name.removesuffix("B")) * 1e9, rel=0.08), shape
        assert shape.hidden % shape.heads == 0
        sizes.append(parameters)
    assert all(a < b for a, b in itertools.pairwise(sizes))


def test_a_gpt_is_scaled_to_its_name():
    shape = next(shape for shape in SHAPES if shape.name == "13B")
    small = GPT2Config(n_embd=64, n_layer=2, n_head=4)
    assert Outline(scaled_config(small, shape), torch.bfloat16).parameters == pytest.approx(13e9, rel=0.02)
    assert (small.n_embd, small.n_layer, small.n_head) == (64, 2, 4), "the config given stays as it is"


def test_a_llama_keeps_its_proportions():
    llama = LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8
    )
    shape = next(shape for shape in SHAPES if shape.name == "70B")
    scaled = scaled_config(llama, shape)
    assert (scaled.hidden_size, scaled.intermediate_size, scaled.num_hidden_layers) == (8192, 28672, 80)
    assert (scaled.num_attention_heads, scaled.num_key_value_heads, scaled.head_dim) == (64, 16, 128)


WIDTHS = {"hidden_size": 64, "num_attention_heads": 4, "vocab_size": 96}


@pytest.mark.parametrize(
    ("config", "attributes", "expected"),
    [
        (
            FalconConfig(**WIDTHS, num_hidden_layers=2, num_kv_heads=2),
            ("head_dim", "num_kv_heads", "ffn_hidden_size"),
            (16, 4, 512),
        ),
        (SmolLM3Config(**WIDTHS, num_hidden_layers=4), ("no_rope_layers",), ([1, 1, 1, 0, 1, 1],)),
        (
            GPTNeoConfig(**WIDTHS, num_layers=2, attention_types=[[["global", "local"], 1]]),
            ("attention_layers",),
            (["global", "local"] * 3,),
        ),
        (
            Llama4TextConfig(**WIDTHS, num_hidden_layers=4, interleave_moe_layer_step=2, moe_layers=[1, 3]),
            ("no_rope_layers", "moe_layers"),
            ([1, 1, 1, 0, 1, 1], [1, 3, 5]),
        ),
    ],
    ids=lambda value: value.model_type if isinstance(value, PreTrainedConfig) else "",
)
def test_what_a_config_says_of_each_layer_is_repeated(config, attributes, expected):
    text = scaled_config(config, Shape("", 6, 8, 128))
    assert tuple(getattr(text, name) for name in attributes) == expected


ANSWER = PlanReport(
    forecast=None, refusal=None, speedups={}, advice=None, largest=None, searched_largest=False, planned=None
)


def test_a_report_says_what_matters():
    forecast = forecast_of(profile_of(gpu_seconds=1.0, ssd_endurance_bytes=10**12))
    largest = LargestModel(layers=2, heads=4, hidden=64, parameters=10**9)
    worth = {Part.GPU: 2.0, Part.MAIN_MEMORY: 3.0, Part.DRIVES: 1.01}
    report = evolve(ANSWER, forecast=forecast, speedups=worth, largest=largest, searched_largest=True)
    text = shown(report)
    for words in (
        "Fits.",
        "bound by the GPU",
        "Faster with twice the main memory (3.00 times), twice the GPU (2.00 times)\n",
        "No batch size fits",
        "1.00 B parameters",
        "rated life",
    ):
        assert words in text
    refused = evolve(ANSWER, refusal="too little host", searched_largest=True)
    assert "Does not fit: too little host" in shown(refused)
    assert "No model of this family fits" in shown(refused)
    assert not refused.fits


def test_a_run_that_could_not_be_resumed_is_said_to_be_one():
    said = "the run cannot be resumed"
    for limits, saved in (({}, True), ({"ssd": 0}, False)):
        forecast = forecast_of(profile_of(), states=Tier.HOST, **limits)
        assert forecast.fits
        assert forecast.saved == saved
        report = evolve(ANSWER, forecast=forecast)
        assert (said in shown(report)) != saved


def shown(report):
    console = Console(width=200, color_system=None)
    with console.capture() as captured:
        console.print(render(report))
    return captured.get()


class WithoutWidth(GPT2Config):
    def get_text_config(self, **_):
        return object()


@frozen
class OutlineOfTwoLayers:
    model_config: GPT2Config

    def __attrs_post_init__(self):
        [None, None][self.model_config.n_layer - 1]


@pytest.mark.parametrize("config", [WithoutWidth(n_layer=2), GPT2Config(n_layer=2)])
def test_a_config_that_cannot_be_scaled_is_refused(config):
    with pytest.raises(ModelError, match=r"'gpt2' model cannot be scaled to 24 layers of 1024: .* leave --largest out"):
        scaled_outline(OutlineOfTwoLayers(config), SHAPES[0])


def test_what_saving_takes_and_how_often():
    """States on the drives are saved by the way; those in memory as often as costs a twentieth, or as the user says."""
    profile = profile_of(gpu_seconds=1e-3, ssd_write_bytes_per_second=1e6)
    on_drives, in_memory = (forecast_of(profile, states=tier) for tier in (Tier.SSD, Tier.HOST))
    assert (on_drives.saving_seconds, on_drives.save_every) == (0.0, 1)
    assert in_memory.saving_seconds == pytest.approx(14 * (LAYERS + 2) * P / 1e6, rel=0.1)
    assert in_memory.saving_seconds / in_memory.save_every <= 0.05 * in_memory.seconds
    assert in_memory.save_every > 1
