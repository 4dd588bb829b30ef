"""Predict what the Ratel paper measured, from the shipped hardware files alone: ``python bench/paper/predict.py``.

Prints Markdown: published beside predicted, with the error of every row, and what LoHan's own schedule would make of
the same machine. How each system is modelled is said in ``systems.py`` and ``zero.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from attrs import frozen
from published import LARGEST, MODEL, PEAK_TFLOPS, SEQUENCE_LENGTH, Row, artifact_tflops, rows
from systems import (
    ADAM,
    CHUNK_ELEMENTS,
    SYSTEMS,
    ZERO_SYSTEMS,
    Setting,
    lohan_seconds,
    outline_of,
    shape_of,
    zero_system_seconds,
)
from transformers.utils import logging as transformers_logging
from zero import PUBLISHED_PAGEABLE, PageableRates

from lohan_core.errors import PlanError
from lohan_core.forecast import Case, largest_that_fits
from lohan_core.forecast.family import Shape
from lohan_core.hardware import Hardware, find_hardware, with_overrides
from lohan_core.plan import Update, Workload
from lohan_core.registry import Registry, load_registry
from lohan_core.units import Bytes

MACHINE = "rtx-4090"
PAGEABLE_FACTORS = (0.5, 1, 2)


@frozen
class Prediction:
    """One row with what was predicted for it, in tokens per second."""

    row: Row
    predicted: float
    lohan: float

    @property
    def error(self) -> float:
        """Relative to what was published."""
        return self.predicted / self.row.tokens_per_second - 1


def main() -> None:
    """Predict everything and print it."""
    transformers_logging.set_verbosity_error()
    torch.set_num_threads(1)
    registry, machine = load_registry(), find_hardware(MACHINE)
    predictions = [predict(registry, machine, row) for row in rows()]
    print("\n".join(render_rows(predictions)))
    print("\n".join(render_pageable(predictions, registry, machine)))
    print("\n".join(render_headlines(predictions, registry, machine)))
    print("\n".join(render_largest(registry, machine)))


def predict(registry: Registry, machine: Hardware, row: Row) -> Prediction:
    """Predict one row."""
    setting = setting_of_row(registry, machine, row)
    tokens = row.batch_size * SEQUENCE_LENGTH
    return Prediction(row, tokens / SYSTEMS[row.system](setting), tokens / lohan_seconds(setting))


def setting_of_row(registry: Registry, machine: Hardware, row: Row) -> Setting:
    """Describe the step that a row measured."""
    return setting_of(registry, with_overrides(machine, drives=row.drives), shape_of(MODEL), row.batch_size)


def setting_of(registry: Registry, machine: Hardware, shape: Shape, batch_size: int) -> Setting:
    """Describe one step."""
    return Setting(registry, machine, outline_of(shape), SEQUENCE_LENGTH, batch_size)


def render_rows(predictions: Sequence[Prediction]) -> Iterator[str]:
    """Lay the rows out, and their errors' mean and greatest, by system and in all."""
    yield "| figure | system | batch | drives | published tokens/s | predicted | error | LoHan, predicted |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for p in predictions:
        row = p.row
        yield (
            f"| {row.figure} | {row.system} | {row.batch_size} | {row.drives} | {row.tokens_per_second:,.0f} "
            f"| {p.predicted:,.0f} | {p.error:+.1%} | {p.lohan:,.0f} |"
        )
    yield ""
    yield "| rows | mean absolute error | greatest | above 20 % |"
    yield "| --- | --- | --- | --- |"
    for system in (*SYSTEMS, None):
        errors = [p.error for p in predictions if system in {None, p.row.system}]
        yield f"| {len(errors)} {system or 'in all'} | {' | '.join(_summary(errors))} |"
    yield ""


