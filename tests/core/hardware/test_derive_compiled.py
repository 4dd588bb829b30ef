"""Profiles of layers that would be compiled, derived from a model's config."""

from __future__ import annotations

import pytest
from test_derive import derive
from tiny_lms import CONFIGS
from transformers import GPT2Config, LlamaConfig, MambaConfig

from lohan_core.engine.derive import LAUNCH_SECONDS
from lohan_core.errors import ConfigError
from lohan_core.hardware import find_hardware
from lohan_core.hardware.machine import compute_bandwidth

LLAMA = LlamaConfig(
    hidden_size=2048, intermediate_size=4096, num_attention_heads=16, num_key_value_heads=8, num_hidden_layers=2
)
ROWS, TOKENS = 8, 512


def layers(config, **changes):
    """The same layer, not compiled and compiled."""
    sizes = {"micro_batch_size": ROWS, "sequence_length": TOKENS}
    return [derive(config, compiles=compiles, **sizes, **changes).blocks[1] for compiles in (False, True)]


def test_products_are_the_same_and_what_lies_between_takes_less():
    plain, compiled = layers(LLAMA)
    assert (compiled.flops, compiled.recomputed_flops) == (plain.flops, plain.recomputed_flops)
    assert compiled.flops > compiled.recomputed_flops, "the last product is not needed again"
    assert compiled.seconds < 0.9 * plain.seconds
    assert compiled.transient_bytes < plain.transient_bytes
    assert [candidate.operator for candidate in compiled.candidates] == ["mm"] * 3 + ["attention"] + ["mm"] * 3
    products = [(c.operator, c.occurrence, c.bytes, c.seconds) for c in plain.candidates if c.flops]
    assert [(c.operator, c.occurrence, c.bytes, c.seconds) for c in compiled.candidates] == products


def test_a_segment_takes_as_long_as_what_it_reads_and_writes():
    _, compiled = layers(LLAMA)
    hidden = ROWS * TOKENS * LLAMA.hidden_size * 2
    inner = ROWS * TOKENS * LLAMA.intermediate_size * 2
    queries_and_keys = hidden + hidden // 2
    moved = [
        hidden + hidden,  # the first norm
        2 * queries_and_keys,  # the rotary embedding
        2 * hidden + 2 * hidden,  # the sum, and the second norm of it
        3 * inner,  # the activation
        3 * hidden,  # the sum
    ]
    bandwidth = compute_bandwidth(find_hardware("rtx-4090"))
    products = sum(candidate.seconds for candidate in compiled.candidates)
    last = (compiled.flops - compiled.recomputed_flops) / find_hardware("rtx-4090").gpu.flops_per_second
    between = compiled.seconds - products - last
    # Beside these: weights of norms, tables of positions, masks.
    assert sum(moved) / bandwidth <= between <= 1.25 * sum(moved) / bandwidth + 5 * LAUNCH_SECONDS


@pytest.mark.parametrize(
    "config", [GPT2Config(n_embd=256, n_layer=2, n_head=4, n_positions=TOKENS), CONFIGS["gemma3"]()]
)
def test_other_architectures(config):
    plain, compiled = layers(config)
    assert compiled.flops == plain.flops
    assert 0 < compiled.recomputed_seconds <= compiled.seconds < plain.seconds


def test_what_would_not_be_compiled_is_refused():
    config = MambaConfig(hidden_size=64, num_hidden_layers=1, vocab_size=96)
    reason = r"model.compile: MambaBlock: it falls into \d+ segments: .*; set model.compile: false"
    with pytest.raises(ConfigError, match=reason):
        derive(config, compiles=True, sequence_length=64)
