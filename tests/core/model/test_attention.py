"""Which kernels compute attention, and why; flash-attn itself is played by a double that computes as it says."""

from __future__ import annotations

import sys
from itertools import pairwise
from types import ModuleType

import pytest
import torch
import transformers.modeling_flash_attention_utils as flash_utils
from tiny_lms import COMMON, CONFIGS, make_batch, make_lm
from torch.nn import functional
from transformers import AutoConfig, DeepseekV3Config, Gemma4TextConfig, GPT2Config, LlamaConfig

from lohan_core.engine.assemble import _require_isolation
from lohan_core.errors import ConfigError
from lohan_core.model import attention as attention_module
from lohan_core.model.attention import (
    Obstacle,
    attention_of,
    choose_attention,
    flash_attn_obstacle,
    use_flash_attn,
)
from lohan_core.model.choices import Attention
from lohan_core.model.cut import cut_model
from lohan_core.model.isolation import isolates_documents
from lohan_core.model.skeleton import build_skeleton

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
LAYER_TYPES = ["sliding_attention", "sliding_attention", "full_attention"]
MLA = {
    "vocab_size": 96,
    "hidden_size": 48,
    "intermediate_size": 80,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_routed_experts": 8,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
}
MISSING = Obstacle(reason="flash-attn is not installed", remedy="pip install it")


def skeleton(name, **changes):
    config = CONFIGS[name]() if name in CONFIGS else AutoConfig.for_model(name, **{**COMMON, **changes})
    return build_skeleton(config, torch.float32)


@pytest.mark.parametrize(
    ("architecture", "obstacle", "expected"),
    [
        ("llama", None, "flash (flash-attn is installed)"),
        ("llama", MISSING, "sdpa (flash-attn is not installed)"),
        ("gemma2", None, "flash (flash-attn is installed)"),
        ("gemma2", MISSING, "eager (Gemma2ForCausalLM has no fused attention)"),
        ("gpt2", None, "sdpa (flash-attn's dropout cannot be replayed)"),
        ("llama4_text", None, "sdpa (Llama4ForCausalLM does not support flash-attn)"),
        ("gpt_oss", None, "eager (GptOssForCausalLM has no fused attention)"),
    ],
)
def test_auto_takes_the_first_that_can_be_had_and_says_why(architecture, obstacle, expected):
    assert choose_attention(Attention.AUTO, skeleton(architecture), obstacle).describe() == expected


@pytest.mark.parametrize("wanted", [Attention.FLASH, Attention.SDPA, Attention.EAGER])
def test_what_the_config_names_is_taken(wanted):
    assert choose_attention(wanted, skeleton("llama"), None).describe() == f"{wanted} (by the config)"


@pytest.mark.parametrize(
    ("wanted", "architecture", "obstacle", "message"),
    [
        (Attention.FLASH, "llama", MISSING, "flash: flash-attn is not installed; pip install it, or set"),
        (Attention.FLASH, "llama4_text", None, "flash: Llama4ForCausalLM does not support flash-attn; take another"),
        (Attention.FLASH, "gpt_oss", None, "flash: GptOssForCausalLM does not support flash-attn; take another"),
        (Attention.FLASH, "gpt2", None, "flash: .* dropout cannot be replayed; set attn_pdrop to 0 in the model's"),
        (Attention.SDPA, "gemma2", None, "sdpa: Gemma2ForCausalLM does not support it; set"),
    ],
)
def test_what_the_config_names_and_is_not_to_be_had_is_refused(wanted, architecture, obstacle, message):
    with pytest.raises(ConfigError, match=rf"^model\.attention: {message}.*model\.attention: auto$"):
        choose_attention(wanted, skeleton(architecture), obstacle)


def obstacle_on_cuda(monkeypatch, *, package=True, taken=True, capability=(9, 0), dtype=torch.bfloat16):
    monkeypatch.setitem(sys.modules, "flash_attn", ModuleType("flash_attn") if package else None)
    monkeypatch.setattr("transformers.utils.is_flash_attn_2_available", lambda: taken)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "A card")
    return flash_attn_obstacle(CUDA, dtype)


def test_flash_attn_is_to_be_had_where_everything_is_there(monkeypatch):
    assert obstacle_on_cuda(monkeypatch) is None
    assert obstacle_on_cuda(monkeypatch, capability=(8, 0)) is None


