from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import GPT2Config, LlamaConfig, MixtralConfig

from lohan_core.engine.derive import LAUNCH_SECONDS, Outline, derive_profile
from lohan_core.engine.operators import count_flops
from lohan_core.engine.peak import peak_bytes
from lohan_core.errors import ConfigError
from lohan_core.hardware import find_hardware
from lohan_core.model import chunked_loss
from lohan_core.model.choices import Attention, Loss
from lohan_core.model.keep import ATTENTION
from lohan_core.profile import Role
from lohan_core.reference.profilers import FILE, MEASURED, FileProfilerConfig, MeasuredProfilerConfig
from lohan_core.states import StateVector
from lohan_core.testing.profiler import ProfilerSuite, example_subject
from lohan_core.units import Bytes

ADAM = tuple(StateVector(name=name, value_bytes=4) for name in ("master", "exp_avg", "exp_avg_sq"))
CPU = torch.device("cpu")


def derive(config, hardware="rtx-4090", **changes):
    arguments = {"micro_batch_size": 2, "sequence_length": 64, "dtype": torch.bfloat16, "states": ADAM} | changes
    return derive_profile(config, find_hardware(hardware), **arguments)


class TestDerivedByFileProfiler(ProfilerSuite):
    backend = FILE

    @pytest.fixture
    def config(self):
        return FileProfilerConfig(hardware="no-gpu")


def test_the_model_side_is_what_measuring_finds():
    subject = example_subject()
    measured = MEASURED.open(MeasuredProfilerConfig(seconds=0.001, cache=False)).profile(subject)
    derived = FILE.open(FileProfilerConfig(hardware="no-gpu")).profile(subject)

    def facts(block):
        # A mask that measuring finds needless is there all the same: what is known of fake tensors is not their values.
        products = [(c.operator, c.bytes, c.flops) for c in block.candidates if c.flops]
        return block.name, block.role, block.elements, block.input_bytes, block.flops, block.borrows, products

    assert [facts(block) for block in derived.blocks] == [facts(block) for block in measured.blocks]
    assert (derived.states, derived.weight_bytes) == (measured.states, measured.weight_bytes)


def test_an_operator_takes_as_long_as_its_products_its_bytes_or_its_launch():
    hardware = find_hardware("rtx-4090")
    config = GPT2Config(n_embd=2048, n_layer=2, n_head=8, n_positions=64)
    blocks = {rows: derive(config, micro_batch_size=rows).blocks for rows in (1, 512)}

    def candidate(rows, name):
        return next(c for c in blocks[rows][1].candidates if c.operator.startswith(name))

    few, many = candidate(1, "addmm"), candidate(512, "addmm")
    products = 2 * 2048 * 3 * 2048
    assert (few.flops, many.flops) == (64 * products, 512 * 64 * products)
    assert many.seconds == many.flops / hardware.gpu.flops_per_second
    moved = 2 * (2048 * 3 * 2048 + 3 * 2048 + 64 * 2048 + 64 * 3 * 2048)  # weight, bias, input, output
    assert few.seconds == moved / hardware.gpu.memory_bandwidth
    norm = candidate(512, "native_layer_norm")
    assert norm.flops == 0
    assert norm.seconds > 512 * 2 * 2 * 64 * 2048 / hardware.gpu.memory_bandwidth
    assert candidate(1, "native_layer_norm").seconds == LAUNCH_SECONDS, "no shorter than its launch"


def test_attention_is_one_kernel_with_or_without_dropout_and_the_config_stays():
    with_dropout = GPT2Config(n_embd=64, n_layer=2, n_head=4, n_positions=64, attn_pdrop=0.1)
    before = copy.deepcopy(with_dropout.to_dict())
    without = GPT2Config(n_embd=64, n_layer=2, n_head=4, n_positions=64, attn_pdrop=0.0)
    assert derive(with_dropout) == derive(without)
    assert with_dropout.to_dict() == before
    attention = [c for c in derive(with_dropout).blocks[1].candidates if c.operator == ATTENTION]
    assert [c.flops for c in attention] == [4 * 2 * 64 * 64 * 64]


def test_grouped_queries_attend_as_many_do():
    shape = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "vocab_size": 99,
    }
    (few,) = [
        c for c in derive(LlamaConfig(**shape, num_key_value_heads=2)).blocks[1].candidates if c.operator == ATTENTION
    ]
    (many,) = [c for c in derive(LlamaConfig(**shape)).blocks[1].candidates if c.operator == ATTENTION]
    assert few.flops == many.flops > 0


def test_a_micro_batch_has_its_tokens_a_mask_and_positions_on_the_gpu():
    config = LlamaConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, vocab_size=99
    )
    tokens, positions, tables, mask = 2 * 64 * 8, 64 * 8, 2 * 64 * 16 * 2, 2 * 64 * 64

    def arguments(**changes):
        return derive(config, **changes).arguments_bytes

    assert arguments(attention=Attention.FLASH) == tokens + positions + tables
    assert arguments() == tokens + positions + tables + mask
    assert arguments(attention=Attention.EAGER) == tokens + positions + tables + 2 * mask, "bf16, to be added"
    assert derive(config, attention=Attention.FLASH).blocks == derive(config).blocks


