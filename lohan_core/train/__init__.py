"""Fine-tuning from a config file: data, learning rate, metrics, evaluation, stopping and resuming around the engine."""

from lohan_core.train.loop import train

__all__ = ["train"]
