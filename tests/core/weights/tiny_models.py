"""Tiny random models of several architectures, saved as a user's model directory would be."""

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    OPTConfig,
    Qwen3Config,
)

from lohan_core.layout import lay_out
from lohan_core.model.skeleton import build_skeleton, find_layers, read_config

COMMON = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 32,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
CONFIGS = {
    "llama": lambda: LlamaConfig(**COMMON),
    "qwen3": lambda: Qwen3Config(**COMMON),
    "gpt2": lambda: GPT2Config(
        vocab_size=96, n_embd=32, n_layer=2, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=1
    ),
    "opt": lambda: OPTConfig(
        vocab_size=96, hidden_size=32, word_embed_proj_dim=16, ffn_dim=48, num_hidden_layers=2, num_attention_heads=2
    ),
    "gemma3": lambda: Gemma3TextConfig(**COMMON, tie_word_embeddings=True),
    "mixtral": lambda: MixtralConfig(**COMMON, num_local_experts=3),
}


def make_model(architecture, dtype=torch.float32, **changes):
    torch.manual_seed(7)
    config = CONFIGS[architecture]()
    for name, value in changes.items():
        setattr(config, name, value)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    with torch.no_grad():  # biases and norms start as zeros and ones, which would hide a mix-up
        for parameter in model.parameters():
            parameter.normal_()
    return model


def save_model(path, architecture, dtype=torch.float32, shard="1GB", **changes):
    make_model(architecture, dtype, **changes).save_pretrained(path, max_shard_size=shard)
    return path


def open_skeleton(path, dtype=torch.float32):
    return build_skeleton(read_config(path), dtype)


def lay_out_model(skeleton):
    """One block per decoder layer, one for what comes before and one for what comes after."""
    prefix, layers = find_layers(skeleton)
    groups = [{} for _ in range(len(layers) + 2)]
    for name, parameter in skeleton.named_parameters():
        inside = name.startswith(prefix + ".")
        number = (
            1 + int(name[len(prefix) + 1 :].split(".")[0]) if inside else 0 if "embed" in name or "wte" in name else -1
        )
        groups[number][name] = tuple(parameter.shape)
    return [
        lay_out(index, f"block{index}", [(name, shape, len(shape) > 1) for name, shape in group.items()])
        for index, group in enumerate(groups)
    ]
