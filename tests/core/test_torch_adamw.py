from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import pytest
import torch

from lohan_core.interfaces.optimizer import Hyperparameters, Optimizer, OptimizerBackend, OptimizerConfig, StateField
from lohan_core.reference.torch_adamw import TORCH_ADAMW, AdamWConfig, TorchAdamW
from lohan_core.testing.optimizer import OptimizerSuite


class TestTorchAdamW(OptimizerSuite):
    backend = TORCH_ADAMW


class TestOtherBetas(OptimizerSuite):
    backend = TORCH_ADAMW
    config = AdamWConfig(betas=(0.3, 0.95), eps=1e-5)


class Lion(Optimizer):
    """Chen et al., arXiv 2302.06675: one state, and a rule that is not AdamW's."""

    @property
    def fields(self) -> tuple[StateField, ...]:
        return (StateField(name="momentum", dtype=torch.float32),)

    def _update(
        self,
        master: torch.Tensor,
        states: Mapping[str, torch.Tensor],
        gradient: torch.Tensor,
        weights: torch.Tensor,
        hyperparameters: Hyperparameters,
    ) -> None:
        h = hyperparameters
        scaled = gradient.float() * h.gradient_factor
        direction = (states["momentum"] * 0.9 + scaled * 0.1).sign()
        master.mul_(1 - h.lr * h.weight_decay).sub_(direction * h.lr)
        states["momentum"].mul_(0.99).add_(scaled * 0.01)
        weights.copy_(master)


class BlockNormalised(Lion):
    """Four parameters share one value, as the scale of a block-quantised state does."""

    @property
    def fields(self) -> tuple[StateField, ...]:
        return (StateField(name="scale", dtype=torch.float32, initial=1.0, elements_per_value=4),)

    def _update(
        self,
        master: torch.Tensor,
        states: Mapping[str, torch.Tensor],
        gradient: torch.Tensor,
        weights: torch.Tensor,
        hyperparameters: Hyperparameters,
    ) -> None:
        scaled = gradient.float() * hyperparameters.gradient_factor
        padded = torch.nn.functional.pad(scaled, (0, -scaled.numel() % 4)).view(-1, 4)
        states["scale"].mul_(0.5).add_(padded.abs().amax(dim=1))
        master.mul_(1 - hyperparameters.lr * hyperparameters.weight_decay)
        master.sub_(scaled / states["scale"].repeat_interleave(4)[: scaled.numel()] * hyperparameters.lr)
        weights.copy_(master)


class TestLion(OptimizerSuite):
    backend = OptimizerBackend(
        name="lion",
        summary="Lion",
        config=OptimizerConfig,
        open=lambda _config, *, threads: Lion(),  # noqa: ARG005
    )
    claims_adamw = False


class Shared4096(Lion):
    """As many parameters as an update may begin at share one value."""

    @property
    def fields(self) -> tuple[StateField, ...]:
        return (StateField(name="largest", dtype=torch.float32, elements_per_value=4096),)

    def _update(
        self,
        master: torch.Tensor,
        states: Mapping[str, torch.Tensor],
        gradient: torch.Tensor,
        weights: torch.Tensor,
        hyperparameters: Hyperparameters,
    ) -> None:
        h = hyperparameters
        scaled = gradient.float() * h.gradient_factor
        padded = torch.nn.functional.pad(scaled, (0, -scaled.numel() % 4096)).view(-1, 4096)
        states["largest"].copy_(torch.maximum(states["largest"] * 0.5, padded.abs().amax(dim=1)))
        steps = scaled / (states["largest"].repeat_interleave(4096)[: scaled.numel()] + 1)
        master.mul_(1 - h.lr * h.weight_decay).sub_(steps * h.lr)
        weights.copy_(master)


class TestStatesOfManyParameters(OptimizerSuite):
    backend = OptimizerBackend(
        name="largest",
        summary="one value for 4096",
        config=OptimizerConfig,
        open=lambda _config, *, threads: Shared4096(),  # noqa: ARG005
    )
    claims_adamw = False


@pytest.mark.parametrize("shared", [0, 100, 8192])
def test_states_that_updates_would_cut_through_are_refused(shared):
    """Of a block that falls into two spans, both would have one value, and update it twice."""
    with pytest.raises(ValueError, match=f"state 'v': elements_per_value is {shared}, which does not divide 4096"):
        StateField(name="v", dtype=torch.float32, elements_per_value=shared)


class TestSharedStates(OptimizerSuite):
    backend = OptimizerBackend(
        name="block",
        summary="shared scale",
        config=OptimizerConfig,
        open=lambda _config, *, threads: BlockNormalised(),  # noqa: ARG005
    )
    claims_adamw = False


class Spoilt(TorchAdamW):
    """Everything right but one thing, which the suite's test of that thing must notice."""

    def __init__(self, spoil: Callable[[dict[str, torch.Tensor]], object]) -> None:
        super().__init__(AdamWConfig())
        self._spoil = spoil

    def _update(self, master, states, gradient, weights, hyperparameters):
        super()._update(master, states, gradient, weights, hyperparameters)
        self._spoil({"master": master, "gradient": gradient, "weights": weights, **states})


SPOILS = {
    "test_steps_equal_torch_adamw": lambda t: t["master"].add_(1e-6),
    "test_weights_are_the_rounded_master": lambda t: t["weights"].mul_(1.01),
    "test_chunking_changes_nothing": lambda t: t["exp_avg"].mul_(1 + len(t["master"]) * 1e-6),
    "test_gradients_are_only_read": lambda t: t["gradient"].zero_(),
    "test_a_non_finite_gradient_stays_where_it_is": lambda t: t["exp_avg"].add_(t["exp_avg"].sum()),
    "test_weight_decay_comes_from_the_call": lambda t: t["master"].zero_(),
    "test_learning_rate_comes_from_the_call": lambda t: t["master"].add_(1e-3),
    "test_updating_is_deterministic": lambda t: t["exp_avg"].add_(torch.rand(())),
    "test_nothing_outside_the_chunk_is_written": lambda t: torch.as_strided(
        t["master"], (1,), (1,), t["master"].storage_offset() + len(t["master"])
    ).zero_(),
}
ARGUMENTS = {
    "test_steps_equal_torch_adamw": [torch.float32],
    "test_weights_are_the_rounded_master": [torch.bfloat16],
    "test_gradients_are_only_read": [torch.float32],
    "test_a_non_finite_gradient_stays_where_it_is": [math.nan],
    "test_nothing_outside_the_chunk_is_written": [7],
}


@pytest.mark.parametrize("name", SPOILS)
def test_the_suite_notices(name):
    class Suite(OptimizerSuite):
        backend = OptimizerBackend(
            name="spoilt",
            summary="wrong",
            config=AdamWConfig,
            open=lambda _config, *, threads: Spoilt(SPOILS[name]),  # noqa: ARG005
        )

    with pytest.raises(AssertionError):
        getattr(Suite(), name)(*ARGUMENTS.get(name, []))