def render_pageable(predictions: Sequence[Prediction], registry: Registry, machine: Hardware) -> Iterator[str]:
    """Lay out how far off the rows would be if copies to and from pageable memory were slower than PCIe."""
    rates = [PUBLISHED_PAGEABLE.times(factor) for factor in PAGEABLE_FACTORS]
    columns = [[p.error for p in predictions]]
    columns += [[_error_at(p, rate, registry, machine) for p in predictions] for rate in rates]
    names = [f"{rate.down_bytes_per_second / 1e9:g} and {rate.up_bytes_per_second / 1e9:g}" for rate in rates]
    yield "| pageable copies, GB/s down and up | as PCIe | " + " | ".join(names) + " |"
    yield "| --- |" + " --- |" * len(columns)
    for index, p in enumerate(predictions):
        if p.row.system in ZERO_SYSTEMS:
            errors = " | ".join(f"{column[index]:+.1%}" for column in columns)
            yield f"| {p.row.system}, batch {p.row.batch_size} | {errors} |"
    summaries = zip(*map(_summary, columns), strict=True)
    for name, values in zip(("mean absolute error of all rows", "greatest", "above 20 %"), summaries, strict=True):
        yield f"| {name} | " + " | ".join(values) + " |"
    yield ""


def _error_at(prediction: Prediction, rates: PageableRates, registry: Registry, machine: Hardware) -> float:
    row = prediction.row
    if row.system not in ZERO_SYSTEMS:
        return prediction.error
    seconds = zero_system_seconds(ZERO_SYSTEMS[row.system], setting_of_row(registry, machine, row), rates)
    return row.batch_size * SEQUENCE_LENGTH / seconds / row.tokens_per_second - 1


def _summary(errors: Sequence[float]) -> tuple[str, str, str]:
    """Mean of the sizes, the greatest, and how many are above 20 %."""
    sizes = [abs(error) for error in errors]
    return f"{sum(sizes) / len(sizes):.1%}", f"{max(sizes):.1%}", str(sum(size > 0.2 for size in sizes))


def render_headlines(predictions: Sequence[Prediction], registry: Registry, machine: Hardware) -> Iterator[str]:
    """Lay out what the paper concludes from its rows."""
    best = {system: _best(predictions, system) for system in SYSTEMS}
    yield "| headline | published | predicted |"
    yield "| --- | --- | --- |"
    for system, published in (("ZeRO-Offload", 2.32), ("ZeRO-Infinity", 3.46)):
        ratio = best["Ratel"] / best[system]
        yield f"| Ratel at 13B, times {system}, each at its best batch | {published} | {ratio:.2f} |"
    share = artifact_tflops(best["Ratel"]) / PEAK_TFLOPS
    yield f"| Ratel at 13B, share of a block's peak | 90-95 % below 70B | {share:.0%} |"
    small = with_overrides(machine, host=Bytes(256 * 2**30))
    yield f"| 175B trains with 256 GB | yes | {'yes' if fits(registry, small, shape_of('175B')) else 'no'} |"
    yield ""


def _best(predictions: Sequence[Prediction], system: str) -> float:
    return max(p.predicted for p in predictions if p.row.system == system and p.row.figure == "5a")


def render_largest(registry: Registry, machine: Hardware) -> Iterator[str]:
    """Lay out the largest model by main memory. What is predicted is what LoHan itself would train."""
    yield "| main memory, GiB | largest published | LoHan, predicted |"
    yield "| --- | --- | --- |"
    for gibibytes, published in LARGEST.items():
        sized = with_overrides(machine, host=Bytes(gibibytes * 2**30))
        shape = largest_that_fits(lambda shape, sized=sized: fits(registry, sized, shape))  # type: ignore[misc]
        yield f"| {gibibytes} | {published} | {shape.name if shape else 'none'} |"


def fits(registry: Registry, machine: Hardware, shape: Shape) -> bool:
    """Tell whether LoHan trains a model of this shape at batch 1."""
    setting = setting_of(registry, machine, shape, 1)
    case = Case(
        planner=setting.planner("greedy"),
        workload=Workload(
            micro_batches=1, update=Update.OPTIMIZED, clips=False, chunk_elements=CHUNK_ELEMENTS, versions=1
        ),
    )
    try:
        case.plan(setting.profile(1, ADAM, passes_bytes=None), 1)
    except PlanError:
        return False
    return True


if __name__ == "__main__":
    main()
