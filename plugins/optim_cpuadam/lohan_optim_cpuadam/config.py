"""What a config file may say to ``cpuadam``."""

from __future__ import annotations

from enum import StrEnum

from attrs import field, frozen
from attrs.validators import ge, optional

from lohan_core.reference.torch_adamw import AdamWConfig

__all__ = ["CpuAdamConfig", "Simd"]


class Simd(StrEnum):
    """Which instructions carry the update out. Results do not depend on it."""

    AUTO = "auto"
    AVX512 = "avx512"
    AVX2 = "avx2"
    SCALAR = "scalar"


@frozen(kw_only=True)
class CpuAdamConfig(AdamWConfig):
    """AdamW's keys, and how to run it.

    Attributes:
        threads: Cores per update; `null`: as many as the engine grants.
        simd: `avx512`, `avx2`, `scalar`, or `auto`: the widest instructions of this processor. The results do not
            depend on it.
    """

    threads: int | None = field(default=None, validator=optional(ge(1)))
    simd: Simd = field(default=Simd.AUTO, converter=Simd)
