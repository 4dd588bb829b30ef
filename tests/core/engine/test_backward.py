from __future__ import annotations

import pytest
import torch
from torch import nn

from lohan_core.engine.backward import backward
from lohan_core.engine.peak import peak_bytes

CPU = torch.device("cpu")
WIDTH, DEPTH = 64, 8


@pytest.fixture
def block():
    torch.manual_seed(0)
    return nn.Sequential(*[nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH)], nn.GELU(), nn.LayerNorm(WIDTH))


@pytest.fixture
def hidden():
    return torch.randn(4, WIDTH, requires_grad=True)


def test_gradients_are_those_of_autograd_each_given_once(block, hidden):
    parameters = {**dict(block.named_parameters()), "unused": torch.zeros(3, requires_grad=True)}
    output = block(hidden)
    gradient = torch.randn_like(output)
    expected = torch.autograd.grad(output, [hidden, *block.parameters()], gradient, retain_graph=True)
    taken = []
    of_hidden = backward(
        output, gradient, parameters, lambda name, value: taken.append((name, value.clone())), hidden=hidden
    )
    assert torch.equal(of_hidden, expected[0])
    assert sorted(name for name, _ in taken) == sorted(name for name, _ in block.named_parameters())
    for (name, _), value in zip(block.named_parameters(), expected[1:], strict=True):
        assert torch.equal(dict(taken)[name], value)


def test_a_parameter_that_is_used_twice_is_given_its_sum(hidden):
    weight = torch.randn(WIDTH, WIDTH, requires_grad=True)
    output = (hidden @ weight).tanh() @ weight
    (expected,) = torch.autograd.grad(output, [weight], torch.ones_like(output), retain_graph=True)
    taken = []
    backward(output, torch.ones_like(output), {"weight": weight}, lambda _, value: taken.append(value.clone()))
    (value,) = taken
    assert torch.equal(value, expected)


def test_gradients_are_not_all_held_at_once(block, hidden):
    one = WIDTH * WIDTH * 4
    parameters = dict(block.named_parameters())

    def run():
        output = block(hidden)
        backward(output, torch.ones_like(output), parameters, lambda *_: None, hidden=hidden)

    assert peak_bytes(run, CPU) < 3 * one < DEPTH * one


def test_an_error_of_the_taker_is_raised_and_leaves_no_hook(block, hidden):
    def fail(*_):
        raise ValueError("no room")

    output = block(hidden)
    with pytest.raises(ValueError, match="no room"):
        backward(output, torch.ones_like(output), dict(block.named_parameters()), fail, hidden=hidden)
    output = block(hidden)
    gradients = torch.autograd.grad(output, list(block.parameters()), torch.ones_like(output))
    assert all(gradient.stride() == p.stride() for gradient, p in zip(gradients, block.parameters(), strict=True))
