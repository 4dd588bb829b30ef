"""Tiny causal LMs with random weights, saved as a user's model directory would be, and batches for them."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
)

from lohan_core.data.batches import Batch
from lohan_core.data.samples import NO_LOSS

VOCABULARY = 96
POSITIONS = 48
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": POSITIONS,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
CONFIGS = {
    "llama": lambda: LlamaConfig(**COMMON),
    "qwen3": lambda: Qwen3Config(**COMMON),
    # Dropout of 0.1 on embeddings, attention and residuals, and tied embeddings: the defaults.
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCABULARY, n_embd=48, n_layer=3, n_head=4, n_positions=POSITIONS, bos_token_id=0, eos_token_id=1
    ),
    # Dropout too, and projections between embeddings and layers of another width.
    "opt": lambda: OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=48,
        word_embed_proj_dim=32,
        ffn_dim=80,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=POSITIONS,
        pad_token_id=2,
    ),
    "gemma3": lambda: Gemma3TextConfig(
        **COMMON,
        tie_word_embeddings=True,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "mixtral": lambda: MixtralConfig(**COMMON, num_local_experts=4, num_experts_per_tok=2),
}
TIED = {
    "gpt2": "transformer.wte.weight",
    "opt": "model.decoder.embed_tokens.weight",
    "gemma3": "model.embed_tokens.weight",
}
"""Embeddings that are the head too, by architecture."""


def make_lm(config: PreTrainedConfig, seed: int = 7) -> PreTrainedModel:
    """Build the model of ``config`` with weights away from the zeros and ones that would hide a mix-up."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model


def save_lm(architecture: str, path: Path) -> Path:
    """Save the tiny model of an architecture; returns ``path``."""
    make_lm(CONFIGS[architecture]()).save_pretrained(path)
    return path


def load_lm(path: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Load a model for training, as plain PyTorch would have it."""
    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype).train()


def make_batch(seed: int, *, micro_batches: int = 1, rows: int = 2, length: int = 24, packed: bool = False) -> Batch:
    """Draw a batch. Packed rows hold two documents each; others are padded on the right, but for the first.

    Some tokens are not to be predicted, and micro-batches differ in how many are.
    """
    dice = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=dice)

    groups = []
    for _ in range(micro_batches):
        tokens = draw(3, VOCABULARY, rows, length)
        labels = tokens.masked_fill(draw(0, 4, rows, length) == 0, NO_LOSS)
        group = {"input_ids": tokens, "labels": labels}
        positions = torch.arange(length).expand(rows, length)
        if packed:
            begins = draw(4, length - 4, rows, 1)
            group["position_ids"] = torch.where(positions < begins, positions, positions - begins)
        else:
            ends = draw(length // 2, length, rows, 1)
            ends[0] = length
            group["attention_mask"] = (positions < ends).long()
            tokens.masked_fill_(positions >= ends, 2)
            labels.masked_fill_(positions >= ends, NO_LOSS)
        groups.append(group)
    return Batch(
        micro_batches=tuple(groups),
        tokens=micro_batches * rows * length,
        loss_tokens=tuple(int((group["labels"][:, 1:] != NO_LOSS).sum()) for group in groups),
    )
