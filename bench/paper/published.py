"""What the Ratel paper and its artifact report for one RTX 4090 (arXiv 2403.06504; ICDE 2025). Figures only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from attrs import frozen

__all__ = ["LARGEST", "MODEL", "PEAK_TFLOPS", "Row", "artifact_tflops", "rows"]

SEQUENCE_LENGTH = 1024
MODEL = "13B"
NOMINAL_PARAMETERS = 13e9
PEAK_TFLOPS = 160.0
"""Of a transformer block, as the paper measures it."""

ALL_DRIVES = 12

FIGURE_5A: Mapping[str, Mapping[int, float]] = {
    "Ratel": {8: 412, 16: 809, 32: 1373, 64: 1497, 128: 1476},
    "ZeRO-Infinity": {8: 202, 16: 335, 32: 432},
    "ZeRO-Offload": {8: 484, 16: 636},
}
"""Tokens per second by batch."""

FIGURE_10B: Mapping[int, Mapping[int, float]] = {
    32: {1: 37.5, 2: 64.3, 3: 81.1, 6: 121.7, 12: 142.0},
    48: {1: 53.1, 2: 89.7, 3: 121.7, 6: 146.3, 12: 153.9},
    64: {1: 70.3, 2: 111.7, 3: 136.3, 6: 151.5, 12: 148.2},
}
"""The artifact's TFLOPS by batch and number of drives."""

LARGEST: Mapping[int, str] = {128: "70B", 256: "276B", 512: "276B", 768: "276B"}
"""Figure 6: the largest model that trains at batch 1, by GiB of main memory."""


@frozen(kw_only=True)
class Row:
    """One published measurement."""

    figure: str
    system: str
    batch_size: int
    drives: int
    tokens_per_second: float


def rows() -> Iterator[Row]:
    """All measurements of a rate, in tokens per second."""
    for system, rates in FIGURE_5A.items():
        for batch_size, rate in rates.items():
            yield Row(figure="5a", system=system, batch_size=batch_size, drives=ALL_DRIVES, tokens_per_second=rate)
    for batch_size, by_drives in FIGURE_10B.items():
        for drives, tflops in by_drives.items():
            rate = tflops * 1e12 / (8 * NOMINAL_PARAMETERS)
            yield Row(figure="10b", system="Ratel", batch_size=batch_size, drives=drives, tokens_per_second=rate)


def artifact_tflops(tokens_per_second: float) -> float:
    """The artifact's measure: forward, backward and a whole recomputation of the nominal parameters, whatever ran."""
    return 8 * NOMINAL_PARAMETERS * tokens_per_second / 1e12
