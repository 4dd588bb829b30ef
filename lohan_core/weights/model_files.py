"""What a model directory holds beside weights: its config, tokenizer, chat template, generation config, own code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

__all__ = ["copy_companions", "write_config"]

COMPANION_SUFFIXES = {".json", ".txt", ".model", ".jinja", ".tiktoken", ".vocab", ".bpe", ".py"}
COMPANION_NAMES = {"LICENSE", "NOTICE", "additional_chat_templates"}


def copy_companions(source: Path, destination: Path) -> None:
    """Copy tokenizer, chat template, generation config, licence and the model's own code; not weights, not config."""
    for path in sorted(source.iterdir()):
        if path.name == "config.json" or path.name.endswith(".index.json"):
            continue
        if path.name in COMPANION_NAMES and path.is_dir():
            shutil.copytree(path, destination / path.name)
        elif path.is_file() and (path.suffix in COMPANION_SUFFIXES or path.name in COMPANION_NAMES):
            shutil.copyfile(path, destination / path.name)


def write_config(source: Path, destination: Path, dtype: str, architecture: str) -> None:
    """Write the source's config.json with the dtype and the class of the weights beside it; all else stays."""
    config = json.loads((source / "config.json").read_text())
    _set_dtype(config, dtype)
    config["dtype"] = dtype
    config["architectures"] = [architecture]
    (destination / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _set_dtype(config: dict[str, Any], dtype: str) -> None:
    """Replace every dtype, those of nested configs included; ``torch_dtype`` is the key's older name."""
    config.pop("torch_dtype", None)
    if "dtype" in config:
        config["dtype"] = dtype
    for value in config.values():
        if isinstance(value, dict):
            _set_dtype(value, dtype)
