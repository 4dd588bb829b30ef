"""Named workloads: a model's shape with random weights, fixed tokens, and the settings that it is trained with."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import frozen

from lohan_core.errors import ConfigError
from lohan_core.suggest import choose_one_of

if TYPE_CHECKING:
    import torch

    from lohan_core.data.batches import Batch

__all__ = ["WORKLOADS", "StepWorkload", "find_workload", "make_batch", "write_random_model"]

_SHARD_BYTES = 1 << 30


@frozen(kw_only=True)
class StepWorkload:
    """What one step trains.

    Attributes:
        name: what a command calls it.
        summary: one line for people.
        model: the keys of a Llama's config.
        sequence_length: tokens a row.
        micro_batch_size: rows that pass through a block at once.
        batch_sizes: rows a step; each is measured.
        settings: sections of the run's config, beside those that every workload shares.
    """

    name: str
    summary: str
    model: Mapping[str, Any]
    sequence_length: int
    micro_batch_size: int
    batch_sizes: tuple[int, ...]
    settings: Mapping[str, Mapping[str, Any]]


_2B = {
    "hidden_size": 3072,
    "num_hidden_layers": 20,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "intermediate_size": 8192,
    "vocab_size": 32000,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": False,
}

WORKLOADS: Mapping[str, StepWorkload] = {
    workload.name: workload
    for workload in (
        StepWorkload(
            name="smoke",
            summary="a Llama of 0.2 M parameters: shows in seconds that everything runs, and nothing about speed",
            model={
                "hidden_size": 64,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "intermediate_size": 128,
                "vocab_size": 512,
                "max_position_embeddings": 64,
                "tie_word_embeddings": False,
            },
            sequence_length=64,
            micro_batch_size=2,
            batch_sizes=(2, 4),
            settings={"planner": {"backend": "keep_nothing", "states": "host"}},
        ),
        StepWorkload(
            name="host-2b",
            summary="a Llama of 2.21 B parameters, states in host memory, 24 GiB of GPU memory",
            model=_2B,
            sequence_length=1024,
            micro_batch_size=8,
            batch_sizes=(8, 32, 128),
            settings={"memory": {"gpu": "24GiB"}, "planner": {"backend": "keep_nothing", "states": "host"}},
        ),
        StepWorkload(
            name="ssd-2b",
            summary="a Llama of 2.21 B parameters, states on drives, 24 GiB of GPU memory and 16 GiB of host memory",
            model=_2B,
            sequence_length=1024,
            micro_batch_size=8,
            batch_sizes=(8, 32),
            settings={
                "memory": {"gpu": "24GiB", "host": "16GiB"},
                "planner": {"backend": "keep_nothing", "states": "ssd"},
            },
        ),
    )
}


def find_workload(name: str) -> StepWorkload:
    """Return the workload of this name.

    Raises:
        ConfigError: there is none.
    """
    if name not in WORKLOADS:
        raise ConfigError(f"no workload is called {name!r}. {choose_one_of(name, WORKLOADS)}")
    return WORKLOADS[name]


def make_batch(workload: StepWorkload, batch_size: int, step: int) -> Batch:
    """Return the tokens of one step, uniformly random: the same for the same arguments, in every process.

    Raises:
        ConfigError: ``batch_size`` is not a multiple of the workload's micro-batch size.
    """
    import torch

    from lohan_core.data.batches import Batch

    rows, length = workload.micro_batch_size, workload.sequence_length
    if batch_size < 1 or batch_size % rows:
        raise ConfigError(f"batch size {batch_size}: workload {workload.name!r} takes multiples of {rows}")
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(0, workload.model["vocab_size"], (batch_size, length), generator=generator)
    parts = torch.split(tokens, rows)
    return Batch(
        micro_batches=tuple({"input_ids": part, "labels": part.clone()} for part in parts),
        tokens=tokens.numel(),
        loss_tokens=(rows * (length - 1),) * len(parts),
    )


def write_random_model(directory: Path, workload: StepWorkload, device: torch.device) -> int:
    """Write a model directory with random bf16 weights, never holding more than a shard of it.

    Args:
        directory: made here.
        workload: its model's shape.
        device: draws the numbers; the same ones each time on the same device.

    Returns:
        The number of parameters.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    from lohan_core.model.skeleton import build_skeleton
    from lohan_core.weights.files import INDEX

    config = LlamaConfig(**workload.model)
    config.save_pretrained(directory)
    parameters = dict(build_skeleton(config, torch.bfloat16).named_parameters())
    generator = torch.Generator(device=device).manual_seed(0)
    weight_map = {}
    for number, shard in enumerate(_shards(parameters)):
        file_name = f"model-{number:05}.safetensors"
        save_file({name: _draw(parameters[name], generator).cpu() for name in shard}, directory / file_name)
        weight_map.update(dict.fromkeys(shard, file_name))
    total_bytes = sum(parameter.nbytes for parameter in parameters.values())
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    (directory / INDEX).write_text(json.dumps(index))
    return sum(parameter.numel() for parameter in parameters.values())


def _shards(parameters: Mapping[str, torch.Tensor]) -> Iterator[list[str]]:
    shard: list[str] = []
    size_bytes = 0
    for name, parameter in parameters.items():
        if shard and size_bytes + parameter.nbytes > _SHARD_BYTES:
            yield shard
            shard, size_bytes = [], 0
        shard.append(name)
        size_bytes += parameter.nbytes
    yield shard


def _draw(parameter: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Draw a matrix as Llama's own initialisation does; the vectors are norms, which begin as ones."""
    import torch

    if parameter.dim() == 1:
        return torch.ones(parameter.shape, dtype=parameter.dtype)
    values = torch.randn(parameter.shape, dtype=torch.float32, device=generator.device, generator=generator)
    return values.mul_(0.02).to(parameter.dtype)
