"""``lohan bench adam``: the C++ update beside torch's fused AdamW and beside moving memory, on this machine.

[Note: what is compared]
All are bound by memory, so what counts is bytes per parameter.

- ``cpuadam`` reads a bf16 gradient (2 bytes) and three fp32 states (12), writes the states (12) and a bf16 weight (2):
  28 bytes. The AVX paths write the weight past the caches; where they cannot (scalar path, unaligned weights) the
  processor first reads the line that the weight goes to, and 30 bytes move. *Overlaid*: weights take the gradients'
  place, as for states in host memory; that line is in the caches then. *Elsewhere*: gradients are there too, and states
  and weights go to another record, as where an update may be taken back; all of it past the caches.
- ``torch.optim.AdamW(fused=True)`` reads an fp32 gradient (4) and three fp32 states (12) and writes the states (12): 28
  bytes. It reads no bf16 gradient and emits no bf16 weight; a trainer pays for those passes separately.
- ``copy`` is the C library's ``memmove`` of a buffer too large for the caches, cut evenly over the threads. Its bytes
  are those read plus those written, one half each, as in both updates. Where the library does not write past the
  caches, it also reads the target's lines, which are not counted; an update can then move bytes faster than the copy.
- ``in place`` negates a buffer by torch: every line is read and written back, as the states' are. It comes closest to
  what the memory can do for an update.

All work in memory such as the engine's: mapped by :func:`lohan_core.memory.allocate_host`, and the updates in chunks of
the size that ``memory.chunk`` has by default. They alternate in one process, and ratios are taken round by round: what
else runs on the machine then slows all alike.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from statistics import median
from typing import TYPE_CHECKING

import psutil
from attrs import AttrsInstance, field, frozen
from attrs.validators import deep_iterable, ge, min_len

from lohan_core.backend import Kind
from lohan_core.config.structure import structure_values
from lohan_core.errors import ConfigError
from lohan_core.interfaces.optimizer import Hyperparameters, Optimizer
from lohan_core.memory import allocate_host
from lohan_core.processor import processor_name
from lohan_core.registry import Registry, load_registry
from lohan_core.states import StateVector, chunk_record_bytes, place_in_record
from lohan_core.units import format_bytes

if TYPE_CHECKING:
    import torch

__all__ = ["AdamBench", "AdamBenchOptions", "AdamBenchRow", "render", "run", "summarise"]

_BACKEND = "cpuadam"
_OVERLAID = "overlaid"
_ELSEWHERE = "elsewhere"
_TORCH = "torch fused"
_COPY = "copy"
_IN_PLACE = "in place"
_MOMENTS = ("exp_avg", "exp_avg_sq")
_BYTES_PER_PARAMETER = 28
_BYTES_TAKEN = 62
"""Of memory, per parameter, at the peak: states twice, both gradients, and what is copied."""
_SETTLING_SECONDS = 0.02
"""Waited before each measurement: torch's threads spin for some milliseconds after their work, on cores that the next
contender needs."""
CHUNK_PARAMETERS = 1 << 24
_STEP = Hyperparameters(step=10, lr=1e-5, weight_decay=0.01, gradient_factor=0.5)


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0))


@frozen(kw_only=True)
class AdamBenchOptions:
    """What to measure: each of ``cpuadam``'s paths ``simd`` with each number of ``threads`` (default: all cores)."""

    parameters: int = field(default=1 << 26, validator=ge(1))
    rounds: int = field(default=9, validator=ge(1))
    simd: tuple[str, ...] = field(default=("auto",), validator=min_len(1))
    threads: tuple[int, ...] = field(factory=lambda: (_usable_cores(),), validator=[min_len(1), deep_iterable(ge(1))])


@frozen(kw_only=True)
class AdamBenchRow:
    """One contender with one number of threads. Rates, ratio and fraction are medians over the rounds."""

    what: str
    threads: int
    seconds: tuple[float, ...]
    parameters_per_second: float
    bytes_per_second: float
    ratio_to_torch: float
    fraction_of_copy: float
    fraction_of_in_place: float


