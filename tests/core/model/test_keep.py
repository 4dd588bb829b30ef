"""Keeping operators' outputs, on functions small enough to count by hand."""

from __future__ import annotations

import traceback

import pytest
import torch
from everything import EVERYTHING
from torch import nn

from lohan_core.model.keep import Keeping, Kept, OperatorCounter, is_keepable, nothing_saved
from lohan_core.model.rng import get_random_state, preserved, seeded_state, set_random_state

CPU = torch.device("cpu")


class Listing(OperatorCounter):
    """Lists what runs."""

    def __init__(self):
        super().__init__()
        self.names = []
        self.occurrences = []

    def run(self, occurrence, func, args, kwargs):
        self.names.append(func.overloadpacket.__name__)
        self.occurrences.append(occurrence)
        return super().run(occurrence, func, args, kwargs)


def kept_of(function, *args, wanted=EVERYTHING):
    """Names of a function's operators, and what was kept: outputs by the place of their operator among all."""
    listing, keeping = Listing(), Keeping(wanted, CPU)
    with preserved(CPU), listing:
        function(*args)
    with nothing_saved(), keeping:
        function(*args)
    assert set(keeping.kept) <= set(listing.occurrences)
    return listing.names, {listing.occurrences.index(occurrence): kept for occurrence, kept in keeping.kept.items()}


def test_operators_are_counted_as_they_reach_the_dispatcher():
    x = torch.ones(2, 3)
    names, kept = kept_of(lambda t: (t @ t.T).relu(), x)
    assert names[1:] == ["mm", "relu"], "and the transposition, whatever torch calls it"
    assert sorted(kept) == [1, 2]
    assert torch.equal(kept[1].outputs, x @ x.T)


def test_nothing_of_torch_compile_runs_around_an_operator():
    """It would take the host as long as all else that is done for one."""

    class Looking(OperatorCounter):
        callers: tuple[str, ...] = ()

        def run(self, occurrence, func, args, kwargs):
            self.callers = tuple(frame.filename for frame in traceback.extract_stack())
            return super().run(occurrence, func, args, kwargs)

    with Looking() as looking:
        torch.ones(3).exp()
    assert looking.callers
    assert not [name for name in looking.callers if "_dynamo" in name]


def test_only_what_is_wanted_is_kept():
    wanted = frozenset({("relu", 0), ("add", 1)})
    _, kept = kept_of(lambda t: ((t + 1).relu().exp() + 1).relu(), torch.ones(3), wanted=wanted)
    assert sorted(kept) == [1, 3]


@pytest.mark.parametrize(
    "function",
    [
        lambda t: t.view(-1),
        lambda t: t.transpose(0, 1),
        lambda t: t[1:],
        lambda t: t.expand(4, 2, 3),
        lambda t: t.split(1),
        lambda t: t.add_(1),
        torch.empty_like,
        lambda t: t.new_empty(3),
        lambda t: t[:0] + 1,
        lambda t: torch.ops.aten._unsafe_view(t, [6]),
    ],
)
def test_aliases_and_what_holds_no_value_are_not_kept(function):
    names, kept = kept_of(function, torch.ones(2, 3))
    assert names
    assert not kept or all(names[index] == "slice" for index in kept)


def test_an_expanded_output_is_no_value_of_its_own():
    """An operator that is not a view may still return less memory than elements."""
    func = torch.ops.aten.add.Tensor
    assert is_keepable(func, (), {}, torch.ones(2, 3))
    assert not is_keepable(func, (), {}, torch.ones(1, 3).expand(2, 3))
    assert not is_keepable(func, (), {}, torch.ones(4)[1:])


def test_an_output_that_shares_memory_with_an_argument_is_not_kept_whatever_the_operator_says():
    func, given = torch.ops.aten._unsafe_view.default, torch.ones(2, 3)
    assert not is_keepable(func, (given, [6]), {}, given.view(6))
    assert not is_keepable(func, (), {"self": given}, given.view(6))
    assert is_keepable(func, (given, [6]), {}, given.reshape(6).clone())


@pytest.mark.parametrize("mutate", [lambda t: t.mul_(2), lambda t: t[0].zero_(), lambda t: torch.exp(t, out=t)])
def test_a_value_that_is_overwritten_is_kept_no_longer(mutate):
    """Even through a view, or as an ``out`` argument; what was made from it before stays."""

    def function(x):
        y = x + 1
        z = y.relu()
        with torch.no_grad():
            mutate(y)
        return y + z

    names, kept = kept_of(function, torch.ones(3))
    assert 0 not in kept
    assert torch.equal(kept[names.index("relu")].outputs, torch.full((3,), 2.0))


def test_an_operator_with_several_outputs_is_kept_whole():
    query = torch.randn(1, 2, 8, 16)
    names, kept = kept_of(lambda q: nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True), query)
    index = names.index("_scaled_dot_product_flash_attention_for_cpu")
    output, logsumexp = kept[index].outputs
    assert output.shape == (1, 2, 8, 16)
    assert logsumexp.shape == (1, 2, 8)
    assert len(kept[index].tensors()) == 2


def test_values_that_are_no_tensors_keep_their_place():
    kept = Kept(outputs=(torch.ones(2), 7, [None, torch.zeros(1)]))
    assert [tensor.shape for tensor in kept.tensors()] == [(2,), (1,)]


def test_nothing_is_saved_and_backward_says_so():
    x = torch.randn(3, requires_grad=True)
    with nothing_saved():
        y = x.exp()
    assert y.requires_grad
    with pytest.raises(RuntimeError, match="backward through a forward that saved nothing"):
        y.sum().backward()


def test_random_states_are_values():
    with preserved(CPU):
        torch.manual_seed(11)
        expected = torch.rand(4)
    outside = get_random_state(CPU)
    state = seeded_state(CPU, 11)
    assert torch.equal(get_random_state(CPU), outside)
    with preserved(CPU):
        set_random_state(CPU, state)
        assert torch.equal(torch.rand(4), expected)
    assert torch.equal(get_random_state(CPU), outside)
