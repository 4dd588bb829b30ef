"""Weights in and out: safetensors by the block, never a whole model in memory."""

from lohan_core.weights.checkpoint import Checkpoint
from lohan_core.weights.export import write_model

__all__ = ["Checkpoint", "write_model"]
