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

    ``threads`` is the number of cores per update (null: as many as the engine grants); ``simd: auto`` takes the widest
    instructions of this processor, a name insists on them.
    """

    threads: int | None = field(default=None, validator=optional(ge(1)))
    simd: Simd = field(default=Simd.AUTO, converter=Simd)
