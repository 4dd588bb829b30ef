"""Named workloads: a model's shape with random weights, fixed tokens, and the settings that it is trained with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import frozen

from lohan_core.errors import ConfigError, StorageError
from lohan_core.suggest import choose_one_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from lohan_core.data.batches import Batch

__all__ = ["WORKLOADS", "StepWorkload", "find_workload", "make_batch", "model_config", "write_model_directory"]

Settings = Mapping[str, Mapping[str, Any]]


@frozen(kw_only=True)
class StepWorkload:
    """What one step trains.

    Attributes:
        name: what a command calls it.
        summary: one line for people.
        architecture: a ``model_type`` of transformers.
        model: keys of that architecture's config.
        sequence_length: tokens a row.
        micro_batch_size: rows that pass through a block at once, where a step has so many.
        batch_sizes: rows a step; each is measured.
        settings: sections of the run's config, beside those that every workload shares.
    """

    name: str
    summary: str
    architecture: str
    model: Mapping[str, Any]
    sequence_length: int
    micro_batch_size: int
    batch_sizes: tuple[int, ...]
    settings: Settings

    def rows_at_once(self, batch_size: int) -> int:
        """Return the micro-batch size of a step of ``batch_size`` rows.

        Raises:
            ConfigError: the one does not divide the other.
        """
        rows = min(self.micro_batch_size, batch_size)
        if rows < 1 or batch_size % rows:
            raise ConfigError(
                f"batch size {batch_size}: workload {self.name!r} takes multiples of {self.micro_batch_size}, or fewer"
            )
        return rows


def _deep(layers: int) -> Mapping[str, Any]:
    """Return a Llama of hidden size 3072 and any depth."""
    return {
        "hidden_size": 3072,
        "num_hidden_layers": layers,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "intermediate_size": 8192,
        "vocab_size": 32000,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": False,
    }


_SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 512,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}

_LLAMA_3_8B = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "max_position_embeddings": 32768,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    "tie_word_embeddings": False,
}

_GPT_12B = {
    "n_embd": 5120,
    "n_layer": 36,
    "n_head": 40,
    "n_positions": 1024,
    "vocab_size": 50257,
    # Off, as fine-tuning has it; and the others have none.
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}

# Of 128 GiB of host memory; the rest is for what no plan counts: Python, torch, CUDA, the machine's own. With 120 GiB
# of 125 a step of long-8b once stood still for a third of a second.
_MEMORY = {"gpu": "24GiB", "host": "118GiB"}
# Space on the drives would be for nothing but saving states there: that would take longer than all steps. Without it
# they live in host memory, and on the GPU where the planner finds that faster.
_IN_HOST_MEMORY: Settings = {"memory": {**_MEMORY, "ssd": "1GiB"}}
_STATES_ON_DRIVES: Settings = {"planner": {"backend": "greedy", "states": "ssd"}}
# Logits of a whole micro-batch would take gigabytes of the GPU that states and activations have a use for.
_CHUNKED: Settings = {"model": {"loss": "chunked"}}

WORKLOADS: Mapping[str, StepWorkload] = {
    workload.name: workload
    for workload in (
        StepWorkload(
            name="smoke",
            summary="a Llama of 0.2 M parameters: shows in seconds that everything runs, and nothing about speed",
            architecture="llama",
            model=_SMALL,
            sequence_length=64,
            micro_batch_size=2,
            batch_sizes=(2, 4),
            settings={"planner": {"backend": "greedy", "states": "host"}},
        ),
        StepWorkload(
            name="smoke-ssd",
            summary="the same with states on drives",
            architecture="llama",
            model=_SMALL,
            sequence_length=64,
            micro_batch_size=2,
            batch_sizes=(2,),
            settings=_STATES_ON_DRIVES,
        ),
        StepWorkload(
            name="host-2b",
            summary="a Llama of 2.21 B parameters, states in memory",
            architecture="llama",
            model=_deep(20),
            sequence_length=1024,
            micro_batch_size=16,
            batch_sizes=(8, 32, 128),
            settings={**_CHUNKED, **_IN_HOST_MEMORY},
        ),
        StepWorkload(
            name="ssd-2b",
            summary="a Llama of 2.21 B parameters, states on drives, with 16 GiB of host memory",
            architecture="llama",
            model=_deep(20),
            sequence_length=1024,
            micro_batch_size=16,
            batch_sizes=(8, 32),
            settings={**_CHUNKED, **_STATES_ON_DRIVES, "memory": {**_MEMORY, "host": "16GiB"}},
        ),
        StepWorkload(
            name="host-4b",
            summary="a Llama of 4.22 B parameters, states in memory",
            architecture="llama",
            model=_deep(40),
            sequence_length=1024,
            micro_batch_size=16,
            batch_sizes=(16, 64),
            settings={**_CHUNKED, **_IN_HOST_MEMORY},
        ),
        StepWorkload(
            name="tier-8b",
            summary="the shape of Llama 3 8B, states in memory as far as they fit, the rest on 60 GB of drives",
            architecture="llama",
            model=_LLAMA_3_8B,
            sequence_length=1024,
            micro_batch_size=8,
            batch_sizes=(16, 64),
            settings={**_CHUNKED, "memory": {**_MEMORY, "ssd": "60GB"}},
        ),
        StepWorkload(
            name="tier-12b",
            summary="a GPT of 11.6 B parameters, states in memory and on 60 GB of drives",
            architecture="gpt2",
            model=_GPT_12B,
            sequence_length=1024,
            micro_batch_size=8,
            batch_sizes=(32,),
            settings={**_CHUNKED, "memory": {**_MEMORY, "ssd": "60GB"}},
        ),
        StepWorkload(
            name="long-8b",
            summary="the shape of Llama 3 8B, one row of 32768 tokens, states in memory",
            architecture="llama",
            model=_LLAMA_3_8B,
            sequence_length=32768,
            micro_batch_size=1,
            batch_sizes=(1,),
            settings={**_CHUNKED, **_IN_HOST_MEMORY},
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


def model_config(workload: StepWorkload) -> PreTrainedConfig:
    """Make the config of the workload's model."""
    from transformers import AutoConfig

    return AutoConfig.for_model(workload.architecture, **workload.model)


def write_model_directory(directory: Path, workload: StepWorkload) -> int:
    """Write a model directory without weights, which are drawn: see :class:`lohan_core.weights.RandomWeights`.

    Args:
        directory: made here.
        workload: says what the model is.

    Returns:
        The number of parameters.

    Raises:
        StorageError: the directory cannot be written.
    """
    import torch

    from lohan_core.model.skeleton import build_skeleton

    config = model_config(workload)
    try:
        config.save_pretrained(directory)
    except OSError as error:
        message = f"{directory}: cannot be written: {error.strerror}"
        raise StorageError(error.errno or 0, message, str(directory)) from error
    return sum(parameter.numel() for parameter in build_skeleton(config, torch.bfloat16).parameters())


def make_batch(workload: StepWorkload, batch_size: int, step: int) -> Batch:
    """Return the tokens of one step, uniformly random: the same for the same arguments, in every process.

    Raises:
        ConfigError: the workload's micro-batch size does not divide ``batch_size``.
    """
    import torch

    from lohan_core.data.batches import Batch

    rows, length = workload.rows_at_once(batch_size), workload.sequence_length
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(0, workload.model["vocab_size"], (batch_size, length), generator=generator)
    parts = torch.split(tokens, rows)
    return Batch(
        micro_batches=tuple({"input_ids": part, "labels": part.clone()} for part in parts),
        tokens=tokens.numel(),
        loss_tokens=(rows * (length - 1),) * len(parts),
    )
