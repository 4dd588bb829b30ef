from __future__ import annotations

import pytest
import torch
from tiny_models import CONFIGS, lay_out_model, open_skeleton, save_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from lohan_core.errors import ModelError
from lohan_core.weights import RandomWeights, write_model

CPU = torch.device("cpu")


def open_random(path, seed=0):
    return RandomWeights(path, open_skeleton(path), seed=seed, device=CPU)


def draw_blocks(source):
    for layout in lay_out_model(source.model):
        flat = torch.full((layout.elements,), 7.0)
        source.read_block(layout, flat)
        yield {slot.name: flat[slot.offset : slot.stop].view(slot.shape) for slot in layout.slots}


def draw_all(source):
    return {name: value for block in draw_blocks(source) for name, value in block.items()}


@pytest.mark.parametrize("architecture", CONFIGS)
def test_parameters_are_distributed_as_the_architecture_has_it(tmp_path, architecture):
    path = save_model(tmp_path, architecture)
    drawn = draw_all(open_random(path))
    expected = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path), dtype=torch.float32).state_dict()
    for name, value in ((name, expected[name]) for name in drawn):
        if value.std() == 0:
            assert torch.equal(drawn[name], value), name
        else:
            assert float(drawn[name].std()) == pytest.approx(float(value.std()), rel=0.3), name
            assert not torch.equal(drawn[name], value), name


def test_the_depth_of_gpt2_scales_what_goes_back_to_the_stream(tmp_path):
    drawn = draw_all(open_random(save_model(tmp_path, "gpt2")))
    back, other = (drawn[f"transformer.h.1.mlp.{name}.weight"].std() for name in ("c_proj", "c_fc"))
    layers = len({name.split(".")[2] for name in drawn if ".h." in name})
    assert float(back / other) == pytest.approx((2 * layers) ** -0.5, rel=0.1)


def test_the_same_seed_draws_the_same_in_any_order(tmp_path):
    path = save_model(tmp_path, "llama")
    first = draw_all(open_random(path))
    again = open_random(path)
    torch.manual_seed(123)
    state = torch.get_rng_state()
    for layout in reversed(list(lay_out_model(again.model))):
        flat = torch.empty(layout.elements)
        again.read_block(layout, flat)
        for slot in layout.slots:
            assert torch.equal(first[slot.name], flat[slot.offset : slot.stop].view(slot.shape)), slot.name
    assert torch.equal(torch.get_rng_state(), state)
    other = draw_all(open_random(path, seed=1))
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(first[name], other[name])
    assert not torch.equal(first[name], first["model.layers.1.mlp.up_proj.weight"])
    assert open_random(path).fingerprint() != open_random(path, seed=1).fingerprint()


def test_the_skeleton_stays_one(tmp_path):
    source = open_random(save_model(tmp_path, "gpt2"))
    draw_all(source)
    assert all(parameter.is_meta for parameter in source.model.parameters())
    assert source.model.lm_head.weight is source.model.transformer.wte.weight


@pytest.mark.parametrize("architecture", CONFIGS)
def test_what_is_written_loads(tmp_path, architecture):
    source = open_random(save_model(tmp_path / "source", architecture))
    write_model(tmp_path / "out", draw_blocks(source), source, torch.float32)
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    for name, value in draw_all(source).items():
        assert torch.equal(loaded.get_parameter(name), value), name


def test_parameters_that_no_block_has_are_drawn_and_written_too(tmp_path):
    source = open_random(save_model(tmp_path / "source", "llama"))
    first, *rest = draw_blocks(source)
    write_model(tmp_path / "out", rest, source, torch.bfloat16)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for name, value in first.items():
        assert 0.5 < float(loaded.get_parameter(name).detach().float().std() / value.std()) < 2.0


def test_a_parameter_without_a_first_value_is_refused(tmp_path):
    source = open_random(save_model(tmp_path, "llama"))
    layer = source.model.model.layers[0]
    layer.register_parameter("gate", nn.Parameter(torch.empty(8, device="meta")))
    layout = next(block for block in lay_out_model(source.model) if any("gate" in slot.name for slot in block.slots))
    with pytest.raises(ModelError, match=r"how .*gate is initialized"):
        source.read_block(layout, torch.empty(layout.elements))
