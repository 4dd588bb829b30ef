"""The ``cpuadam`` optimizer: hands the addresses of a chunk to the native update."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from importlib.util import find_spec
from typing import ClassVar

import torch

from lohan_core.errors import ConfigError
from lohan_core.interfaces.optimizer import Hyperparameters, Optimizer, StateField
from lohan_optim_cpuadam import _native
from lohan_optim_cpuadam.agreement import same_bits
from lohan_optim_cpuadam.config import CpuAdamConfig, Simd

__all__ = ["CpuAdam"]

_log = logging.getLogger(__name__)

_DTYPES = {torch.float32: _native.DType.FLOAT32, torch.bfloat16: _native.DType.BFLOAT16}


class CpuAdam(Optimizer):
    """AdamW as ``torch.optim.AdamW`` orders it, in one pass, without holding the GIL.

    The result is the same to the bit for every SIMD path, thread count and chunking, and equals torch's to the rounding
    of fused multiply-add and square root. Subnormals are kept. A NaN or infinite gradient makes its own parameter NaN
    and touches no other; a finite one whose square overflows makes ``exp_avg_sq`` infinite, and the parameter then only
    decays, as in torch. Every NaN written is the canonical quiet one.
    """

    gpu_types: ClassVar[frozenset[str]] = frozenset({"cuda"})

    def __init__(self, config: CpuAdamConfig, *, threads: int) -> None:
        paths: list[str] = _native.supported_paths()
        if config.simd is not Simd.AUTO and config.simd not in paths:
            raise ConfigError(
                f"optimizer.simd: this processor has no {config.simd}; choose one of: auto, {', '.join(paths)}"
            )
        self._config = config
        try:
            self._native = _native.Updater(simd=config.simd.value, threads=config.threads or threads)
        except RuntimeError as error:
            raise ConfigError(f"optimizer.threads: {config.threads} cannot be started: {error}") from error

    @property
    def fields(self) -> tuple[StateField, ...]:
        """First and second moment, fp32, one value per parameter."""
        return (
            StateField(name="exp_avg", dtype=torch.float32),
            StateField(name="exp_avg_sq", dtype=torch.float32),
        )

    def on_device(self, device: torch.device) -> Optimizer | None:
        """One more of these for the CPU; for a CUDA device, the Triton kernel, where it gives this kernel's bits."""
        if device.type == "cpu":
            return CpuAdam(self._config, threads=self._native.threads)
        if device.type != "cuda" or find_spec("triton") is None:
            return None
        try:
            from lohan_optim_cpuadam.gpu import GpuAdam

            there = GpuAdam(betas=self._config.betas, eps=self._config.eps, fields=self.fields)
            agrees = same_bits(self, there, device)
        except Exception as error:  # noqa: BLE001 - of Triton, which compiles here: without a C compiler, say, it cannot
            _log.warning("cpuadam: Triton does not work on %s, so no states are kept there: %s", device, error)
            return None
        if not agrees:
            _log.warning("cpuadam: on %s the update gives other bits than on the CPU: no states are kept there", device)
        return there if agrees else None

    def describe(self) -> str:
        """The rule, the SIMD path and the number of threads."""
        return f"AdamW in C++ ({self._native.path}), {self._native.threads} threads"

    def _update(
        self,
        master: torch.Tensor,
        states: Mapping[str, torch.Tensor],
        gradient: torch.Tensor,
        weights: torch.Tensor,
        hyperparameters: Hyperparameters,
    ) -> None:
        self._update_into(master, states, gradient, weights, hyperparameters, new_master=master, new_states=states)

    def _update_into(
        self,
        master: torch.Tensor,
        states: Mapping[str, torch.Tensor],
        gradient: torch.Tensor,
        weights: torch.Tensor,
        hyperparameters: Hyperparameters,
        *,
        new_master: torch.Tensor,
        new_states: Mapping[str, torch.Tensor],
    ) -> None:
        beta1, beta2 = self._config.betas
        self._native.update(
            master=master.data_ptr(),
            exp_avg=states["exp_avg"].data_ptr(),
            exp_avg_sq=states["exp_avg_sq"].data_ptr(),
            gradient=gradient.data_ptr(),
            gradient_dtype=_DTYPES[gradient.dtype],
            new_master=new_master.data_ptr(),
            new_exp_avg=new_states["exp_avg"].data_ptr(),
            new_exp_avg_sq=new_states["exp_avg_sq"].data_ptr(),
            weights=weights.data_ptr(),
            weights_dtype=_DTYPES[weights.dtype],
            length=master.numel(),
            step=hyperparameters.step,
            lr=hyperparameters.lr,
            beta1=beta1,
            beta2=beta2,
            eps=self._config.eps,
            weight_decay=hyperparameters.weight_decay,
            gradient_factor=hyperparameters.gradient_factor,
        )
