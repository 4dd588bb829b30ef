from __future__ import annotations

import pytest
import torch

from lohan_core.model.cut import cut_model
from lohan_core.model.isolation import isolates_documents
from lohan_core.model.skeleton import build_skeleton

SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def _config(kind):
    import transformers

    return {
        "llama": lambda: transformers.LlamaConfig(**SIZES, intermediate_size=48),
        "opt": lambda: transformers.OPTConfig(**SIZES, ffn_dim=48, word_embed_proj_dim=32),
    }[kind]()


def _packed(*lengths):
    tokens = sum(lengths)
    ids = torch.arange(tokens).expand(2, -1) % 64
    positions = torch.cat([torch.arange(length) for length in lengths]).expand(2, -1)
    return {"input_ids": ids, "labels": ids, "position_ids": positions}


@pytest.mark.parametrize(("kind", "isolated"), [("llama", True), ("opt", False)])
def test_a_model_that_ignores_where_documents_begin_is_found_out(kind, isolated):
    model = cut_model(build_skeleton(_config(kind), torch.float32))
    state = torch.get_rng_state()
    assert isolates_documents(model, _packed(10, 6)) is isolated
    assert torch.equal(torch.get_rng_state(), state)
    assert model.model.training


def test_rows_of_one_document_are_isolated_from_nothing():
    model = cut_model(build_skeleton(_config("opt"), torch.float32))
    assert isolates_documents(model, _packed(16))
