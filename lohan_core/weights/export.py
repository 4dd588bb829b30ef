"""Writing a model directory that ``from_pretrained`` loads, block by block, all or nothing."""

from __future__ import annotations

import errno
import json
import secrets
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from attrs import define, field

from lohan_core.durable_files import sync_names, sync_tree
from lohan_core.errors import ModelError, StorageError
from lohan_core.units import format_bytes
from lohan_core.weights.files import INDEX, SINGLE
from lohan_core.weights.model_files import copy_companions, write_config

if TYPE_CHECKING:
    from lohan_core.weights.source import WeightSource

__all__ = ["write_model"]


def write_model(
    out: Path, blocks: Iterable[Mapping[str, torch.Tensor]], checkpoint: WeightSource, dtype: torch.dtype
) -> None:
    """Write the model of ``checkpoint`` with other parameters to the directory ``out``.

    Everything is written to a directory beside ``out``, synced, and renamed at the end: ``out`` is whole or not there.
    One block is in memory at a time, once as given and once in ``dtype``.

    Args:
        out: a directory that does not exist, or is empty.
        blocks: the parameters of one block after another, by the names of the model as built; one shard each.
        checkpoint: where the model came from. What no block holds (persistent buffers, parameters that were not
            trained) is copied from it, and so are tokenizer, chat template and generation config.
        dtype: of the parameters written; buffers keep theirs.

    Raises:
        ModelError: ``out`` is not empty, or its drive has too little space.
        StorageError: writing failed.
        ValueError: a block holds a name unknown to the model, or only some of the parameters that are stored as one.
    """
    _refuse_unfit(out, checkpoint, dtype)
    partial = out.parent / f".{out.name}.{secrets.token_hex(4)}.partial"
    try:
        partial.mkdir(parents=True)
        shards = _Shards(partial)
        written: set[str] = set()
        for block in blocks:
            written.update(block)
            shards.write(_as_stored(block, checkpoint, dtype))
        for tensors in checkpoint.untrained(written, dtype):
            shards.write(tensors)
        shards.finish()
        write_config(checkpoint.path, partial, str(dtype).removeprefix("torch."), type(checkpoint.model).__name__)
        copy_companions(checkpoint.path, partial)
        sync_tree(partial)
        partial.replace(out)
        sync_names(out.parent)
    except OSError as error:
        _discard(partial)
        if isinstance(error, StorageError):
            raise
        raise StorageError(
            error.errno or 0, f"{out}: cannot be written: {error.strerror or error}", str(out)
        ) from error
    except BaseException:
        _discard(partial)
        raise


@define
class _Shards:
    """Files of tensors, whose final names are known once their number is."""

    directory: Path
    _tensors_of: list[list[str]] = field(factory=list, init=False)
    _total_bytes: int = field(default=0, init=False)

    def write(self, tensors: dict[str, torch.Tensor]) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        if not tensors:
            return
        try:
            save_file(tensors, self._path(len(self._tensors_of)), metadata={"format": "pt"})
        except SafetensorError as error:
            raise StorageError(
                errno.EIO, f"{self.directory}: cannot be written: {error}", str(self.directory)
            ) from error
        self._tensors_of.append(list(tensors))
        self._total_bytes += sum(tensor.nbytes for tensor in tensors.values())

    def finish(self) -> None:
        count = len(self._tensors_of)
        if count == 1:
            self._path(0).rename(self.directory / SINGLE)
            return
        weight_map = {}
        for number, names in enumerate(self._tensors_of):
            file_name = f"model-{number + 1:05}-of-{count:05}.safetensors"
            self._path(number).rename(self.directory / file_name)
            weight_map.update(dict.fromkeys(names, file_name))
        index = {"metadata": {"total_size": self._total_bytes}, "weight_map": dict(sorted(weight_map.items()))}
        (self.directory / INDEX).write_text(json.dumps(index, indent=2) + "\n")

    def _path(self, number: int) -> Path:
        return self.directory / f"shard-{number:05}.safetensors"


def _refuse_unfit(out: Path, checkpoint: WeightSource, dtype: torch.dtype) -> None:
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ModelError(f"{out}: exists and is not an empty directory; give another place for the model")
    needed_bytes = dtype.itemsize * sum(parameter.numel() for parameter in checkpoint.model.parameters())
    place = next(parent for parent in out.absolute().parents if parent.is_dir())
    free_bytes = shutil.disk_usage(place).free
    if needed_bytes > free_bytes:
        raise ModelError(
            f"{out}: the model takes {format_bytes(needed_bytes)} and {place} has {format_bytes(free_bytes)} free; "
            f"free some, or give another place"
        )


def _as_stored(
    block: Mapping[str, torch.Tensor], checkpoint: WeightSource, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Turn a block's parameters into what a checkpoint of this kind holds: names, split experts, dtype."""
    from transformers.core_model_loading import revert_weight_conversion

    unknown = set(block) - {name for name, _ in checkpoint.model.named_parameters(remove_duplicate=False)}
    if unknown:
        raise ValueError(f"not parameters of the model: {sorted(unknown)}")
    tied_to = checkpoint.model.all_tied_weights_keys  # from the name that is left out of files to the one that is in
    stored = revert_weight_conversion(
        checkpoint.model, {tied_to.get(name, name): tensor for name, tensor in block.items()}
    )
    return {name: tensor.to(dtype).contiguous() for name, tensor in stored.items()}


def _discard(partial: Path) -> None:
    """Remove what this call wrote: its name is this call's own."""
    shutil.rmtree(partial, ignore_errors=True)