@pytest.mark.parametrize(
    ("facts", "reason", "remedy"),
    [
        ({"package": False}, "flash-attn is not installed", "pip install 'lohan[flash-attn]'"),
        ({"taken": False}, "transformers does not take this flash-attn", "pip install --upgrade 'lohan[flash-attn]'"),
        ({"dtype": torch.float32}, "flash-attn does not compute in float32", "set run.dtype: bfloat16"),
        (
            {"capability": (7, 5)},
            "flash-attn needs compute capability 8.0, and A card has 7.5",
            "take a newer GPU",
        ),
    ],
)
def test_what_flash_attn_lacks_is_named(monkeypatch, facts, reason, remedy):
    assert obstacle_on_cuda(monkeypatch, **facts) == Obstacle(reason=reason, remedy=remedy)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ImportError("a.so: undefined symbol: _ZN3c104\nmore"), "a.so: undefined symbol: _ZN3c104"),
        (ModuleNotFoundError("No module named 'einops'", name="einops"), "No module named 'einops'"),
        (OSError("libcudart.so.11.0: cannot open"), "libcudart.so.11.0: cannot open"),
        (RuntimeError(), "RuntimeError"),
    ],
)
def test_a_flash_attn_that_does_not_work_is_told_from_none(monkeypatch, error, reason):
    def fail(_name):
        raise error

    monkeypatch.setattr(attention_module, "import_module", fail)
    found = flash_attn_obstacle(CUDA, torch.bfloat16)
    assert found is not None
    assert found.reason == f"flash-attn cannot be imported: {reason}"


def test_the_cpu_is_not_asked_for_flash_attn(monkeypatch):
    monkeypatch.setattr(attention_module, "import_module", lambda _: pytest.fail("imported"))
    assert flash_attn_obstacle(CPU, torch.bfloat16) == Obstacle(
        reason="flash-attn needs a CUDA device", remedy="set run.device: cuda"
    )


def operators_of_a_layer(model):
    (inputs,) = make_batch(1).micro_batches
    names = []

    class Names(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            names.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    with torch.no_grad():
        hidden, calls = model.prelude(model.random_weights(0), inputs)
        with Names():
            model.layer(1, model.random_weights(1), hidden, calls[0])
    return names


@pytest.mark.parametrize("eager", [False, True])
def test_eager_attention_is_one_operator_after_the_other(eager):
    config = CONFIGS["llama"]()
    config._attn_implementation = "flash_attention_2"  # as some config.json says; there is no such package here
    model = build_skeleton(config, torch.float32, eager_attention=eager)
    assert attention_of(model) is (Attention.EAGER if eager else Attention.SDPA)
    names = operators_of_a_layer(cut_model(model))
    assert ("_softmax" in names) is eager
    assert any(name.startswith("_scaled_dot_product") for name in names) is not eager


@pytest.fixture
def flash_attn(monkeypatch):
    """The package's functions, computed by torch; returns how many sequences each call of them had."""
    sequences = []

    def flash_attn_func(q, k, v, *, causal, softmax_scale, **_):
        sequences.append(len(q))
        q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
        out = functional.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=softmax_scale, enable_gqa=True)
        return out.transpose(1, 2)

    def flash_attn_varlen_func(q, k, v, *, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, **options):
        bounds = cu_seqlens_q.tolist()
        assert torch.equal(cu_seqlens_q, cu_seqlens_k)
        assert cu_seqlens_q.dtype is torch.int32
        assert max_seqlen_q == max_seqlen_k >= max(stop - start for start, stop in pairwise(bounds))
        pieces = [
            flash_attn_func(*(tensor[None, start:stop] for tensor in (q, k, v)), **options)[0]
            for start, stop in pairwise(bounds)
        ]
        sequences[-len(pieces) :] = [len(pieces)]
        return torch.cat(pieces)

    package, padding = ModuleType("flash_attn"), ModuleType("flash_attn.bert_padding")
    package.flash_attn_func, package.flash_attn_varlen_func = flash_attn_func, flash_attn_varlen_func
    package.flash_attn_with_kvcache = None
    padding.pad_input, padding.unpad_input = flash_utils._pad_input, flash_utils._unpad_input
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    monkeypatch.setitem(sys.modules, "flash_attn.bert_padding", padding)
    monkeypatch.setattr(flash_utils, "is_flash_attn_2_available", lambda: True)
    monkeypatch.setitem(flash_utils.FLASH_ATTENTION_COMPATIBILITY_MATRIX[2], "general_availability_check", lambda: True)
    monkeypatch.setattr(flash_utils, "_loaded_implementation", None)
    return sequences


