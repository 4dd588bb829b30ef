"""Conformance suite for optimizers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import pytest
import torch
from attrs import evolve

from lohan_core.interfaces.optimizer import Hyperparameters, Optimizer, OptimizerConfig
from lohan_core.testing.optimizer_chunks import (
    LENGTH,
    Chunk,
    assert_same_bits,
    hyperparameters_of,
    update,
    updated,
)
from lohan_core.testing.optimizer_places import DTYPES, OptimizerPlaces

__all__ = ["OptimizerSuite"]

_EPSILON = torch.finfo(torch.float32).eps


class OptimizerSuite(OptimizerPlaces):
    """What every optimizer must do.

    A plugin's whole test file::

        class TestMine(OptimizerSuite):
            backend = MY_RECORD

    ``config`` is what it is opened with (default: the config class's defaults). ``claims_adamw`` is False for a rule
    other than AdamW's; a claimant's config has ``betas`` and ``eps``. ``equivalent_configs`` are others that must give
    the same bits: other instructions, another block size.
    """

    claims_adamw: ClassVar[bool] = True
    equivalent_configs: ClassVar[Sequence[OptimizerConfig]] = ()

    def test_the_backend_is_usable_here(self) -> None:
        """``probe`` finds nothing missing."""
        assert self.backend.probe() is None

    def test_fields_are_distinct(self) -> None:
        """Each state has its own name, and none takes the core's."""
        names = [field.name for field in self.open().fields]
        assert all(names), "a state has no name"
        assert len({*names, "master", "weights", "gradient"}) == len(names) + 3, f"names clash: {names}"

    def test_describe_is_one_line(self) -> None:
        """The log's line is one line."""
        line = self.open().describe()
        assert line.strip()
        assert "\n" not in line

    @pytest.mark.parametrize("gradient_dtype", DTYPES, ids=str)
    def test_steps_equal_torch_adamw(self, gradient_dtype: torch.dtype) -> None:
        """Ten steps on fp32 masters equal ``torch.optim.AdamW``, to the rounding of each step."""
        self._skip_unless_adamw()
        optimizer = self.open()
        chunk = Chunk.random(optimizer, gradient_dtype=gradient_dtype)
        # Magnitudes whose squares are subnormal, zero and infinite.
        chunk.gradient[:4] = torch.tensor([1e-20, 1e-30, 1e30, 0.0])
        self._assert_equal_to_torch(optimizer, chunk, steps=10)

    @pytest.mark.parametrize("weights_dtype", DTYPES, ids=str)
    def test_weights_are_the_rounded_master(self, weights_dtype: torch.dtype) -> None:
        """The emitted weights are the new master weights, rounded to nearest even."""
        optimizer = self.open()
        chunk = updated(optimizer, Chunk.random(optimizer, weights_dtype=weights_dtype))
        assert torch.equal(chunk.weights, chunk.master.to(weights_dtype))

    def test_gradient_dtype_changes_nothing(self) -> None:
        """The same numbers as bf16 and as fp32 gradients give the same bits."""
        optimizer = self.open()
        half = Chunk.random(optimizer, gradient_dtype=torch.bfloat16)
        full = evolve(Chunk.random(optimizer), gradient=half.gradient.float())
        assert_same_bits(updated(optimizer, full), updated(optimizer, half), "the gradients' dtype")

    @pytest.mark.parametrize("gradient_dtype", DTYPES, ids=str)
    def test_gradient_factor_multiplies_the_gradients(self, gradient_dtype: torch.dtype) -> None:
        """A factor of a quarter (exact in binary) is the same as gradients of a quarter."""
        optimizer = self.open()
        whole = Chunk.random(optimizer, gradient_dtype=gradient_dtype)
        quarter = Chunk.random(optimizer, gradient_dtype=gradient_dtype)
        quarter = evolve(quarter, gradient=quarter.gradient * 0.25)
        hyperparameters = hyperparameters_of(1)
        update(optimizer, whole, evolve(hyperparameters, gradient_factor=0.25))
        update(optimizer, quarter, evolve(hyperparameters, gradient_factor=1.0))
        assert_same_bits(whole, quarter, "gradient_factor")

    def test_learning_rate_comes_from_the_call(self) -> None:
        """Without learning rate nothing moves; with it something does."""
        optimizer = self.open()
        chunk = Chunk.random(optimizer)
        before = chunk.master.clone()
        update(optimizer, chunk, Hyperparameters(step=1, lr=0.0, weight_decay=0.0))
        assert torch.equal(chunk.master, before), "lr 0 moved the master weights"
        update(optimizer, chunk, Hyperparameters(step=2, lr=1e-3, weight_decay=0.0))
        assert not torch.equal(chunk.master, before), "lr 1e-3 moved nothing"

    def test_weight_decay_comes_from_the_call(self) -> None:
        """Weights that decay become others."""
        optimizer = self.open()
        chunk, decayed = Chunk.random(optimizer), Chunk.random(optimizer)
        update(optimizer, chunk, Hyperparameters(step=1, lr=1e-3, weight_decay=0.0))
        update(optimizer, decayed, Hyperparameters(step=1, lr=1e-3, weight_decay=0.1))
        assert not torch.equal(chunk.master, decayed.master), "a weight decay of 0.1 changed nothing"

    def test_chunking_changes_nothing(self) -> None:
        """A block updated in chunks, of odd lengths too, has the same bits as one updated whole."""
        optimizer = self.open()
        granularity = self.granularity(optimizer)
        n = max(LENGTH, 8 * granularity)
        whole = updated(optimizer, Chunk.random(optimizer, n))
        for sizes in ([1, 7, 4097], [8192], [33] * 9, [1] * 3):
            cuts = [sum(sizes[: i + 1]) * granularity for i in range(len(sizes))]
            cut = updated(optimizer, Chunk.random(optimizer, n), cut_at=[c for c in cuts if c < n])
            assert_same_bits(cut, whole, f"cutting into {sizes} times {granularity}")

    def test_threads_change_nothing(self) -> None:
        """One thread, two and five give the same bits, for chunks that occupy all of them."""
        n = 1 << 19
        one = updated(self.open(threads=1), Chunk.random(self.open(), n))
        for threads in (2, 5):
            several = updated(self.open(threads=threads), Chunk.random(self.open(), n))
            assert_same_bits(several, one, f"{threads} threads")

    def test_equivalent_configs_change_nothing(self) -> None:
        """Configs that differ only in how the work is done give the same bits, non-finite gradients included."""
        if not self.equivalent_configs:
            pytest.skip("this backend has no configs that should give the same bits")

        def outcome(config: OptimizerConfig | None) -> Chunk:
            optimizer = self.open(config=config)
            chunk = Chunk.random(optimizer, LENGTH + 13)
            chunk.gradient[::1001] = math.nan
            chunk.gradient[1::1001] = -math.inf
            chunk.gradient[2::1001] = 1e-25
            return updated(optimizer, chunk)

        expected = outcome(None)
        for config in self.equivalent_configs:
            assert_same_bits(outcome(config), expected, str(config))

    def test_updating_is_deterministic(self) -> None:
        """The same call gives the same bits again."""
        optimizer = self.open(threads=2)
        first = updated(optimizer, Chunk.random(optimizer))
        assert_same_bits(updated(optimizer, Chunk.random(optimizer)), first, "repeating")

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
    def test_a_non_finite_gradient_stays_where_it_is(self, value: float) -> None:
        """It touches only the parameters that share its state, and does not vanish: the run can find it."""
        optimizer = self.open()
        granularity = self.granularity(optimizer)
        place = 5 * granularity + granularity // 2
        n = max(LENGTH, 8 * granularity)
        clean, spoilt = Chunk.random(optimizer, n), Chunk.random(optimizer, n)
        spoilt.gradient[place] = value
        update(optimizer, clean, hyperparameters_of(1))
        update(optimizer, spoilt, hyperparameters_of(1))
        first, last = 5 * granularity, 6 * granularity
        for start, stop in ((0, first), (last, n)):
            assert_same_bits(
                spoilt.part(optimizer, start, stop), clean.part(optimizer, start, stop), f"a gradient of {value}"
            )
        if self.claims_adamw:
            assert spoilt.master[place].isnan(), f"a gradient of {value} left {spoilt.master[place]}"
            assert spoilt.weights[place].isnan(), f"a gradient of {value} emitted {spoilt.weights[place]}"
        else:
            written = [t for t in spoilt.part(optimizer, first, last).outputs().values() if t.is_floating_point()]
            assert any(not t.isfinite().all() for t in written), f"a gradient of {value} left no trace"

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda c: evolve(c, master=c.master.double()),
            lambda c: evolve(c, master=c.master[:-1]),
            lambda c: evolve(c, master=c.master.view(2, -1)),
            lambda c: evolve(c, gradient=c.gradient.half()),
            lambda c: evolve(c, gradient=c.gradient[:-1]),
            lambda c: evolve(c, gradient=c.gradient.repeat(2)[::2]),
            lambda c: evolve(c, weights=c.weights.half()),
            lambda c: evolve(c, weights=c.weights[1:]),
            lambda c: evolve(c, states={**c.states, "stranger": c.master}),
            lambda c: evolve(c, states={name: t.repeat(2) for name, t in c.states.items()} or {"stranger": c.master}),
        ],
        ids=[
            "fp64 master",
            "short master",
            "2-D master",
            "fp16 gradient",
            "short gradient",
            "strided gradient",
            "fp16 weights",
            "short weights",
            "unknown state",
            "long states",
        ],
    )
    def test_wrong_tensors_are_refused(self, spoil: Any) -> None:
        """A wrong dtype, shape or set of states raises ValueError, and nothing is written."""
        optimizer = self.open()
        chunk = Chunk.random(optimizer)
        with pytest.raises(ValueError, match=r"."):
            update(optimizer, spoil(chunk), hyperparameters_of(1))
        assert_same_bits(chunk, Chunk.random(optimizer), "a refused call")

    def _skip_unless_adamw(self) -> None:
        if not self.claims_adamw:
            pytest.skip("this backend's rule is not AdamW's")

    def _assert_equal_to_torch(self, optimizer: Optimizer, chunk: Chunk, *, steps: int) -> None:
        config = self.settings()
        expected = torch.nn.Parameter(chunk.master.clone())
        oracle = torch.optim.AdamW([expected], betas=config.betas, eps=config.eps, foreach=False, fused=False)
        bound = torch.zeros_like(chunk.master)
        for step in range(1, steps + 1):
            h = hyperparameters_of(step)
            turned = evolve(chunk, gradient=chunk.gradient.roll(step))
            update(optimizer, turned, h)
            oracle.param_groups[0].update(lr=h.lr, weight_decay=h.weight_decay)
            expected.grad = turned.gradient.float() * h.gradient_factor
            before = expected.detach().clone()
            oracle.step()
            # One rounding of the parameter, and a few of the step.
            bound += _EPSILON * (expected.detach().abs() + 8 * (expected.detach() - before).abs())
        error = (chunk.master - expected.detach()).abs()
        worst = int((error - bound).argmax())
        assert (error <= bound).all(), (
            f"parameter {worst} is {chunk.master[worst]:.9g} after {steps} steps, "
            f"torch.optim.AdamW has {expected[worst]:.9g}"
        )
