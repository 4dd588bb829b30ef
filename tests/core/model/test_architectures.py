"""Cut without code for any architecture: block by block, the gradients of many are those of plain backward."""

from __future__ import annotations

import random

import pytest
import torch
from by_blocks import gradients_by_blocks
from tiny_lms import COMMON, make_batch, make_lm
from transformers import AutoConfig, AutoModelForCausalLM

from lohan_core.model.cut import cut_model
from lohan_core.model.skeleton import build_skeleton, read_config

EXPERTS = {
    **COMMON,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 40,
    "shared_expert_intermediate_size": 40,
    "decoder_sparse_step": 1,
}
ROUTED = {
    **EXPERTS,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
GPT = {
    "vocab_size": 96,
    "n_embd": 48,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 48,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
ROTARY_GPT = {**GPT, "rotary_dim": 4, "n_inner": 80}
STATE_SPACE = {"vocab_size": 96, "hidden_size": 48, "num_hidden_layers": 3, "state_size": 4}
ARCHITECTURES = {
    **dict.fromkeys(
        (
            "apertus",
            "cohere2",
            "ernie4_5",
            "exaone4",
            "gemma",
            "gemma2",
            "glm4",
            "gpt_neox",
            "granite",
            "hunyuan_v1_dense",
            "lfm2",
            "mistral",
            "nemotron",
            "olmo2",
            "olmo3",
            "phi",
            "phi3",
            "qwen2",
            "recurrent_gemma",
            "seed_oss",
            "smollm3",
            "starcoder2",
        ),
        COMMON,
    ),
    **dict.fromkeys(
        ("gpt_oss", "granitemoe", "llama4_text", "minimax", "olmoe", "phimoe", "qwen2_moe", "qwen3_moe"), EXPERTS
    ),
    **dict.fromkeys(("dots1", "glm4_moe"), ROUTED),
    **dict.fromkeys(("gpt2", "gpt_bigcode"), GPT),
    **dict.fromkeys(("codegen", "gptj"), ROTARY_GPT),
    **dict.fromkeys(("falcon_mamba", "mamba"), STATE_SPACE),
    "bloom": {"vocab_size": 96, "hidden_size": 48, "n_layer": 3, "n_head": 4},
    "mpt": {"vocab_size": 96, "d_model": 48, "n_layers": 3, "n_heads": 4, "expansion_ratio": 2, "max_seq_len": 48},
    "stablelm": {**COMMON, "partial_rotary_factor": 0.5},
}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradients_block_by_block_are_those_of_the_whole(tmp_path, architecture, dtype):
    make_lm(AutoConfig.for_model(architecture, **ARCHITECTURES[architecture])).save_pretrained(tmp_path)
    whole = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype).train()
    cut = cut_model(build_skeleton(read_config(tmp_path), dtype))
    (inputs,) = make_batch(1).micro_batches

    torch.manual_seed(7)
    loss = whole(**inputs, use_cache=False).loss
    loss.backward()
    torch.manual_seed(7)
    our_loss, ours = gradients_by_blocks(cut, whole, inputs, random.Random(1))

    theirs = {name: p.grad for name, p in whole.named_parameters() if p.grad is not None}
    assert torch.equal(our_loss, loss)
    assert theirs
    assert ours.keys() >= theirs.keys()
    assert not any(gradient.any() for name, gradient in ours.items() if name not in theirs)
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []
