"""Decoder layers as functions of tensors only, run as the engine runs them: for tests of layers that are fused."""

from __future__ import annotations

from functools import partial

import torch
from attrs import evolve, frozen
from tiny_lms import COMMON, CONFIGS, make_batch, make_lm
from torch.utils._pytree import tree_flatten, tree_unflatten
from transformers import AutoConfig

from lohan_core.engine.backward import backward
from lohan_core.model.cut import cut_model
from lohan_core.model.fused import capture, compile_captured
from lohan_core.model.keep import Keeping, OperatorCounter, nothing_saved
from lohan_core.model.replay import Replayer
from lohan_core.model.rng import get_random_state, set_random_state

CPU = torch.device("cpu")
NAMED = {"mm", "addmm", "bmm", "baddbmm", "_grouped_mm", "attention", "bernoulli_"}
"""What plans name, and draws: they must come in the eager layer's order."""

MORE = {
    "bloom": {"vocab_size": 96, "hidden_size": 48, "n_layer": 3, "n_head": 4},
    "gemma2": COMMON,
    "gpt_neox": COMMON,
    "phi": COMMON,
    "phi3": COMMON,
}


@frozen(eq=False)
class Layer:
    """A decoder layer as a function of tensors only, and tensors to call it with: hidden state, weights, the rest."""

    function: object
    examples: tuple
    names: tuple

    def __call__(self, *tensors):
        return self.function(*tensors)


def make_layer(architecture, dtype, device=CPU):
    """Return a model's first layer, and what it is called with for padded rows."""
    if architecture in CONFIGS:
        config = CONFIGS[architecture]()
    else:
        config = AutoConfig.for_model(architecture, **MORE[architecture])
    model = make_lm(config).to(dtype).train()
    cut = cut_model(model)
    cut.to(device)
    (inputs,) = make_batch(1).micro_batches
    inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
    weights = {name: parameter.detach().to(device) for name, parameter in model.named_parameters()}
    with torch.no_grad():
        hidden, (call, *_) = cut.prelude({slot.name: weights[slot.name] for slot in cut.blocks[0].slots}, inputs)
    names = tuple(slot.name for slot in cut.blocks[1].slots)
    leaves, structure = tree_flatten((call.arguments, dict(call.keywords)))
    places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]

    def function(hidden, *others):
        filled = list(leaves)
        for place, tensor in zip(places, others[len(names) :], strict=True):
            filled[place] = tensor
        arguments, keywords = tree_unflatten(filled, structure)
        given = dict(zip(names, others, strict=False))
        return cut.layer(1, given, hidden, evolve(call, arguments=arguments, keywords=keywords))

    examples = [hidden, *(weights[name] for name in names)]
    examples = [tensor.detach().clone().contiguous().requires_grad_() for tensor in examples]
    return Layer(function, (*examples, *(leaves[place] for place in places)), names)


def fuse(function, examples):
    """Capture a function, and compile it without trying it."""
    return compile_captured(capture(function, examples), examples)


class Listing(OperatorCounter):
    """Lists what runs, by occurrence."""

    def __init__(self):
        super().__init__()
        self.occurrences = []

    def run(self, occurrence, func, args, kwargs):
        self.occurrences.append(occurrence)
        return super().run(occurrence, func, args, kwargs)


def named(function, tensors):
    """The occurrences of what plans name, in order."""
    with torch.enable_grad(), Listing() as listing:
        function(*tensors)
    return [occurrence for occurrence in listing.occurrences if occurrence[0] in NAMED]


def gradients_of(function, examples, *, wanted=None, state=None):
    """Output and gradients as the engine gets them: plain, or with forward, keeping, re-run and hooks."""
    device = examples[0].device
    state = get_random_state(device) if state is None else state
    leaves = {str(place): t for place, t in enumerate(examples) if t.requires_grad}
    hidden = leaves.pop("0")
    given = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(3)).to(hidden)
    set_random_state(device, state)
    kept = {}
    if wanted is None:
        with torch.enable_grad():
            output = values = function(*examples)
    else:
        with nothing_saved() as saves, Keeping(wanted, device) as keeping:
            values = function(*examples)
        kept = keeping.kept
        copies = {name: [t.clone() for t in value.tensors()] for name, value in kept.items()}
        assert set(kept) == set(wanted)
        output = Replayer(device).run(0, partial(function, *examples), kept, saves.count, state)
    found = {}
    found["hidden"] = backward(output, given, leaves, lambda n, g: found.update({n: g.clone()}), hidden=hidden)
    for name, value in kept.items():
        assert all(map(torch.equal, value.tensors(), copies[name])), name
    return {"output": values.detach(), **found}


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []
