"""Registers ``cpuadam``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from lohan_core.hookspecs import hookimpl
from lohan_core.interfaces.optimizer import OptimizerBackend
from lohan_optim_cpuadam.config import CpuAdamConfig

if TYPE_CHECKING:
    from lohan_optim_cpuadam.optimizer import CpuAdam


def _open(config: CpuAdamConfig, *, threads: int) -> CpuAdam:
    from lohan_optim_cpuadam.optimizer import CpuAdam

    return CpuAdam(config, threads=threads)


def _probe() -> str | None:
    try:
        import lohan_optim_cpuadam._native  # noqa: F401 - that it can be imported is the answer
    except ImportError as error:
        return f"its native module does not load ({error}); install lohan again with a C++17 compiler"
    return None


@hookimpl
def lohan_optimizer() -> Iterable[OptimizerBackend]:
    """Offer ``cpuadam``."""
    yield OptimizerBackend(
        name="cpuadam",
        summary="AdamW in C++ on the CPU: one fused pass, AVX-512, AVX2 or scalar",
        config=CpuAdamConfig,
        open=_open,
        probe=_probe,
    )
