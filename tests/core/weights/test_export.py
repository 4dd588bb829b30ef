import json
import stat

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import CONFIGS, lay_out_model, make_model, open_skeleton, save_model
from transformers import AutoModelForCausalLM, DeepseekV3Config

from lohan_core.errors import ModelError, StorageError
from lohan_core.weights import Checkpoint, write_model


def blocks_of(checkpoint, change=lambda _, tensor: tensor):
    """The checkpoint's blocks as views into one flat vector each, as the engine holds them."""
    for layout in lay_out_model(checkpoint.model):
        flat = torch.empty(layout.elements)
        checkpoint.read_block(layout, flat)
        yield {slot.name: change(slot.name, flat[slot.offset : slot.stop].view(slot.shape)) for slot in layout.slots}


def open_checkpoint(path):
    return Checkpoint(path, open_skeleton(path))


@pytest.mark.parametrize("source_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", CONFIGS)
def test_round_trip_is_bitwise(tmp_path, architecture, dtype, source_dtype):
    source = save_model(tmp_path / "source", architecture, source_dtype, shard="8KB")
    checkpoint = open_checkpoint(source)
    write_model(tmp_path / "out", blocks_of(checkpoint), checkpoint, dtype)

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.dtype is dtype
    expected = AutoModelForCausalLM.from_pretrained(source, dtype=dtype).state_dict()
    found = loaded.state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("architecture", CONFIGS)
def test_names_in_files_are_those_of_save_pretrained(tmp_path, architecture):
    source = save_model(tmp_path / "source", architecture)
    checkpoint = open_checkpoint(source)
    write_model(tmp_path / "out", blocks_of(checkpoint), checkpoint, torch.float32)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    original = load_file(source / "model.safetensors")
    assert set(index["weight_map"]) == set(original)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in original.values())
    for name, file_name in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / "out" / file_name)[name], original[name])
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith("shard")]


def test_new_values_are_what_is_loaded(tmp_path):
    source = save_model(tmp_path / "source", "mixtral", torch.bfloat16)
    checkpoint = open_checkpoint(source)
    write_model(tmp_path / "out", blocks_of(checkpoint, lambda _, tensor: tensor + 1), checkpoint, torch.float32)
    before = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).state_dict()
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(after[name], before[name] + 1) for name in before)


def test_written_model_can_be_read_and_written_again(tmp_path):
    path = save_model(tmp_path / "0", "mixtral")
    for number in (1, 2):
        checkpoint = open_checkpoint(path)
        path = tmp_path / str(number)
        write_model(path, blocks_of(checkpoint), checkpoint, torch.float32)
    first, last = (AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in "02")
    assert all(torch.equal(first[name], last[name]) for name in first)


def test_what_no_block_holds_is_copied(tmp_path, monkeypatch):
    monkeypatch.setattr("lohan_core.weights.checkpoint.COPIED_SHARD_BYTES", 1)
    source = save_model(tmp_path / "source", "mixtral")
    checkpoint = open_checkpoint(source)
    trained = list(blocks_of(checkpoint, lambda _, tensor: tensor + 1))[1:2]
    write_model(tmp_path / "out", trained, checkpoint, torch.bfloat16)
    before = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).state_dict()
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert trained[0]
    for name, value in before.items():
        assert torch.equal(after[name], (value + (name in trained[0])).to(torch.bfloat16)), name


def test_persistent_buffers_are_loaded_and_copied_in_their_own_dtype(tmp_path):
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 16}
    ranks = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
    depths = {"num_hidden_layers": 2, "first_k_dense_replace": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    experts = {"n_routed_experts": 4, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2}
    config = DeepseekV3Config(**sizes, **ranks, **depths, **experts)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    name = "model.layers.1.mlp.gate.e_score_correction_bias"
    bias = torch.tensor([0.1, 0.2, 0.3, 0.4])
    model.get_buffer(name).copy_(bias)
    model.save_pretrained(tmp_path / "source")

    checkpoint = open_checkpoint(tmp_path / "source")
    checkpoint.load_buffers()
    assert torch.equal(checkpoint.model.get_buffer(name), bias)

    write_model(tmp_path / "out", blocks_of(checkpoint), checkpoint, torch.bfloat16)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert torch.equal(load_file(tmp_path / "out" / index["weight_map"][name])[name], bias)
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).state_dict()
    for key, value in model.state_dict().items():
        assert torch.equal(found[key], value if key == name else value.bfloat16().float()), key


