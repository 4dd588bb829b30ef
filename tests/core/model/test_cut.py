"""Cutting: which parameters land in which block, what is refused, and what a skeleton costs."""

from __future__ import annotations

import resource
from types import SimpleNamespace

import pytest
import torch
from tiny_lms import COMMON, CONFIGS, make_batch, make_lm
from torch import nn
from transformers import (
    BartConfig,
    BertConfig,
    DistilBertConfig,
    LlamaConfig,
    RobertaConfig,
    RwkvConfig,
    T5Config,
    ViTConfig,
)

from lohan_core.errors import ModelError
from lohan_core.model.cut import cut_model
from lohan_core.model.skeleton import build_skeleton, find_layers, read_config


def cut(architecture, dtype=torch.float32, **changes):
    config = CONFIGS[architecture]()
    for name, value in changes.items():
        setattr(config, name, value)
    return cut_model(build_skeleton(config, dtype))


def names_of(block):
    return [slot.name for slot in block.slots]


@pytest.mark.parametrize("architecture", CONFIGS)
def test_every_parameter_lands_in_one_block_with_its_shape(architecture):
    model = cut(architecture)
    plain = {name: tuple(p.shape) for name, p in make_lm(CONFIGS[architecture]()).named_parameters()}
    found = [(slot.name, slot.shape) for block in model.blocks for slot in block.slots]
    assert len(found) == len(plain)
    assert dict(found) == plain
    assert model.unused == ()
    assert [block.index for block in model.blocks] == list(range(5))
    assert model.layers == range(1, 4)
    for index in model.layers:
        block = model.blocks[index]
        assert block.name.endswith(f".{index - 1}")
        assert all(name.startswith(f"{block.name}.") for name in names_of(block))


@pytest.mark.parametrize(
    ("architecture", "prelude", "postlude", "borrowed"),
    [
        ("llama", ["model.embed_tokens.weight"], ["lm_head.weight", "model.norm.weight"], []),
        (
            "gpt2",
            ["transformer.wte.weight", "transformer.wpe.weight"],
            ["transformer.ln_f.weight", "transformer.ln_f.bias"],
            ["transformer.wte.weight"],
        ),
        (
            "opt",
            [
                "model.decoder.embed_tokens.weight",
                "model.decoder.embed_positions.weight",
                "model.decoder.project_in.weight",
            ],
            [
                "model.decoder.project_out.weight",
                "model.decoder.final_layer_norm.weight",
                "model.decoder.final_layer_norm.bias",
            ],
            ["model.decoder.embed_tokens.weight"],
        ),
        ("gemma3", ["model.embed_tokens.weight"], ["model.norm.weight"], ["model.embed_tokens.weight"]),
    ],
)
def test_the_edges_own_what_they_compute_with_and_borrow_what_is_tied(architecture, prelude, postlude, borrowed):
    model = cut(architecture)
    assert sorted(names_of(model.blocks[0])) == sorted(prelude)
    assert sorted(names_of(model.blocks[-1])) == sorted(postlude)
    assert [(entry.name, entry.owner) for entry in model.blocks[-1].borrowed] == [(name, 0) for name in borrowed]
    for entry in model.blocks[-1].borrowed:
        assert entry.slot in model.blocks[0].slots


def test_untying_gives_the_head_a_parameter_of_its_own():
    model = cut("gemma3", tie_word_embeddings=False)
    assert "lm_head.weight" in names_of(model.blocks[-1])
    assert model.blocks[-1].borrowed == ()


def test_norms_and_biases_do_not_decay():
    for architecture in CONFIGS:
        for block in cut(architecture).blocks:
            for slot in block.slots:
                exempt = slot.name.endswith("bias") or any(part in slot.name for part in ("norm", "ln_"))
                assert slot.decays != exempt, slot.name


def test_layers_of_one_kind_are_told_from_others():
    model = cut("gemma3")
    _, calls = prelude_on_zeros(model)
    sliding, full, sliding_too = (model.kind_of(index, calls[index - 1]) for index in model.layers)
    assert sliding == sliding_too
    assert sliding != full
    llama = cut("llama")
    _, calls = prelude_on_zeros(llama)
    assert len({llama.kind_of(index, calls[index - 1]) for index in llama.layers}) == 1


def prelude_on_zeros(model):
    (inputs,) = make_batch(0).micro_batches
    return model.prelude({slot.name: torch.zeros(slot.shape) for slot in model.blocks[0].slots}, inputs)


def test_every_layer_gets_the_arguments_that_the_model_passes():
    model = cut("llama")
    hidden, calls = prelude_on_zeros(model)
    assert hidden.shape == (2, 24, 48)
    assert len(calls) == 3
    for call in calls:
        args, kwargs = call.with_hidden(hidden)
        assert args[0] is hidden
        assert {"attention_mask", "position_embeddings"} <= set(kwargs)
    assert model.model.model.layers[0].forward.__func__ is type(model.model.model.layers[0]).forward, "restored"


def test_a_skeleton_takes_no_memory_for_parameters():
    """Twenty billion of them: 80 GB, if they were there."""
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=8192,
        intermediate_size=24576,
        num_hidden_layers=25,
        num_attention_heads=64,
        num_key_value_heads=8,
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    state = torch.get_rng_state()
    model = build_skeleton(config, torch.float32)
    assert sum(p.numel() for p in model.parameters()) > 18e9
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert {b.device.type for b in model.buffers()} == {"cpu"}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert not model.config.use_cache