def losses(architecture, inputs, *, flash):
    """The loss of a cut model, block by block, with attention of one kind or the other."""
    whole = dict(make_lm(CONFIGS[architecture]()).named_parameters())
    cut = cut_model(build_skeleton(CONFIGS[architecture](), torch.float32))
    if flash:
        use_flash_attn(cut.model)
        assert cut.attention is Attention.FLASH

    def weights_of(index):
        block = cut.blocks[index]
        return {name: whole[name] for name in [slot.name for slot in (*block.slots, *(b.slot for b in block.borrowed))]}

    with torch.no_grad():
        hidden, calls = cut.prelude(weights_of(0), inputs)
        for index in cut.layers:
            hidden = cut.layer(index, weights_of(index), hidden, calls[index - 1])
        return float(cut.postlude(weights_of(len(cut.blocks) - 1), inputs, hidden))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "mixtral"])
def test_by_flash_attn_a_model_computes_what_it_does_by_torch(flash_attn, architecture, packed):
    (inputs,) = make_batch(4, packed=packed).micro_batches
    expected = losses(architecture, inputs, flash=False)
    assert not flash_attn
    assert losses(architecture, inputs, flash=True) == pytest.approx(expected, rel=1e-5)
    assert flash_attn == [4 if packed else 2] * 3, "documents of two rows, in each of three layers"


@pytest.mark.parametrize("rows", [1, 2])
def test_packed_rows_are_kept_apart_by_flash_attn_too(flash_attn, rows, monkeypatch):
    batch = make_batch(4, rows=rows, packed=True)
    model = cut_model(build_skeleton(CONFIGS["llama"](), torch.float32))
    use_flash_attn(model.model)
    assert isolates_documents(model, batch.micro_batches[0])
    assert flash_attn
    # Were it not told where documents begin, it would find out in single rows only: and that is noticed.
    monkeypatch.setattr("lohan_core.model.cut.flash_boundaries", lambda *_: {})
    assert isolates_documents(model, batch.micro_batches[0]) is (rows == 1)
    if rows == 2:
        remedy = r"set model\.attention: sdpa, or data\.packing: false$"
        with pytest.raises(ConfigError, match=rf"^data\.packing: LlamaForCausalLM does not keep packed .*; {remedy}"):
            _require_isolation(model, batch)


@pytest.mark.parametrize(
    ("packed_rows", "takes_more", "expected"),
    [
        (2, False, "sdpa (flash-attn cannot be told by LlamaForCausalLM where packed samples begin)"),
        (1, False, "flash (flash-attn is installed)"),
        (0, False, "flash (flash-attn is installed)"),
        (2, True, "flash (flash-attn is installed)"),
    ],
)
def test_auto_leaves_flash_attn_where_it_cannot_be_told_of_packed_rows(packed_rows, takes_more, expected):
    """By itself, transformers finds out where documents begin only if there is a single row."""
    model = skeleton("llama")
    if not takes_more:  # as Nemotron and StableLM in some versions of transformers
        model.forward = lambda: None
    assert choose_attention(Attention.AUTO, model, None, packed_rows=packed_rows).describe() == expected


def gemma4(**changes):
    """Layers of whole attention have wider heads than those of a sliding window."""
    return Gemma4TextConfig(**{**COMMON, "layer_types": LAYER_TYPES, "global_head_dim": 320, **changes})


def deepseek(**changes):
    """Latent attention: ``head_dim`` is only the part with positions."""
    return DeepseekV3Config(**{**MLA, **changes})


@pytest.mark.parametrize("wanted", [Attention.SDPA, Attention.EAGER])
def test_where_flash_attn_is_not_asked_for_nothing_is_asked_for_it(wanted, monkeypatch):
    monkeypatch.setattr(attention_module, "_obstacle_of_model", lambda _: pytest.fail("asked"))
    assert choose_attention(wanted, skeleton("llama"), None).attention is wanted


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (GPT2Config(n_embd=48, n_layer=2, n_head=4, attn_pdrop=0.0), "flash (flash-attn is installed)"),
        (LlamaConfig(**{**COMMON, "head_dim": 512}), "sdpa (flash-attn has no heads of 512 values)"),
        (gemma4(), "sdpa (flash-attn has no heads of 320 values)"),
        (gemma4(global_head_dim=64), "flash (flash-attn is installed)"),
        (deepseek(qk_nope_head_dim=256), "sdpa (flash-attn has no heads of 264 values)"),
        (deepseek(qk_nope_head_dim=16), "flash (flash-attn is installed)"),
    ],
)
def test_what_the_model_s_config_says_counts(config, expected):
    assert choose_attention(Attention.AUTO, build_skeleton(config, torch.float32), None).describe() == expected