def test_tied_parameter_given_under_its_other_name(tmp_path):
    source = save_model(tmp_path / "source", "gemma3")
    checkpoint = open_checkpoint(source)

    def renamed():
        for block in blocks_of(checkpoint):
            yield {("lm_head.weight" if "embed" in name else name): tensor for name, tensor in block.items()}

    write_model(tmp_path / "out", renamed(), checkpoint, torch.float32)
    before, after = (AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("source", "out"))
    assert all(torch.equal(before[name], after[name]) for name in before)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert "lm_head.weight" not in index["weight_map"]


def test_companions_are_copied_and_weights_are_not(tmp_path):
    source = save_model(tmp_path / "source", "llama", torch.bfloat16)
    companions = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "merges.txt", "LICENSE"]
    for name in [*companions, "pytorch_model.bin", "optimizer.pt", "train.jsonl"]:
        (source / name).write_text(name)
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tools.jinja").write_text("x")
    checkpoint = open_checkpoint(source)
    write_model(tmp_path / "out", [block for block in blocks_of(checkpoint) if block], checkpoint, torch.float32)
    found = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    shards = {f"model-{n:05}-of-00004.safetensors" for n in range(1, 5)}
    assert found == shards | set(companions) | {
        "additional_chat_templates/tools.jinja", "config.json", "generation_config.json",
        "model.safetensors.index.json",
    }  # fmt: skip


def test_config_says_what_the_weights_are(tmp_path):
    source = save_model(tmp_path / "source", "llama")
    config = json.loads((source / "config.json").read_text())
    config |= {"torch_dtype": "float16", "architectures": ["LlamaModel"], "own_key": 1, "nested": {"dtype": "float16"}}
    (source / "config.json").write_text(json.dumps(config))
    checkpoint = open_checkpoint(source)
    write_model(tmp_path / "out", blocks_of(checkpoint), checkpoint, torch.bfloat16)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["dtype"] == "bfloat16"
    assert "torch_dtype" not in written
    assert (written["architectures"], written["own_key"]) == (["LlamaForCausalLM"], 1)
    assert written["nested"] == {"dtype": "bfloat16"}


def test_one_shard_needs_no_index(tmp_path):
    source = save_model(tmp_path / "source", "llama")
    checkpoint = open_checkpoint(source)
    write_model(tmp_path / "out", [], checkpoint, torch.float32)
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert not (tmp_path / "out" / "model.safetensors.index.json").exists()
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_an_empty_directory_is_replaced_and_a_full_one_refused(tmp_path):
    source = save_model(tmp_path / "source", "llama")
    checkpoint = open_checkpoint(source)
    out = tmp_path / "out"
    out.mkdir()
    write_model(out, [], checkpoint, torch.float32)
    before = sorted(out.iterdir())
    with pytest.raises(ModelError, match="exists and is not an empty directory"):
        write_model(out, [], checkpoint, torch.float32)
    assert sorted(out.iterdir()) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_what_was_half_written_is_gone_after_an_error(tmp_path, error):
    source = save_model(tmp_path / "source", "llama")
    checkpoint = open_checkpoint(source)

    def interrupted():
        yield next(iter(blocks_of(checkpoint)))
        raise error

    with pytest.raises(error):
        write_model(tmp_path / "out", interrupted(), checkpoint, torch.float32)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_unknown_name_is_a_programming_error(tmp_path):
    source = save_model(tmp_path / "source", "llama")
    with pytest.raises(ValueError, match="not parameters of the model"):
        write_model(tmp_path / "out", [{"nope": torch.ones(1)}], open_checkpoint(source), torch.float32)


def test_too_little_space_is_found_before_writing(tmp_path, monkeypatch):
    source = save_model(tmp_path / "source", "llama")
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(ModelError, match=r"the model takes .* KiB and .* has 1000 B free"):
        write_model(tmp_path / "out", [], open_checkpoint(source), torch.float32)


def test_place_that_cannot_be_written_is_named(tmp_path):
    source = save_model(tmp_path / "source", "llama")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="out: cannot be written"):
        write_model(tmp_path / "file" / "out", [], open_checkpoint(source), torch.float32)


def test_permissions_are_those_of_an_ordinary_directory(tmp_path):
    source = save_model(tmp_path / "source", "llama")
    write_model(tmp_path / "out", [], open_checkpoint(source), torch.float32)
    (tmp_path / "plain").mkdir()
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_make_model_is_not_trivial():
    parameters = list(make_model("llama").parameters())
    assert all(parameter.std() > 0.1 for parameter in parameters)