def test_a_router_s_own_loss_is_left_out_and_said():
    config = CONFIGS["mixtral"]()
    config.output_router_logits = True
    with pytest.warns(UserWarning, match="auxiliary router loss is left out"):
        model = build_skeleton(config, torch.float32)
    assert not model.config.output_router_logits


def test_what_is_no_model_directory_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"^model\.path: no directory .*none"):
        read_config(tmp_path / "none")
    with pytest.raises(ModelError, match=r"^model\.path: .* holds no config\.json"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "of another world"}')
    with pytest.raises(ModelError, match=r"^model\.path: .*of another world"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"^model\.path: "):
        read_config(tmp_path)


@pytest.mark.parametrize("config", [ViTConfig, T5Config, DistilBertConfig, BertConfig, RobertaConfig])
def test_what_is_no_causal_lm_is_refused(config):
    with pytest.raises(
        ModelError, match=rf"^model\.path: a '{config.model_type}' model is not a causal LM: "
    ) as raised:
        build_skeleton(config(), torch.float32)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("config", [BartConfig(), BertConfig(is_decoder=True)])
def test_decoders_of_families_with_encoders_are_taken(config):
    assert len(cut_model(build_skeleton(config, torch.bfloat16)).layers) == 12


class FakeLM(nn.Module):
    """The least that looks like a causal LM; subclasses do what cannot be cut."""

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(get_text_config=lambda **_: SimpleNamespace(num_hidden_layers=3))
        self.embedding = nn.Embedding(10, 4)
        self.layers = nn.ModuleList(FakeLayer() for _ in range(3))

    def forward(self, input_ids, labels, use_cache):
        del use_cache
        hidden = self.run_layers(self.embedding(input_ids))
        logits = hidden @ self.embedding.weight.T
        return SimpleNamespace(loss=nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()))

    def run_layers(self, hidden):
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden


class FakeLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, hidden, other=None):
        return self.linear(hidden) if other is None else self.linear(hidden) + other


def test_the_fake_itself_can_be_cut():
    model = cut_model(FakeLM())
    assert names_of(model.blocks[0]) == ["embedding.weight"]
    assert [entry.name for entry in model.blocks[-1].borrowed] == ["embedding.weight"]


class ComputesBetween(FakeLM):
    def run_layers(self, hidden):
        for layer in self.layers:
            hidden = layer(hidden) * 2
        return hidden


class SkipsAhead(FakeLM):
    def run_layers(self, hidden):
        first = hidden
        for layer in self.layers:
            hidden = layer(hidden, other=first)
        return hidden


class GivesNoLoss(FakeLM):
    def forward(self, input_ids, labels, use_cache):
        return SimpleNamespace(logits=super().forward(input_ids, labels, use_cache).loss)


class HasNoList(FakeLM):
    def __init__(self):
        super().__init__()
        self.layers = self.layers[0]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (ComputesBetween, r"computes on the hidden state before layer 1: it cannot be cut there$"),
        (SkipsAhead, r"^layer 0 \(FakeLayer\) takes trained values beside the hidden state: not supported$"),
        (GivesNoLoss, r"^GivesNoLoss gives no loss for labels: it cannot be trained as a causal LM$"),
        (HasNoList, r"^HasNoList has no list of decoder layers: it cannot be cut into blocks$"),
    ],
)
def test_what_cannot_be_cut_is_refused_in_one_line(model, message):
    with pytest.raises(ModelError, match=message):
        cut_model(model())


def test_layers_that_are_no_chain_are_refused_in_one_line():
    """RWKV's hand a state of their own to each other."""
    config = RwkvConfig(
        vocab_size=96, hidden_size=48, num_hidden_layers=3, attention_hidden_size=48, intermediate_size=80
    )
    with pytest.raises(ModelError, match=r"^RwkvForCausalLM cannot be cut into blocks: its layers are no chain: "):
        cut_model(build_skeleton(config, torch.float32))


@pytest.mark.parametrize(
    ("config", "key"),
    [(CONFIGS["opt"](), "layerdrop"), (BartConfig(), "decoder_layerdrop")],
)
def test_layers_that_are_skipped_at_random_are_refused_by_the_config_s_key(config, key):
    setattr(config, key, 0.1)
    with pytest.raises(ModelError, match=rf"^model\.path: {key}: 0\.1 in its config\.json .*; set {key} to 0 there$"):
        cut_model(build_skeleton(config, torch.float32))


def test_the_list_with_the_most_parameters_is_the_decoder_s():
    config = LlamaConfig(**COMMON)
    model = build_skeleton(config, torch.float32)
    model.model.extras = nn.ModuleList(nn.Linear(1, 1, device="meta") for _ in range(3))
    prefix, layers = find_layers(model)
    assert prefix == "model.layers"
    assert len(layers) == 3


def test_parameters_that_nothing_uses_are_named():
    class HasSpare(FakeLM):
        def __init__(self):
            super().__init__()
            self.spare = nn.Linear(2, 2)

    model = cut_model(HasSpare())
    assert model.unused == ("spare.weight", "spare.bias")
