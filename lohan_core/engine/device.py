"""The device that computes, by the name that a config gives it."""

from __future__ import annotations

import torch

from lohan_core.errors import ConfigError

__all__ = ["resolve_device"]


def resolve_device(name: str) -> torch.device:
    """Find the device that computes.

    Raises:
        ConfigError: it is a CUDA device that this machine has not.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type != "cuda":
        return device
    if not torch.cuda.is_available():
        raise ConfigError(f"run.device: {name}: torch sees no CUDA device here; set run.device: cpu")
    index = torch.cuda.current_device() if ":" not in name else device.index
    if index >= torch.cuda.device_count():
        raise ConfigError(f"run.device: {name}: this machine has {torch.cuda.device_count()} CUDA devices")
    return torch.device("cuda", index)
