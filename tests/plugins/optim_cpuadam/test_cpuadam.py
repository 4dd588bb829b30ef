from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lohan_core.errors import ConfigError
from lohan_core.interfaces.optimizer import Hyperparameters, Optimizer
from lohan_core.reference.torch_adamw import TORCH_ADAMW
from lohan_core.testing.optimizer import OptimizerSuite
from lohan_optim_cpuadam import _native
from lohan_optim_cpuadam.config import CpuAdamConfig, Simd
from lohan_optim_cpuadam.plugin import lohan_optimizer

(CPUADAM,) = lohan_optimizer()
PATHS = [Simd(name) for name in _native.supported_paths()]


class TestCpuAdam(OptimizerSuite):
    backend = CPUADAM
    equivalent_configs = tuple(CpuAdamConfig(simd=path, threads=threads) for path in PATHS for threads in (1, 2))


class TestOtherBetas(OptimizerSuite):
    backend = CPUADAM
    config = CpuAdamConfig(betas=(0.3, 0.95), eps=1e-5)
    equivalent_configs = tuple(CpuAdamConfig(betas=(0.3, 0.95), eps=1e-5, simd=path) for path in PATHS)


def _states(optimizer: Optimizer, n: int) -> dict[str, torch.Tensor]:
    return {field.name: torch.full((n,), field.initial) for field in optimizer.fields}


HYPERPARAMETERS = st.builds(
    Hyperparameters,
    step=st.integers(1, 10_000),
    lr=st.floats(0, 1),
    weight_decay=st.floats(0, 1),
    gradient_factor=st.floats(0, 10),
)
BETA = st.floats(0, 0.9999)


@settings(max_examples=50, deadline=None)
@given(n=st.integers(0, 200), hyperparameters=HYPERPARAMETERS, betas=st.tuples(BETA, BETA), seed=st.integers(0, 1000))
def test_any_update_equals_the_oracle(n, hyperparameters, betas, seed):
    generator = torch.Generator().manual_seed(seed)
    start, gradient = torch.randn(2, n, generator=generator)

    def outcome(backend):
        optimizer = backend.open(backend.config(betas=betas), threads=1)
        master, states = start.clone(), _states(optimizer, n)
        optimizer.update(master, states, gradient.bfloat16(), torch.empty(n), hyperparameters)
        return master, states

    (master, states), (expected, expected_states) = outcome(CPUADAM), outcome(TORCH_ADAMW)
    rounding = 4 * torch.finfo(torch.float32).eps
    assert ((master - expected).abs() <= rounding * (start.abs() + (expected - start).abs())).all()
    for name, state in states.items():
        torch.testing.assert_close(state, expected_states[name], rtol=rounding, atol=0.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_unaligned_weights_give_the_same_bits(dtype):
    # Aligned weights are streamed past the caches, others are not.
    n = 1000
    optimizer = CPUADAM.open(CpuAdamConfig(), threads=1)
    outcomes = []
    for offset in range(4):
        weights = torch.empty(n + offset, dtype=dtype)[offset:]
        master, gradient = torch.randn(2, n, generator=torch.Generator().manual_seed(0))
        optimizer.update(
            master, _states(optimizer, n), gradient, weights, Hyperparameters(step=1, lr=1e-3, weight_decay=0)
        )
        outcomes.append(weights)
    assert all(torch.equal(outcome, outcomes[0]) for outcome in outcomes)


def test_nan_weights_are_canonical():
    optimizer = CPUADAM.open(CpuAdamConfig(), threads=1)
    master = torch.tensor([0x7F800001, -1, 0x7FFFFFFF], dtype=torch.int32).view(torch.float32).repeat(11)
    weights = torch.empty(33, dtype=torch.bfloat16)
    optimizer.update(
        master, _states(optimizer, 33), torch.zeros(33), weights, Hyperparameters(step=1, lr=1e-3, weight_decay=0)
    )
    assert (weights.view(torch.int16) == 0x7FC0).all()
    assert (master.view(torch.int32) == 0x7FC00000).all()


@pytest.mark.parametrize("path", PATHS)
def test_describe_says_path_and_threads(path):
    assert CPUADAM.open(CpuAdamConfig(simd=path), threads=3).describe() == f"AdamW in C++ ({path}), 3 threads"


def test_config_threads_take_precedence():
    assert "2 threads" in CPUADAM.open(CpuAdamConfig(threads=2), threads=7).describe()


def test_auto_takes_the_widest_path():
    assert f"({PATHS[0]})" in CPUADAM.open(CpuAdamConfig(), threads=1).describe()


def test_unsupported_path_is_refused(monkeypatch):
    monkeypatch.setattr(_native, "supported_paths", lambda: ["scalar"])
    with pytest.raises(ConfigError, match=r"^optimizer.simd: .* avx512; choose one of: auto, scalar$"):
        CPUADAM.open(CpuAdamConfig(simd=Simd.AVX512), threads=1)
    with pytest.raises(ValueError, match=r"'sse' is not supported on this processor; choose one of: auto, .*scalar"):
        _native.Updater(simd="sse", threads=1)


def test_step_zero_is_refused():
    optimizer = CPUADAM.open(CpuAdamConfig(), threads=1)
    with pytest.raises(ValueError, match="step counts from 1"):
        optimizer.update(
            torch.ones(1),
            _states(optimizer, 1),
            torch.ones(1),
            torch.ones(1),
            Hyperparameters(step=0, lr=1, weight_decay=0),
        )


@pytest.mark.parametrize(
    "wrong",
    [{"betas": (1.0, 0.9)}, {"betas": (0.9, -0.1)}, {"betas": (0.9,)}, {"eps": 0.0}, {"threads": 0}, {"simd": "sse"}],
)
def test_impossible_values_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong)) if "simd" not in wrong else "sse"):
        CpuAdamConfig(**wrong)


