"""The part of the optimizers' conformance suite that is about where tensors lie, and who else's lie beside them."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pytest
import torch
from attrs import evolve

from lohan_core.interfaces.optimizer import Optimizer, OptimizerBackend, OptimizerConfig
from lohan_core.testing.optimizer_chunks import (
    LENGTH,
    Chunk,
    assert_same_bits,
    hyperparameters_of,
    update,
)
from lohan_core.testing.suite import ConformanceSuite, default_config

__all__ = ["DTYPES", "OptimizerPlaces"]

DTYPES = [torch.bfloat16, torch.float32]
_GUARD = 64


class OptimizerPlaces(ConformanceSuite):
    """What is read is only read, nothing else is written, and no place changes a result."""

    backend: ClassVar[OptimizerBackend]
    config: ClassVar[OptimizerConfig | None] = None

    def open(self, *, threads: int = 1, config: OptimizerConfig | None = None) -> Optimizer:
        """Open the backend as a run does."""
        return self.backend.open(config or self.settings(), threads=threads)

    def settings(self) -> Any:
        """Return what the backend is opened with, if a test says nothing else."""
        return self.config or default_config(self.backend)

    def granularity(self, optimizer: Optimizer) -> int:
        """Return of how many parameters a cut must be a multiple: not to go through some that share a state."""
        return math.lcm(*(field.elements_per_value for field in optimizer.fields))

    @pytest.mark.parametrize("gradient_dtype", DTYPES, ids=str)
    def test_gradients_are_only_read(self, gradient_dtype: torch.dtype) -> None:
        """The gradient buffer is the caller's and stays as it was."""
        optimizer = self.open()
        chunk = Chunk.random(optimizer, gradient_dtype=gradient_dtype)
        before = chunk.gradient.clone()
        update(optimizer, chunk, hyperparameters_of(1))
        assert torch.equal(chunk.gradient, before)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_weights_may_take_the_gradients_place(self, dtype: torch.dtype) -> None:
        """Gradients wait where the weights were: each is read before the new weight is written there."""
        optimizer = self.open()
        apart, together = (Chunk.random(optimizer, gradient_dtype=dtype, weights_dtype=dtype) for _ in range(2))
        together = evolve(together, weights=together.gradient)
        for chunk in (apart, together):
            update(optimizer, chunk, hyperparameters_of(1))
        assert_same_bits(together, apart, "writing weights over gradients")

    @pytest.mark.parametrize("n", [0, 1, 7, 4097, LENGTH])
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_an_update_into_another_place_leaves_the_old_states(self, dtype: torch.dtype, n: int) -> None:
        """The new ones are the same to the bit, and the old ones and the gradients are as they were."""
        optimizer, types = self.open(threads=2), {"gradient_dtype": dtype, "weights_dtype": dtype}
        here, there, expected, before = (Chunk.random(optimizer, n, **types) for _ in range(4))
        for chunk in (here, expected, before):
            update(optimizer, chunk, hyperparameters_of(1))
        optimizer.update_into(
            here.master,
            here.states,
            here.gradient,
            there.weights,
            hyperparameters_of(2),
            new_master=there.master.zero_(),
            new_states={name: state.zero_() for name, state in there.states.items()},
        )
        update(optimizer, expected, hyperparameters_of(2))
        assert_same_bits(there, expected, "another place")
        assert_same_bits(here, before, "an update into another place")
        assert torch.equal(here.gradient, before.gradient)

    @pytest.mark.parametrize("n", [1, 4097, LENGTH])
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_updates_on_a_gpu_have_the_same_bits(self, dtype: torch.dtype, n: int) -> None:
        """Where states live is the plan's choice, and changes no result."""
        optimizer = self.open()
        if not torch.cuda.is_available():
            pytest.skip("no GPU here")
        there = optimizer.on_device(torch.device("cuda"))
        if there is None:
            pytest.skip("this backend has no updates on a GPU")
        assert there.device_type == "cuda"
        assert "cuda" in optimizer.gpu_types
        assert there.fields == optimizer.fields
        types = {"gradient_dtype": dtype, "weights_dtype": dtype}
        here, gone = (Chunk.random(optimizer, n, **types) for _ in range(2))
        gone = gone.to(torch.device("cuda"))
        for step in range(1, 4):
            update(optimizer, here, hyperparameters_of(step))
            update(there, gone, hyperparameters_of(step))
        assert_same_bits(gone.to(torch.device("cpu")), here, "updating on a GPU")

    @pytest.mark.parametrize("n", [0, 1, 7, 4097])
    def test_nothing_outside_the_chunk_is_written(self, n: int) -> None:
        """Odd lengths end where they end; length 0 does nothing."""
        optimizer = self.open()
        guard = _GUARD * self.granularity(optimizer)
        roomy = Chunk.random(optimizer, guard + n + guard)
        untouched = Chunk.random(optimizer, guard + n + guard)
        update(optimizer, roomy.part(optimizer, guard, guard + n), hyperparameters_of(1))
        if n:
            assert not torch.equal(roomy.master, untouched.master), "nothing was updated"
        for place, start, stop in (("before", 0, guard), ("after", guard + n, guard + n + guard)):
            assert_same_bits(
                roomy.part(optimizer, start, stop), untouched.part(optimizer, start, stop), f"the memory {place} it"
            )
