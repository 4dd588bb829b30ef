from __future__ import annotations

import pytest
import torch

from lohan_optim_cpuadam import _native
from lohan_optim_cpuadam.agreement import same_bits
from lohan_optim_cpuadam.config import CpuAdamConfig, Simd
from lohan_optim_cpuadam.optimizer import CpuAdam

CPU = torch.device("cpu")


def adam(**settings):
    return CpuAdam(CpuAdamConfig(**settings), threads=2)


def test_another_of_the_same_rule_agrees():
    assert same_bits(adam(), adam(simd=Simd.SCALAR), CPU)
    there = adam().on_device(CPU)
    assert there is not None
    assert same_bits(adam(), there, CPU)


@pytest.mark.parametrize("other", [{"eps": 1.0000001e-8}, {"betas": (0.9, 0.9990001)}])
def test_the_last_bit_of_a_constant_is_noticed(other):
    assert not same_bits(adam(), adam(**other), CPU)


def test_there_is_none_for_other_devices():
    assert adam().on_device(torch.device("meta")) is None


def test_scalars_are_rounded_once_to_single_precision():
    found = _native.coefficients(
        step=3, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.1, gradient_factor=0.7
    )
    expected = {
        "gradient_factor": 0.7,
        "decay": 1 - 1e-3 * 0.1,
        "lerp_weight": 1 - 0.9,
        "beta2": 0.999,
        "one_minus_beta2": 1 - 0.999,
        "root_bias_correction2": (1 - 0.999**3) ** 0.5,
        "eps": 1e-8,
        "negative_step_size": -(1e-3 / (1 - 0.9**3)),
    }
    rounded = {name: torch.tensor(value, dtype=torch.float32).item() for name, value in expected.items()}
    assert found == {**rounded, "lerp_from_gradient": False}
    assert _native.coefficients(step=1, lr=1e-3, beta1=0.3, beta2=0.9, eps=1e-8, weight_decay=0.0, gradient_factor=1.0)[
        "lerp_from_gradient"
    ]