def test_registering_imports_nothing_heavy():
    code = "import sys, lohan_optim_cpuadam.plugin as p; list(p.lohan_optimizer()); print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"


def test_probe_names_the_missing_native_module(monkeypatch):
    monkeypatch.setitem(sys.modules, "lohan_optim_cpuadam._native", None)
    reason = CPUADAM.probe()
    assert reason is not None
    assert "native module" in reason
    assert "install" in reason


@pytest.mark.parametrize("path", PATHS)
def test_a_caller_that_flushes_subnormals_changes_nothing(path):
    optimizer = CPUADAM.open(CpuAdamConfig(simd=path), threads=1)
    states = _states(optimizer, 33)
    gradient = torch.full((33,), 1e-38)
    hyperparameters = Hyperparameters(step=1, lr=1e-3, weight_decay=0)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormals")
    try:
        optimizer.update(torch.ones(33), states, gradient, torch.empty(33), hyperparameters)
    finally:
        torch.set_flush_denormal(False)
    assert (states["exp_avg"] > 0).all(), "0.1 times 1e-38 is subnormal, and was flushed to zero"


def test_use_after_fork_is_refused_and_exit_does_not_hang():
    code = """
import os, sys
from lohan_optim_cpuadam import _native
updater = _native.Updater(simd="auto", threads=4)
names = ("master", "exp_avg", "exp_avg_sq", "gradient", "new_master", "new_exp_avg", "new_exp_avg_sq", "weights")
numbers = dict.fromkeys(names, 0)
scalars = dict(lr=1.0, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, gradient_factor=1.0)
dtype = _native.DType.FLOAT32
child = os.fork()
if child == 0:
    try:
        updater.update(**numbers, **scalars, gradient_dtype=dtype, weights_dtype=dtype, length=0, step=1)
    except RuntimeError as error:
        print(error)
    del updater
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert "do not survive fork()" in answer.stdout