def test_flash_attn_s_products_are_torch_s():
    """The operators are those of the package, which gives torch no formula for them."""

    def flops(name, *args):
        return count_flops(
            SimpleNamespace(namespace="flash_attn", overloadpacket=SimpleNamespace(__name__=name)), args, {}, None
        )

    rows, length, heads, width = 2, 64, 4, 16
    query, key = torch.empty(rows, length, heads, width), torch.empty(rows, length, 2, width)
    products = 2 * 2 * rows * heads * length * length * width
    assert flops("_flash_attn_forward", query, key, key, 0.0, 0.25, True) == products
    line, keys = query.flatten(0, 1), key.flatten(0, 1)
    starts = torch.tensor([0, 30, 64, 128], dtype=torch.int32)
    assert flops("_flash_attn_varlen_forward", line, keys, keys, starts, starts, 64, 64, 0.0, 0.25, True) == products


def test_the_products_of_experts_count():
    config = MixtralConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        num_local_experts=4,
        num_experts_per_tok=2,
        vocab_size=99,
    )
    layer = derive(config).blocks[1]
    tokens = 2 * 64
    experts = 2 * 2 * tokens * 3 * 64 * 96
    assert experts < layer.flops < 2 * experts


@pytest.mark.slow
def test_a_model_that_fits_nowhere_is_derived():
    config = GPT2Config(n_embd=16384, n_layer=128, n_head=128, n_positions=1024, vocab_size=50257)
    profile = derive(config, micro_batch_size=1, sequence_length=1024)
    assert sum(block.elements for block in profile.blocks) == pytest.approx(413e9, rel=0.01)
    layers = [block for block in profile.blocks if block.role is Role.LAYER]
    assert len(layers) == 128
    assert len({block.candidates for block in layers}) == 1
    assert layers[0].flops == pytest.approx(2 * 1024 * layers[0].elements, rel=0.05)


def test_what_backward_holds_is_counted_in_rows():
    """The most of several instants, each with so much for a row: with more rows the peak may move to one with more."""
    outline = Outline(GPT2Config(n_embd=64, n_layer=2, n_head=4, n_positions=64, vocab_size=4096), torch.bfloat16)

    def transient(rows):
        profile = outline.profile(find_hardware("rtx-4090"), micro_batch_size=rows, sequence_length=64, states=ADAM)
        return [block.transient_bytes for block in profile.blocks]

    one, two, three = (transient(rows) for rows in (1, 2, 3))
    for a, b, c in zip(one[1:], two[1:], three[1:], strict=True):
        assert c - b >= b - a > 0
    logits = 64 * 4096 * 4  # in float32, as the loss takes them
    assert two[-1] - one[-1] > 2 * logits


def test_a_loss_over_slices_takes_a_slice_of_memory_and_as_many_products(monkeypatch):
    config = GPT2Config(n_embd=64, n_layer=2, n_head=4, n_positions=64, vocab_size=4096)
    row_bytes = 64 * 4096 * 4  # a row's logits, in float32
    monkeypatch.setattr(chunked_loss, "SLICE_BYTES", row_bytes // 4)

    def postlude(rows, loss):
        return derive(config, micro_batch_size=rows, loss=loss).blocks[-1]

    whole, chunked = ([postlude(rows, loss) for rows in (4, 8)] for loss in (Loss.WHOLE, Loss.CHUNKED))
    assert whole[1].transient_bytes - whole[0].transient_bytes > 4 * 2 * row_bytes
    assert chunked[1].transient_bytes - chunked[0].transient_bytes < row_bytes / 2
    assert postlude(8, Loss.LIGER) == chunked[1]
    assert [block.flops for block in chunked] == [block.flops for block in whole]


@pytest.mark.parametrize("fake", [False, True])
def test_peak_bytes_are_those_alive_at_once(fake):
    with FakeTensorMode() if fake else torch.no_grad():
        given = torch.zeros(1000)

        def chain():
            first = given + 1
            second = first * 2
            del first
            third = second.view(10, 100) * 3
            third.add_(1)
            del second, third
            given.mul_(2)

        assert peak_bytes(chain, CPU) == 2 * 4000

        def pile():
            kept = [given + n for n in range(5)]
            del kept

        assert peak_bytes(pile, CPU) == 5 * 4000


def test_a_hardware_file_of_ones_own_and_overrides(tmp_path):
    subject = example_subject()
    text = (
        tmp_path / "mine.yaml",
        "name: mine\nsource: me\nhost: {memory: 8GiB, memory_bandwidth: 40GB, flops_per_second: 1e11}\n",
    )
    text[0].write_text(text[1] + "drives: {count: 1, read: 3GB, write: 1GB, capacity: 1TB}\n")
    machine = FILE.open(FileProfilerConfig(path=text[0], drives=2)).profile(subject).machine
    assert (machine.name, machine.ssd_read_bytes_per_second) == ("mine (here with 2 drives)", 6e9)
    with pytest.raises(ValueError, match="'path' or 'hardware' must be given"):
        FileProfilerConfig()
    with pytest.raises(ValueError, match="'path' must be a hardware file where drives"):
        FileProfilerConfig(path=tmp_path / "profile.json", drives=2)
    with pytest.raises(ConfigError, match=r"^profiler\.hardware: no machine is called"):
        FILE.open(FileProfilerConfig(hardware="cray"))
    with pytest.raises(ConfigError, match=r"^profiler\.host: 'memory' must be more than what is reserved"):
        FILE.open(FileProfilerConfig(hardware="rtx-4090", host=Bytes(2**30)))
