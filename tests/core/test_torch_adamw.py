from __future__ import annotations

from collections.abc import Mapping

import torch

from lohan_core.interfaces.optimizer import Hyperparameters, Optimizer, OptimizerBackend, OptimizerConfig, StateField
from lohan_core.reference.torch_adamw import TORCH_ADAMW, AdamWConfig
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


class TestSharedStates(OptimizerSuite):
    backend = OptimizerBackend(
        name="block",
        summary="shared scale",
        config=OptimizerConfig,
        open=lambda _config, *, threads: BlockNormalised(),  # noqa: ARG005
    )
    claims_adamw = False
