"""Handing out again what was kept, and leaving out what nobody needs, on functions small enough to count by hand."""

from __future__ import annotations

import pytest
import torch
from everything import EVERYTHING
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lohan_core.model.keep import Keeping, nothing_saved
from lohan_core.model.replay import Replayer
from lohan_core.model.rng import get_random_state, set_random_state

CPU = torch.device("cpu")


class Ran(TorchDispatchMode):
    """Lists what really runs."""

    def __init__(self, names):
        super().__init__()
        self.names = names

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ != "detach":
            self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def replay(function, x, wanted, *, tamper=False):
    """Gradient of ``function`` at ``x``: plain, and through keeping and replaying; and what was run again."""
    plain = x.clone().requires_grad_()
    state = get_random_state(CPU)
    function(plain).sum().backward()
    behind = get_random_state(CPU)

    set_random_state(CPU, state)
    keeping, leaf = Keeping(wanted, CPU), x.clone().requires_grad_()
    with nothing_saved() as saves, keeping:
        function(leaf)
    if tamper:
        for kept in keeping.kept.values():
            for tensor in kept.tensors():
                tensor.add_(1)

    again = []
    leaf = x.clone().requires_grad_()
    with Ran(again):
        output = Replayer(CPU).run(0, lambda: function(leaf), keeping.kept, saves.count, state)
    assert torch.equal(get_random_state(CPU), behind), "what is drawn next must be what would have been"
    (gradient,) = torch.autograd.grad(output.sum(), leaf)
    return plain.grad, gradient, again


def small_network(x):
    torch.manual_seed(1)
    weight = torch.linspace(-1, 1, 9).view(3, 3)
    return nn.functional.gelu(x @ weight).softmax(-1) * x


@pytest.mark.parametrize(
    "wanted", [frozenset(), frozenset({("gelu", 0)}), frozenset({("mm", 0), ("mul", 0)}), EVERYTHING]
)
def test_gradients_through_replayed_operators_are_the_same(wanted):
    plain, replayed, _ = replay(small_network, torch.randn(4, 3), wanted)
    assert torch.equal(plain, replayed)


def test_what_is_kept_is_not_run_again():
    *_, again = replay(lambda x: (x.exp() * 3).tanh().view(-1), torch.randn(4, 3), EVERYTHING)
    assert again == ["view"]


def test_the_kept_value_is_what_backward_uses():
    """Or else nothing is gained by keeping it."""
    plain, replayed, _ = replay(torch.exp, torch.randn(3), frozenset({("exp", 0)}), tamper=True)
    assert torch.allclose(plain + 1, replayed)


@pytest.mark.parametrize(
    "wanted",
    [frozenset({("rand", 0)}), frozenset({("rand", 1)}), frozenset({("rand", 0), ("rand", 1)}), frozenset()],
)
def test_kept_random_operators_leave_the_generator_as_if_they_had_run(wanted):
    """The second draw must not repeat the first, whichever of them is kept."""

    def function(x):
        return x * torch.rand(3) + (x * torch.rand(3)).exp()

    plain, replayed, _ = replay(function, torch.randn(3), wanted)
    assert torch.equal(plain, replayed)


@pytest.mark.parametrize("wanted", [EVERYTHING, frozenset({("mul", 1), ("mm", 0)}), frozenset()])
def test_dropout_is_replayed(wanted):
    def function(x):
        return nn.functional.dropout(nn.functional.dropout(x * 2, 0.5) @ torch.ones(3, 3), 0.5)

    plain, replayed, _ = replay(function, torch.randn(8, 3), wanted)
    assert torch.equal(plain, replayed)
    assert 0 < (plain == 0).sum() < plain.numel()


WEIGHTS = torch.linspace(-1, 1, 12).view(3, 4), torch.linspace(1, -1, 12).view(4, 3)


def layer(x):
    """Two products with something between, and the residual."""
    return x + (x @ WEIGHTS[0]).tanh() @ WEIGHTS[1]


