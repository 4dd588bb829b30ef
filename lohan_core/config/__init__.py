"""The config file: YAML sections read into frozen attrs classes, strictly, and written back."""

from lohan_core.config.dump import dump_config
from lohan_core.config.load import config_from_mapping, load_config
from lohan_core.config.sections import (
    BackendChoice,
    ComputeDtype,
    Config,
    DataConfig,
    Durability,
    FirstWeights,
    MemoryConfig,
    ModelConfig,
    RunConfig,
)

__all__ = [
    "BackendChoice",
    "ComputeDtype",
    "Config",
    "DataConfig",
    "Durability",
    "FirstWeights",
    "MemoryConfig",
    "ModelConfig",
    "RunConfig",
    "config_from_mapping",
    "dump_config",
    "load_config",
]
