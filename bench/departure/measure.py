"""Predict steps and take them: ``python bench/departure/measure.py --device cuda --directory /a/drive``.

Three architectures, each carried out by several plans from the same random weights. Prints Markdown: a step's length as
the simulation predicts it, and the median of the steps that count, of which the first, with nothing deferred to it and
all memory new, is none. The first plan is predicted from the profile as measured; with ``--corrected`` the others are
from that profile with its rates corrected by one step of the first plan (:mod:`lohan_core.calibrate`).
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch
from attrs import frozen
from transformers import AutoConfig
from transformers.utils import logging as transformers_logging

from lohan_core.bench.workloads import StepWorkload, make_batch
from lohan_core.calibrate import calibrate
from lohan_core.config.load import config_from_mapping
from lohan_core.engine import open_engine
from lohan_core.profile import Profile
from lohan_core.registry import Registry, load_registry
from lohan_core.schedule.simulate import simulate
from lohan_core.schedule.task import Lane

LLAMA = {"num_attention_heads": 16, "num_key_value_heads": 4, "tie_word_embeddings": False}
QWEN = {"num_attention_heads": 16, "num_key_value_heads": 8, "tie_word_embeddings": True}
DROPLESS = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}

ON_GPU = (
    (
        "llama",
        1024,
        16,
        LLAMA | {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 8, "vocab_size": 32000},
    ),
    (
        "gpt2",
        1024,
        16,
        DROPLESS | {"n_embd": 1600, "n_head": 25, "n_layer": 16, "vocab_size": 32000, "n_positions": 1024},
    ),
    (
        "qwen3",
        4096,
        4,
        QWEN
        | {
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "num_hidden_layers": 10,
            "head_dim": 128,
            "vocab_size": 32000,
        },
    ),
)
ON_CPU = (
    (
        "llama",
        128,
        1,
        LLAMA | {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8, "vocab_size": 8000},
    ),
    ("gpt2", 128, 1, DROPLESS | {"n_embd": 1024, "n_head": 16, "n_layer": 8, "vocab_size": 8000, "n_positions": 128}),
    (
        "qwen3",
        128,
        1,
        QWEN
        | {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 8, "head_dim": 64, "vocab_size": 8000},
    ),
)

PLANS: Mapping[str, Mapping[str, Any]] = {
    "greedy": {"backend": "greedy", "states": "host"},
    "zero, states on host": {"backend": "zero", "states": "host"},
    "recompute_all, states on host": {"backend": "recompute_all", "states": "host"},
    "zero, states on ssd": {"backend": "zero", "states": "ssd"},
    "recompute_all, states on ssd": {"backend": "recompute_all", "states": "ssd"},
}


@frozen
class Departure:
    """One model by one plan."""

    model: str
    plan: str
    predicted: float
    steps: tuple[float, ...]
    busiest: Lane

    @property
    def measured(self) -> float:
        """Median seconds."""
        return median(self.steps)

    @property
    def share(self) -> float:
        """By how much of the prediction the step was longer."""
        return self.measured / self.predicted - 1


def measure(
    directory: Path, device: str, plans: list[str], *, steps: int, corrected: bool, registry: Registry
) -> Iterator[Departure]:
    """Take every model through every plan, in a run directory of its own each time."""
    for architecture, length, rows, keys in ON_GPU if device == "cuda" else ON_CPU:
        model_config = AutoConfig.for_model(architecture, **keys, max_position_embeddings=length)
        workload = StepWorkload(
            name=architecture,
            summary="",
            architecture=architecture,
            model=keys,
            sequence_length=length,
            micro_batch_size=rows,
            batch_sizes=(rows,),
            settings={},
        )
        known: Profile | None = None
        for plan in plans:
            with tempfile.TemporaryDirectory(dir=directory) as place:
                model_config.save_pretrained(Path(place) / "model")
                values = _settings(Path(place), device, workload, PLANS[plan])
                if known is not None:
                    (Path(place) / "profile.json").write_text(known.to_json())
                    values["profiler"] = {"backend": "file", "path": str(Path(place) / "profile.json")}
                departure, profile = _take(plan, workload, values, steps, registry)
                if corrected and known is None:
                    known = profile
                yield departure


def _settings(
    place: Path, device: str, workload: StepWorkload, planner: Mapping[str, Any]
) -> dict[str, Mapping[str, Any]]:
    rows = workload.micro_batch_size
    return {
        "model": {"path": str(place / "model"), "weights": "random"},
        "data": {"train": str(place / "none"), "sequence_length": workload.sequence_length},
        "run": {
            "dir": str(place / "run"),
            "device": device,
            "steps": 1000,
            "batch_size": rows,
            "micro_batch_size": rows,
            "durability": "none",
            "checksums": False,
        },
        "memory": {"gpu": "24GiB"} if device == "cuda" else {},
        "optimizer": {"lr": 1e-5, "max_grad_norm": 1.0},
        "planner": planner,
        "profiler": {"cache": False},
    }


def _take(
    plan: str, workload: StepWorkload, values: Mapping[str, Any], steps: int, registry: Registry
) -> tuple[Departure, Profile]:
    """Predict a step and take some; return also the profile, corrected by the step of median length."""
    config, rows = config_from_mapping(dict(values), registry), workload.micro_batch_size
    with open_engine(config, make_batch(workload, rows, 0), registry=registry) as engine:
        taken = [engine.step(make_batch(workload, rows, number), lr=1e-5) for number in range(1 + steps)][1:]
        predicted = simulate(engine.schedule, engine.profile.machine)
        middle = sorted(taken, key=lambda result: result.seconds)[steps // 2]
        profile = calibrate(engine.profile, middle.timeline)
    busy = predicted.busy_seconds()
    seconds = tuple(result.seconds for result in taken)
    busiest = max(busy, key=lambda lane: busy[lane])
    return Departure(workload.name, plan, predicted.seconds, seconds, busiest), profile


def main() -> None:
    """Print one row for each model and plan."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--directory", type=Path, default=Path(), help="where stores are kept, and removed")
    parser.add_argument("--plan", action="append", choices=list(PLANS), help="may be repeated; by default all")
    parser.add_argument("--corrected", action="store_true", help="predict all but the first plan by what it showed")
    parser.add_argument("--steps", type=int, default=5, help="steps that count")
    arguments = parser.parse_args()
    transformers_logging.set_verbosity_error()
    print("| model | plan | busiest lane | predicted, s | measured, s | departure | steps, s |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    plans = arguments.plan or list(PLANS)
    rows = measure(
        arguments.directory,
        arguments.device,
        plans,
        steps=arguments.steps,
        corrected=arguments.corrected,
        registry=load_registry(),
    )
    for row in rows:
        steps = ", ".join(f"{seconds:.3f}" for seconds in row.steps)
        print(
            f"| {row.model} | {row.plan} | {row.busiest} | {row.predicted:.3f} | {row.measured:.3f} | {row.share:+.1%} "
            f"| {steps} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