def layer_with_bias(x):
    return torch.addmm(torch.ones(3), (x @ WEIGHTS[0]).relu(), WEIGHTS[1]) + x


def two_branches(x):
    return x + x @ WEIGHTS[0] @ WEIGHTS[1] + (x @ WEIGHTS[0]).tanh() @ WEIGHTS[1]


def layer_with_norm_behind(x):
    return nn.functional.layer_norm(layer(x), (3,))


def layer_with_dropout(x):
    return x + nn.functional.dropout((x @ WEIGHTS[0]).tanh() @ WEIGHTS[1], 0.5)


def layer_of_stacks(x):
    return torch.bmm((x.view(2, 2, 3) * 2).exp(), WEIGHTS[0].expand(2, 3, 4).clone()).view(-1, 4) + 1


@pytest.mark.parametrize(
    ("function", "runs"),
    [
        (layer, {"mm": 1, "add": 0}),
        (layer_with_bias, {"mm": 1, "addmm": 0, "add": 0}),
        (two_branches, {"mm": 3, "add": 1}),
        (layer_with_norm_behind, {"mm": 2, "add": 1}),
        (layer_with_dropout, {"mm": 2, "add": 0}),
        (layer_of_stacks, {"bmm": 0}),
    ],
)
def test_what_comes_behind_the_last_saved_tensor_is_left_out(function, runs):
    """Autograd saves what a layer's last product is made of, not what it makes: only a norm behind it needs that."""
    plain, replayed, again = replay(function, torch.randn(4, 3), frozenset())
    assert {name: again.count(name) for name in runs} == runs
    assert torch.equal(plain, replayed)


def test_a_forward_that_depends_on_its_data_leaves_out_what_that_forward_would():
    """The count is of the same micro-batch: in another one the same product may be needed."""

    def function(x):
        y = x @ WEIGHTS[0]
        return (y.tanh() @ WEIGHTS[1]) if x.sum() > 0 else y

    for x in (torch.ones(4, 3), -torch.ones(4, 3)):
        plain, replayed, again = replay(function, x, frozenset())
        assert torch.equal(plain, replayed)
        assert again.count("mm") == 1, "behind what is left out, nothing is looked at: so it is run after all"


class Stashing(torch.autograd.Function):
    """Keeps its input without asking autograd to."""

    @staticmethod
    def forward(ctx, x):
        ctx.x = x
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.x


class StashingItsOwn(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.y = x @ WEIGHTS[1]
        return ctx.y.clone()

    @staticmethod
    def backward(ctx, gradient):
        return (gradient * ctx.y) @ WEIGHTS[1].T


def looks_for_nan(y):
    if y.isnan().any():
        raise ValueError("not a number")
    return y


@pytest.mark.parametrize(
    "behind",
    [
        Stashing.apply,
        lambda y: Stashing.apply(y) + y,
        lambda y: StashingItsOwn.apply(y @ WEIGHTS[0]),
        looks_for_nan,
        lambda y: y + torch.arange(9)[(torch.ones(1, dtype=torch.long) + torch.ones(1, dtype=torch.long))],
        lambda y: (y.T + y.T).view(-1) if y.T.is_contiguous() else (y.T + y.T).T.view(-1),
        lambda y: torch.ones(()).double().float() + y,
    ],
)
def test_where_somebody_else_may_read_nothing_is_left_out(behind):
    plain, replayed, _ = replay(lambda x: behind(layer(x)), torch.randn(4, 3), frozenset())
    assert torch.equal(plain, replayed)


def test_it_is_remembered_that_a_layer_needs_all():
    replayer, runs = Replayer(CPU), []

    def run():
        runs.append(None)
        return Stashing.apply(layer(torch.ones(4, 3, requires_grad=True)))

    with nothing_saved() as saves:
        run()
    for _ in range(3):
        output = replayer.run(5, run, {}, saves.count, get_random_state(CPU))
        assert output.isfinite().all()
    assert len(runs) == 1 + 2 + 1 + 1