@frozen(kw_only=True)
class AdamBench:
    """What was measured, and on what. Copying 14 bytes, or negating them, counts as one parameter."""

    processor: str
    cores: int
    torch_version: str
    parameters: int
    bytes_per_parameter: int
    rows: tuple[AdamBenchRow, ...]


def run(options: AdamBenchOptions, registry: Registry | None = None) -> AdamBench:
    """Measure, with the backends of ``registry`` (default: those installed). Takes 62 bytes of memory per parameter.

    Raises:
        BackendError: ``cpuadam`` is not installed, or not usable here.
        ConfigError: a SIMD path that does not exist, or that this processor does not have.
    """
    import torch

    registry = registry or load_registry()
    opened = {
        threads: {f"{_BACKEND} {simd}": _open(registry, simd, threads) for simd in options.simd}
        for threads in options.threads
    }
    needed, free = options.parameters * _BYTES_TAKEN, psutil.virtual_memory().available
    if needed > free:
        raise ConfigError(
            f"--parameters: {options.parameters} take {format_bytes(needed)}, and {format_bytes(free)} are free; "
            "ask for fewer"
        )
    our_update, torch_update = _updates(options.parameters)
    moved_bytes = options.parameters * _BYTES_PER_PARAMETER // 2
    source, target = (allocate_host(moved_bytes, pin=False).view(torch.int16).fill_(1) for _ in range(2))
    threads_before = torch.get_num_threads()
    rows: list[AdamBenchRow] = []
    try:
        for threads, optimizers in opened.items():
            torch.set_num_threads(threads)
            with ThreadPoolExecutor(threads) as pool:
                contenders: dict[str, Callable[[], object]] = {
                    **{name: partial(our_update, optimizer) for name, optimizer in optimizers.items()},
                    **{
                        f"{name} {where}": partial(our_update, optimizer, where)
                        for where in (_OVERLAID, _ELSEWHERE)
                        for name, optimizer in optimizers.items()
                    },
                    _TORCH: torch_update,
                    _COPY: partial(_copy, source, target, pool, threads),
                    _IN_PLACE: source.neg_,
                }
                seconds = _alternate(contenders, options.rounds)
            rows += summarise(seconds, threads=threads, parameters=options.parameters)
    finally:
        torch.set_num_threads(threads_before)
    return AdamBench(
        processor=processor_name(),
        cores=_usable_cores(),
        torch_version=torch.__version__,
        parameters=options.parameters,
        bytes_per_parameter=_BYTES_PER_PARAMETER,
        rows=tuple(rows),
    )


def summarise(seconds: Mapping[str, Sequence[float]], *, threads: int, parameters: int) -> Iterable[AdamBenchRow]:
    """Turn each contender's seconds, round by round, into rates and into ratios to the others."""
    for what, own in seconds.items():
        rate = parameters / median(own)
        yield AdamBenchRow(
            what=what,
            threads=threads,
            seconds=tuple(own),
            parameters_per_second=rate,
            bytes_per_second=rate * _BYTES_PER_PARAMETER,
            ratio_to_torch=median(t / o for t, o in zip(seconds[_TORCH], own, strict=True)),
            fraction_of_copy=median(c / o for c, o in zip(seconds[_COPY], own, strict=True)),
            fraction_of_in_place=median(i / o for i, o in zip(seconds[_IN_PLACE], own, strict=True)),
        )


def render(result: AdamBench) -> str:
    """Write the result as a table."""
    hardware = f"{result.processor}, {result.cores} cores, torch {result.torch_version}"
    work = f"{result.parameters:,} parameters, {result.bytes_per_parameter} bytes each"
    lines = [f"{hardware}; {work}", f"{'':<23} threads  Mparam/s    GB/s  of torch  of copy  of in place"]
    lines += [
        f"{row.what:<23} {row.threads:>7} {row.parameters_per_second / 1e6:>9.0f} {row.bytes_per_second / 1e9:>7.1f} "
        f"{row.ratio_to_torch:>9.2f} {row.fraction_of_copy:>8.2f} {row.fraction_of_in_place:>12.2f}"
        for row in result.rows
    ]
    return "\n".join(lines)


