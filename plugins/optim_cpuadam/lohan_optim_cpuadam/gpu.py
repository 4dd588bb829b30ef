"""The same update on a GPU, for states that live there: a Triton kernel whose results are the CPU's to the bit.

[Note: the same bits on a GPU] csrc/adam/kernel.hpp says in which order which operations come. Each of them is correctly
rounded on a GPU too, if it is asked for by name (``fma``, ``div_rn``, ``sqrt_rn``) and the compiler may fuse no other
multiplication with an addition (``enable_fp_fusion=False``). Values of 16 bits are widened and rounded as integers,
because a GPU's own conversion writes another NaN.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# Triton compiles the source of its kernels, and reads their annotations as its own.

from __future__ import annotations

from collections.abc import Mapping

import torch
import triton
import triton.language as tl

from lohan_core.interfaces.optimizer import Hyperparameters, Optimizer, StateField
from lohan_optim_cpuadam import _native

__all__ = ["GpuAdam"]

BLOCK_ELEMENTS = 1024


class GpuAdam(Optimizer):
    """AdamW as :class:`lohan_optim_cpuadam.optimizer.CpuAdam` carries it out, on tensors of a CUDA device."""

    device_type = "cuda"

    def __init__(self, *, betas: tuple[float, float], eps: float, fields: tuple[StateField, ...]) -> None:
        self._betas = betas
        self._eps = eps
        self._fields = fields

    @property
    def fields(self) -> tuple[StateField, ...]:
        """Those of the CPU's."""
        return self._fields

    def describe(self) -> str:
        """The rule, and what carries it out."""
        return "AdamW in Triton"

    def _update(
        self,
        master: torch.Tensor,
        states: Mapping[str, torch.Tensor],
        gradient: torch.Tensor,
        weights: torch.Tensor,
        hyperparameters: Hyperparameters,
    ) -> None:
        c = _native.coefficients(
            step=hyperparameters.step,
            lr=hyperparameters.lr,
            beta1=self._betas[0],
            beta2=self._betas[1],
            eps=self._eps,
            weight_decay=hyperparameters.weight_decay,
            gradient_factor=hyperparameters.gradient_factor,
        )
        length = master.numel()
        if not length:
            return
        with torch.cuda.device(master.device):
            update_kernel[(triton.cdiv(length, BLOCK_ELEMENTS),)](
                master,
                states["exp_avg"],
                states["exp_avg_sq"],
                _as_bits(gradient),
                _as_bits(weights),
                length,
                c["gradient_factor"],
                c["decay"],
                c["lerp_weight"],
                c["beta2"],
                c["one_minus_beta2"],
                c["root_bias_correction2"],
                c["eps"],
                c["negative_step_size"],
                LERP_FROM_GRADIENT=c["lerp_from_gradient"],
                NARROW_GRADIENT=gradient.dtype is torch.bfloat16,
                NARROW_WEIGHTS=weights.dtype is torch.bfloat16,
                BLOCK=BLOCK_ELEMENTS,
                enable_fp_fusion=False,
            )


def _as_bits(tensor: torch.Tensor) -> torch.Tensor:
    """View bfloat16 as integers."""
    return tensor.view(torch.int16) if tensor.dtype is torch.bfloat16 else tensor


@triton.jit
def _canonical(x):
    """Every NaN becomes the quiet one that the CPU writes."""
    bits = x.to(tl.uint32, bitcast=True)
    nan = (bits & 0x7FFFFFFF) > 0x7F800000
    return tl.where(nan, 0x7FC00000, bits).to(tl.uint32).to(tl.float32, bitcast=True)


@triton.jit
def update_kernel(
    master,
    exp_avg,
    exp_avg_sq,
    gradient,
    weights,
    length,
    gradient_factor,
    decay,
    lerp_weight,
    beta2,
    one_minus_beta2,
    root_bias_correction2,
    eps,
    negative_step_size,
    LERP_FROM_GRADIENT: tl.constexpr,
    NARROW_GRADIENT: tl.constexpr,
    NARROW_WEIGHTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Update one program's part of the arrays.

    Weights may be the gradients' memory: each program reads all of its part before it writes any of it.
    """
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < length
    old_master = tl.load(master + at, mask=inside)
    old_average = tl.load(exp_avg + at, mask=inside)
    old_square = tl.load(exp_avg_sq + at, mask=inside)
    raw = tl.load(gradient + at, mask=inside)
    if NARROW_GRADIENT:
        raw = (raw.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    g = raw * gradient_factor

    base = g if LERP_FROM_GRADIENT else old_average
    average = tl.fma(tl.zeros_like(g) + lerp_weight, g - old_average, base)
    square = tl.fma(one_minus_beta2 * g, g, old_square * beta2)
    root = tl.div_rn(tl.sqrt_rn(square), tl.zeros_like(g) + root_bias_correction2)
    step = tl.div_rn(negative_step_size * average, root + eps)
    updated = _canonical(old_master * decay + step)

    tl.store(exp_avg + at, _canonical(average), mask=inside)
    tl.store(exp_avg_sq + at, _canonical(square), mask=inside)
    tl.store(master + at, updated, mask=inside)
    if NARROW_WEIGHTS:
        bits = updated.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        tl.store(weights + at, rounded.to(tl.uint16).to(tl.int16, bitcast=True), mask=inside)
    else:
        tl.store(weights + at, updated, mask=inside)
