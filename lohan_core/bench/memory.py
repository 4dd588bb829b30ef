"""``lohan bench memory``: peak resident memory of runs that differ in nothing but the model's depth.

[Note: what is compared]
States are on the drives, so a deeper model should take no more host memory than a shallow one: buffers are sized by the
largest block and the pools. Each depth runs in a fresh process, and what counts is its peak resident set as the kernel
kept it, once when the store is made and the engine is open, and once when training is done. A Python process with
torch and transformers takes hundreds of megabytes before it trains, which hides growth; so the depths must differ by
far more states than that, and the growth is also given by itself, beside what the states grow by.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import asdict, field, frozen
from attrs.validators import deep_iterable, ge, gt, min_len

from lohan_core.bench.peaks import peak_host_bytes
from lohan_core.bench.workloads import StepWorkload, make_batch, model_config
from lohan_core.errors import ConfigError, LohanError
from lohan_core.registry import Registry, load_registry
from lohan_core.schedule.sizes import states_bytes
from lohan_core.units import Bytes, format_bytes

__all__ = ["MemoryBench", "MemoryBenchOptions", "MemoryBenchRow", "measure_one", "render", "run"]

_BATCH_SIZE = 2
_SEQUENCE_LENGTH = 64
_LR = 1e-5


@frozen(kw_only=True)
class MemoryBenchOptions:
    """What to measure.

    Attributes:
        directory: on the drive to use; a temporary directory is made in it, and removed.
        layers: numbers of layers, each a run.
        hidden_size: the models' width; a multiple of 64.
        steps: training steps of each run.
        chunk_bytes: as ``memory.chunk`` in a config.
        device: as in a run's config.
    """

    directory: Path
    layers: tuple[int, ...] = field(default=(4, 16, 64), validator=[min_len(1), deep_iterable(ge(1))])
    hidden_size: int = field(default=512, validator=ge(64))
    steps: int = field(default=2, validator=ge(1))
    chunk_bytes: Bytes = field(default=Bytes(4 << 20), validator=gt(Bytes(0)))
    device: str = "cpu"


@frozen(kw_only=True)
class MemoryBenchRow:
    """One depth. ``state_bytes`` is what weights and optimizer states take on the drives, in one version."""

    layers: int
    state_bytes: int
    opened_peak_bytes: int
    trained_peak_bytes: int


@frozen(kw_only=True)
class MemoryBench:
    """All depths. ``spread`` is by how much the largest peak exceeds the smallest, as a fraction of the smallest."""

    hidden_size: int
    steps: int
    rows: tuple[MemoryBenchRow, ...]
    opened_spread: float
    trained_spread: float


def run(options: MemoryBenchOptions) -> MemoryBench:
    """Measure every depth, each in a process of its own, which sees the same installed backends as this one.

    Raises:
        LohanError: the directory cannot be written, or a run failed.
    """
    rows = []
    for layers in options.layers:
        try:
            place = tempfile.TemporaryDirectory(prefix="lohan-bench-", dir=options.directory)
        except OSError as error:
            raise ConfigError(f"{options.directory}: cannot be written: {error.strerror}") from error
        with place as temporary:
            rows.append(_measure_apart(options, layers, Path(temporary)))
    return MemoryBench(
        hidden_size=options.hidden_size,
        steps=options.steps,
        rows=tuple(rows),
        opened_spread=_spread([row.opened_peak_bytes for row in rows]),
        trained_spread=_spread([row.trained_peak_bytes for row in rows]),
    )


def _spread(peaks: list[int]) -> float:
    return max(peaks) / min(peaks) - 1.0


def _measure_apart(options: MemoryBenchOptions, layers: int, place: Path) -> MemoryBenchRow:
    import torch
    from transformers import AutoModelForCausalLM

    # Written here, since what that takes is not the run's.
    config = model_config(_workload(options, layers))
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(place / "model")
    settings = {**asdict(options), "directory": str(place), "layers": [layers]}
    command = [sys.executable, "-m", "lohan_core.bench.memory", json.dumps(settings)]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    if child.returncode:
        raise LohanError(f"the run with {layers} layers failed: {child.stderr.strip().splitlines()[-1]}")
    return MemoryBenchRow(**json.loads(child.stdout.splitlines()[-1]))


def measure_one(options: MemoryBenchOptions, registry: Registry) -> MemoryBenchRow:
    """Train the model in ``options.directory``, whose depth is ``options.layers``' only one, in this process.

    It should have done nothing else before: peaks do not go down.
    """
    from lohan_core.config.load import config_from_mapping
    from lohan_core.engine.assemble import open_engine

    workload = _workload(options, options.layers[0])
    values = {
        **workload.settings,
        "model": {"path": str(options.directory / "model")},
        # The tokens are made here: no file of them is read.
        "data": {"train": str(options.directory / "none"), "sequence_length": _SEQUENCE_LENGTH},
        "run": {
            "dir": str(options.directory / "run"),
            "steps": options.steps,
            "device": options.device,
            "batch_size": _BATCH_SIZE,
            "micro_batch_size": workload.micro_batch_size,
            "durability": "none",
        },
        "memory": {"chunk": options.chunk_bytes},
    }
    config = config_from_mapping(values, registry)
    with open_engine(config, make_batch(workload, _BATCH_SIZE, 0), registry=registry) as engine:
        opened_peak_bytes = peak_host_bytes()
        for step in range(options.steps):
            engine.step(make_batch(workload, _BATCH_SIZE, step), lr=_LR)
        return MemoryBenchRow(
            layers=options.layers[0],
            state_bytes=sum(states_bytes(block, engine.profile) for block in engine.profile.blocks),
            opened_peak_bytes=opened_peak_bytes,
            trained_peak_bytes=peak_host_bytes(),
        )


def _workload(options: MemoryBenchOptions, layers: int) -> StepWorkload:
    heads = options.hidden_size // 64
    return StepWorkload(
        name=f"{layers} layers",
        summary="a Llama of any depth",
        architecture="llama",
        model={
            "hidden_size": options.hidden_size,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "intermediate_size": 3 * options.hidden_size,
            "vocab_size": 4096,
            "max_position_embeddings": _SEQUENCE_LENGTH,
            "tie_word_embeddings": False,
        },
        sequence_length=_SEQUENCE_LENGTH,
        micro_batch_size=1,
        batch_sizes=(_BATCH_SIZE,),
        settings={"planner": {"backend": "keep_nothing", "states": "ssd", "inputs": "ssd"}},
    )


def render(result: MemoryBench) -> str:
    """Lay the result out for people."""
    columns = ("layers", "states", "peak open", "peak trained")
    first, last = result.rows[0], result.rows[-1]
    growth_bytes = max(0, last.trained_peak_bytes - first.trained_peak_bytes)
    lines = [
        f"width {result.hidden_size}, states on the drives, {result.steps} steps",
        "".join(f"{name:>14}" for name in columns),
    ]
    for row in result.rows:
        cells = (
            str(row.layers),
            format_bytes(row.state_bytes),
            format_bytes(row.opened_peak_bytes),
            format_bytes(row.trained_peak_bytes),
        )
        lines.append("".join(f"{cell:>14}" for cell in cells))
    lines += [
        f"peaks differ by {result.trained_spread:.1%} ({result.opened_spread:.1%} when opened)",
        (
            f"from {first.layers} to {last.layers} layers, memory grew by {format_bytes(growth_bytes)} and states by "
            f"{format_bytes(last.state_bytes - first.state_bytes)}"
        ),
    ]
    return "\n".join(lines)


def _main(text: str) -> None:
    values: Mapping[str, Any] = json.loads(text)
    options = MemoryBenchOptions(
        **{**values, "directory": Path(values["directory"]), "layers": tuple(values["layers"])}
    )
    print(json.dumps(asdict(measure_one(options, load_registry()))))


if __name__ == "__main__":
    _main(sys.argv[1])
