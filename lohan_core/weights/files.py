"""The safetensors files of a model directory: which tensor is where, and reading one."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lohan_core.errors import ModelError

if TYPE_CHECKING:
    import torch

__all__ = ["INDEX", "SINGLE", "TensorFiles", "shorten"]

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SAMPLE_BYTES = 1024


class TensorFiles:
    """The tensors of a model directory by name, in one file or in the shards that an index lists."""

    def __init__(self, directory: Path) -> None:
        """Find out which file holds which tensor; no tensor is read.

        Raises:
            ModelError: there are no safetensors, or a file is missing or damaged.
        """
        self.directory = directory
        if (directory / SINGLE).is_file():
            self._file_of = dict.fromkeys(self._names_in(SINGLE), SINGLE)
        elif (directory / INDEX).is_file():
            self._file_of = self._read_index()
        else:
            raise ModelError(_why_no_weights(directory))

    @property
    def names(self) -> list[str]:
        """Every tensor's name."""
        return list(self._file_of)

    def load(self, name: str) -> torch.Tensor:
        """Read one tensor into memory, in the dtype of its file.

        The file is opened anew each time: a mapping that stayed open would count every page read so far as resident.

        Raises:
            ModelError: the file is damaged.
        """
        from safetensors import SafetensorError, safe_open

        path = self.directory / self._file_of[name]
        try:
            with safe_open(path, framework="pt") as file:
                tensor: torch.Tensor = file.get_tensor(name)
                return tensor
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path}: tensor {name!r} cannot be read: {error}; fetch the file again") from error

    def fingerprint(self) -> str:
        """Digest of every tensor's name, type, shape and first values, so that gigabytes need not be read.

        Weights that differ only behind those values are not told apart. How they are divided over files does not
        matter.

        Raises:
            ModelError: a file is damaged.
        """
        samples = sorted(sample for name in set(self._file_of.values()) for sample in self._samples_in(name))
        return hashlib.blake2b(repr(samples).encode(), digest_size=8).hexdigest()

    def _samples_in(self, file_name: str) -> Iterator[tuple[str, str, tuple[int, ...], bytes]]:
        path = self.directory / file_name
        try:
            with path.open("rb") as file:
                (header_bytes,) = struct.unpack("<Q", file.read(8))
                header = json.loads(file.read(header_bytes))
                for name, entry in header.items():
                    if name != "__metadata__":
                        start, stop = entry["data_offsets"]
                        file.seek(8 + header_bytes + start)
                        yield name, entry["dtype"], tuple(entry["shape"]), file.read(min(stop - start, SAMPLE_BYTES))
        except (OSError, ValueError, KeyError, struct.error) as error:
            raise ModelError(f"{path}: not a whole safetensors file: {error!r}; fetch it again") from error

    def _names_in(self, file_name: str) -> list[str]:
        from safetensors import SafetensorError, safe_open

        path = self.directory / file_name
        try:
            with safe_open(path, framework="pt") as file:
                return list(file.keys())
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path}: not a whole safetensors file: {error}; fetch it again") from error

    def _read_index(self) -> dict[str, str]:
        path = self.directory / INDEX
        try:
            weight_map = json.loads(path.read_text())["weight_map"]
            file_of = {str(name): str(file_name) for name, file_name in weight_map.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{path}: not an index of safetensors files: {error!r}; fetch it again") from error
        for file_name in sorted(set(file_of.values())):
            if Path(file_name).name != file_name:
                raise ModelError(f"{path}: names the file {file_name!r}, which is not in its own directory")
            missing = {name for name, where in file_of.items() if where == file_name} - set(self._names_in(file_name))
            if missing:
                raise ModelError(f"{self.directory / file_name}: lacks {shorten(missing)}, which {INDEX} says it holds")
        return file_of


def _why_no_weights(directory: Path) -> str:
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in directory.glob(pattern))
    if pickles:
        return (
            f"{directory}: weights are in {pickles[0]}, which is pickle and may run code; convert them where that does "
            f"no harm: AutoModelForCausalLM.from_pretrained(path).save_pretrained(new_path) writes safetensors"
        )
    return f"{directory}: has a config but no weights ({SINGLE} or {INDEX}); fetch them, or save a model there first"


def shorten(names: Iterable[str]) -> str:
    """List the first few of ``names`` for a message."""
    listed = sorted(names)
    shown = ", ".join(listed[:5])
    return shown if len(listed) <= 5 else f"{shown} and {len(listed) - 5} more"
