"""The config of a run. It imports no torch, so that a misspelt key is answered at once."""

from rmfast.config.config import Config
from rmfast.config.load import config_help, known_keys, load_config, read_denoise, split_arguments
from rmfast.config.sections import DataConfig, DenoiseConfig, ModelConfig, OptimConfig, ParallelConfig

__all__ = [
    "Config",
    "DataConfig",
    "DenoiseConfig",
    "ModelConfig",
    "OptimConfig",
    "ParallelConfig",
    "config_help",
    "known_keys",
    "load_config",
    "read_denoise",
    "split_arguments",
]
