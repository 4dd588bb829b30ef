"""That a model treats the documents of a packed row as if each came alone."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, GPT2Config, LlamaConfig, MixtralConfig, Qwen3Config

from lohan_core.data import evaluation_batches, open_dataset

COMMON = {"vocab_size": 97, "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0}
SMALL = {
    **COMMON,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
CONFIGS = {
    "llama": LlamaConfig(**SMALL),
    "qwen3": Qwen3Config(**SMALL),
    "gpt2": GPT2Config(**COMMON, n_embd=32, n_layer=2, n_head=4),
    "gemma3": Gemma3TextConfig(**SMALL, sliding_window=6),
    "mixtral": MixtralConfig(**SMALL, num_local_experts=4),
}
LENGTHS = (9, 2, 14, 5, 20)


@pytest.fixture
def open_documents(tmp_path):
    path = tmp_path / "data.jsonl"
    generator = torch.Generator().manual_seed(1)
    lines = [{"input_ids": torch.randint(1, 97, (n,), generator=generator).tolist()} for n in LENGTHS]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def open_documents(*, packing):
        return open_dataset([path], model_path=tmp_path, cache_dir=tmp_path, sequence_length=32, packing=packing)

    return open_documents


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", CONFIGS)
def test_packed_documents_do_not_see_each_other(name, attention, open_documents):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name], attn_implementation=attention).eval()
    packed, padded = open_documents(packing=True), open_documents(packing=False)
    assert len(packed) == 2

    def losses(dataset):
        (batch,) = evaluation_batches(dataset, batch_size=8, micro_batch_size=8)
        (micro_batch,) = batch.micro_batches
        with torch.no_grad():
            logits = model(**micro_batch, use_cache=False).logits[:, :-1]
        labels = micro_batch["labels"][:, 1:]
        each = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        # By token, since the two lay the documents out differently.
        return sorted(zip(labels[labels != -100].tolist(), each[labels != -100].tolist(), strict=True))

    one_by_one, together = losses(padded), losses(packed)
    assert [token for token, _ in together] == [token for token, _ in one_by_one]
    assert [loss for _, loss in together] == pytest.approx([loss for _, loss in one_by_one], abs=1e-5)