def _open(registry: Registry, simd: str, threads: int) -> Optimizer:
    settings: AttrsInstance = structure_values(
        registry.find(Kind.OPTIMIZER, _BACKEND).config, {"simd": simd}, "lohan bench"
    )
    return registry.open_backend(Kind.OPTIMIZER, _BACKEND, settings, threads=threads)


def _updates(n: int) -> tuple[Callable[..., None], Callable[[], object]]:
    """Return our update and torch's. Both work on the same states, so that neither has the luckier pages."""
    import torch

    pieces = [_piece(min(CHUNK_PARAMETERS, n - start)) for start in range(0, n, CHUNK_PARAMETERS)]
    copies = [_record(gradient.numel()) for _, gradient in pieces]
    parameters = []
    for values, gradient in pieces:
        parameter = torch.nn.Parameter(values["master"])
        parameter.grad = allocate_host(4 * gradient.numel(), pin=False).view(torch.float32).copy_(gradient)
        parameters.append(parameter)
    oracle = torch.optim.AdamW(parameters, lr=_STEP.lr, weight_decay=_STEP.weight_decay, fused=True)
    oracle.step()  # makes its states
    for parameter, (values, _) in zip(parameters, pieces, strict=True):
        for name in _MOMENTS:
            oracle.state[parameter][name] = values[name].copy_(oracle.state[parameter][name])

    def our_step(optimizer: Optimizer, where: str = "") -> None:
        for (values, gradient), copy in zip(pieces, copies, strict=True):
            moments, new = ({name: vectors[name] for name in _MOMENTS} for vectors in (values, copy))
            read = values["weights"] if where else gradient
            if where == _ELSEWHERE:
                optimizer.update_into(
                    values["master"], moments, read, copy["weights"], _STEP, new_master=copy["master"], new_states=new
                )
            else:
                optimizer.update(values["master"], moments, read, values["weights"], _STEP)

    return our_step, oracle.step


def _piece(n: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Return the states and weights of one chunk, and its gradient."""
    import torch

    values = _record(n)
    values["master"].normal_().mul_(0.02)
    return values, allocate_host(2 * n, pin=False).view(torch.bfloat16).normal_()


def _record(n: int) -> dict[str, torch.Tensor]:
    """Return the states and weights of one chunk, laid out in memory as the engine lays them."""
    import torch

    vectors = [StateVector(name=name, value_bytes=4) for name in ("master", *_MOMENTS)]
    vectors.append(StateVector(name="weights", value_bytes=2))
    record = allocate_host(chunk_record_bytes(vectors, n), pin=False)
    values = {}
    for vector in vectors:
        offset, _ = place_in_record(vectors, n)[vector.name]
        dtype = torch.float32 if vector.value_bytes == 4 else torch.bfloat16
        values[vector.name] = record[offset : offset + n * vector.value_bytes].view(dtype)
    return values


def _copy(source: torch.Tensor, target: torch.Tensor, pool: ThreadPoolExecutor, threads: int) -> None:
    total = source.numel() * source.element_size()
    bounds = [total * i // threads for i in range(threads + 1)]

    def move(start: int, stop: int) -> None:
        ctypes.memmove(target.data_ptr() + start, source.data_ptr() + start, stop - start)  # releases the GIL

    list(pool.map(move, bounds[:-1], bounds[1:]))


def _alternate(contenders: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for measured in (False, *[True] * rounds):  # the first round touches the memory and starts the threads
        for name, work in contenders.items():
            time.sleep(_SETTLING_SECONDS)
            start = time.perf_counter()
            work()
            if measured:
                seconds[name].append(time.perf_counter() - start)
    return seconds
