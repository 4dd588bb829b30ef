"""AdamW by torch operations, one after the other: the oracle that faster backends are held against."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from attrs import field, frozen
from attrs.validators import deep_iterable, ge, gt, lt, max_len, min_len

from lohan_core.interfaces.optimizer import (
    Hyperparameters,
    Optimizer,
    OptimizerBackend,
    OptimizerConfig,
    StateField,
)

if TYPE_CHECKING:
    import torch

__all__ = ["TORCH_ADAMW", "AdamWConfig", "TorchAdamW"]


@frozen(kw_only=True)
class AdamWConfig(OptimizerConfig):
    """The keys of AdamW (Loshchilov and Hutter, arXiv 1711.05101, algorithm 2).

    Attributes:
        betas: Decay rates of the first and the second moment; by default torch's.
        eps: Added to the denominator, outside the root; likewise.
    """

    betas: tuple[float, float] = field(
        default=(0.9, 0.999), validator=[min_len(2), max_len(2), deep_iterable([ge(0.0), lt(1.0)])]
    )
    eps: float = field(default=1e-8, validator=gt(0.0))


class TorchAdamW(Optimizer):
    """The operations of ``torch.optim.AdamW`` in their order, except that the square root is correctly rounded.

    torch's own fp32 ``sqrt`` may go to a vector library that is off by one in the last place for some values, and not
    for the same ones in short tensors as in long ones; results would depend on how a block is cut into chunks. Rounding
    the double-precision root gives the correctly rounded one (53 bits are more than twice 24 plus 2).

    It runs on torch's intra-op threads, whose number is the process's to set.
    """

    def __init__(self, config: AdamWConfig) -> None:
        self._config = config

    @property
    def fields(self) -> tuple[StateField, ...]:
        """First and second moment, fp32, one value per parameter."""
        import torch

        return (
            StateField(name="exp_avg", dtype=torch.float32),
            StateField(name="exp_avg_sq", dtype=torch.float32),
        )

    def on_device(self, device: torch.device) -> TorchAdamW | None:
        """Itself where the device is the CPU. torch's GPU kernels fuse other multiplications with additions."""
        return self if device.type == "cpu" else None

    def describe(self) -> str:
        """The rule, and what carries it out."""
        import torch

        return f"AdamW by torch operations, {torch.get_num_threads()} threads"

    def _update(
        self,
        master: torch.Tensor,
        states: Mapping[str, torch.Tensor],
        gradient: torch.Tensor,
        weights: torch.Tensor,
        hyperparameters: Hyperparameters,
    ) -> None:
        exp_avg, exp_avg_sq = states["exp_avg"], states["exp_avg_sq"]
        beta1, beta2 = self._config.betas
        step, lr = hyperparameters.step, hyperparameters.lr
        scaled = gradient.float() * hyperparameters.gradient_factor

        master.mul_(1 - lr * hyperparameters.weight_decay)
        exp_avg.lerp_(scaled, 1 - beta1)
        exp_avg_sq.mul_(beta2).addcmul_(scaled, scaled, value=1 - beta2)
        root = exp_avg_sq.double().sqrt_().float()
        denominator = root.div_((1 - beta2**step) ** 0.5).add_(self._config.eps)
        master.addcdiv_(exp_avg, denominator, value=-lr / (1 - beta1**step))
        weights.copy_(master)


def _open(config: AdamWConfig, *, threads: int) -> TorchAdamW:
    del threads  # torch's intra-op pool is the process's, not this backend's
    return TorchAdamW(config)


TORCH_ADAMW = OptimizerBackend(
    name="torch_adamw",
    summary="AdamW by torch operations on the CPU: the reference",
    config=AdamWConfig,
    open=_open,
)
