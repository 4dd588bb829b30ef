"""Weights in and out: safetensors by the block, never a whole model in memory."""

from lohan_core.weights.checkpoint import Checkpoint
from lohan_core.weights.export import write_model
from lohan_core.weights.random import RandomWeights
from lohan_core.weights.source import WeightSource

__all__ = ["Checkpoint", "RandomWeights", "WeightSource", "write_model"]
