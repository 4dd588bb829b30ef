import json
import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import CONFIGS, lay_out_model, open_skeleton, save_model
from transformers import AutoModelForCausalLM

from lohan_core.errors import ModelError
from lohan_core.weights import Checkpoint
from lohan_core.weights.files import TensorFiles


def read_all(path):
    """Every parameter through read_block, and the padding's largest value."""
    skeleton = open_skeleton(path)
    checkpoint = Checkpoint(path, skeleton)
    parameters, padding = {}, 0.0
    for layout in lay_out_model(skeleton):
        flat = torch.full((layout.elements,), 7.0)
        checkpoint.read_block(layout, flat)
        for slot in layout.slots:
            parameters[slot.name] = flat[slot.offset : slot.stop].view(slot.shape).clone()
            flat[slot.offset : slot.stop] = 0
        padding = max(padding, float(flat.abs().max()))
    return parameters, padding


def edit_weights(path, change):
    tensors = load_file(path / "model.safetensors")
    save_file(change(tensors), path / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("shard", ["1GB", "8KB"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("architecture", CONFIGS)
def test_blocks_hold_what_from_pretrained_loads(tmp_path, architecture, dtype, shard):
    path = save_model(tmp_path, architecture, dtype, shard)
    assert (path / "model.safetensors.index.json").exists() == (shard == "8KB")
    parameters, padding = read_all(path)
    expected = dict(AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).named_parameters())
    assert parameters.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(parameters[name], value), name
    assert padding == 0.0


def test_mixtral_is_stored_by_expert_and_merged_by_us(tmp_path):
    path = save_model(tmp_path, "mixtral")
    stored = load_file(path / "model.safetensors")
    assert any(".experts.2.w1." in name for name in stored)
    parameters, _ = read_all(path)
    assert parameters["model.layers.0.mlp.experts.gate_up_proj"].shape[0] == 3


def test_base_model_checkpoint_without_prefix(tmp_path):
    path = save_model(tmp_path, "gemma3")
    before, _ = read_all(path)
    edit_weights(path, lambda tensors: {name.removeprefix("model."): tensor for name, tensor in tensors.items()})
    after, _ = read_all(path)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_tied_parameter_stored_under_its_other_name(tmp_path):
    path = save_model(tmp_path, "gemma3")
    before, _ = read_all(path)

    def rename(tensors):
        tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
        return tensors

    edit_weights(path, rename)
    after, _ = read_all(path)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_tied_parameters_stored_twice(tmp_path):
    path = save_model(tmp_path, "gemma3")
    before, _ = read_all(path)
    edit_weights(path, lambda t: {**t, "lm_head.weight": t["model.embed_tokens.weight"].clone()})
    after, _ = read_all(path)
    assert all(torch.equal(before[name], after[name]) for name in before)

    edit_weights(path, lambda t: {**t, "lm_head.weight": t["lm_head.weight"] + 1})
    with pytest.raises(ModelError, match=r"ties .*lm_head\.weight.* different values .* tie_word_embeddings to false"):
        read_all(path)


def test_missing_parameters_are_named(tmp_path):
    path = save_model(tmp_path, "llama")
    edit_weights(path, lambda t: {name: tensor for name, tensor in t.items() if "layers.1.mlp.up" not in name})
    with pytest.raises(ModelError, match=r"lacks model\.layers\.1\.mlp\.up_proj\.weight;"):
        read_all(path)


def test_a_missing_expert_is_an_error_not_a_smaller_model(tmp_path):
    path = save_model(tmp_path, "mixtral")
    edit_weights(path, lambda t: {name: tensor for name, tensor in t.items() if ".experts.2." not in name})
    with pytest.raises(ModelError, match=r"experts\.\w+ has shape \(2, .* and \(3, "):
        read_all(path)


def test_unexpected_tensors_are_ignored_and_reported(tmp_path, caplog):
    path = save_model(tmp_path, "llama")
    edit_weights(
        path,
        lambda t: {**t, "extra.weight": torch.ones(1), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(1)},
    )
    checkpoint = Checkpoint(path, open_skeleton(path))
    assert checkpoint.unexpected == ("extra.weight",)
    assert "1 tensors are not used: extra.weight" in caplog.text


def test_experts_that_do_not_fit_together_are_an_error(tmp_path):
    path = save_model(tmp_path, "mixtral")
    edit_weights(path, lambda t: {**t, "model.layers.0.block_sparse_moe.experts.1.w1.weight": torch.ones(2, 2)})
    with pytest.raises(
        ModelError, match=r"layers\.0\.mlp\.experts\.gate_up_proj cannot be converted from the checkpoint"
    ):
        read_all(path)


@pytest.mark.parametrize(("architecture", "most"), [("llama", 1), ("mixtral", 6)])
def test_one_parameter_is_in_memory_at_a_time(tmp_path, monkeypatch, architecture, most):
    path = save_model(tmp_path, architecture)
    alive = weakref.WeakSet()
    counts = []
    load = TensorFiles.load

    def counting_load(self, name):
        tensor = load(self, name)
        alive.add(tensor)
        counts.append(len(alive))
        return tensor

    monkeypatch.setattr(TensorFiles, "load", counting_load)
    read_all(path)
    assert len(counts) > 10
    assert max(counts) == most  # of mixtral: gate and up of three experts


def test_other_shape_names_both(tmp_path):
    path = save_model(tmp_path, "llama")
    edit_weights(path, lambda t: {**t, "model.norm.weight": torch.ones(31)})
    with pytest.raises(ModelError, match=r"model\.norm\.weight has shape \(31,\) in the checkpoint and \(32,\)"):
        read_all(path)


def test_integer_weights_are_refused(tmp_path):
    path = save_model(tmp_path, "llama")
    edit_weights(path, lambda t: {**t, "model.norm.weight": torch.ones(32, dtype=torch.int8)})
    with pytest.raises(ModelError, match=r"model\.norm\.weight is torch\.int8"):
        read_all(path)


def test_quantized_model_is_refused(tmp_path):
    path = save_model(tmp_path, "llama")
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8"}
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="is quantized"):
        read_all(path)


def test_pickle_is_refused_with_the_remedy(tmp_path):
    path = save_model(tmp_path, "llama")
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin, which is pickle .*save_pretrained"):
        read_all(path)


def test_config_without_weights_is_refused(tmp_path):
    path = save_model(tmp_path, "llama")
    (path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="has a config but no weights"):
        read_all(path)


def test_truncated_file_is_named(tmp_path):
    path = save_model(tmp_path, "llama")
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"model\.safetensors: not a whole safetensors file"):
        read_all(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: "nonsense", "not an index"),
        (lambda _: "[]", "not an index"),
        (lambda _: '{"weight_map": {"a": "../secret.safetensors"}}', "not in its own directory"),
        (lambda _: '{"weight_map": {"a": "gone.safetensors"}}', r"gone\.safetensors: not a whole"),
        (lambda text: text.replace('"model.norm.weight"', '"model.gone.weight"'), r"lacks model\.gone\.weight, which"),
    ],
)
def test_bad_index_is_refused(tmp_path, change, message):
    path = save_model(tmp_path, "llama", shard="8KB")
    index = path / "model.safetensors.index.json"
    index.write_text(change(index.read_text()))
    with pytest.raises(ModelError, match=message):
        read_all(path)


def test_buffer_of_the_wrong_length_is_a_programming_error(tmp_path):
    path = save_model(tmp_path, "llama")
    skeleton = open_skeleton(path)
    layout = lay_out_model(skeleton)[1]
    with pytest.raises(ValueError, match="want"):
        Checkpoint(path, skeleton).read_block(layout, torch.empty(layout.elements - 1))
