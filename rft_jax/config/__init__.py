"""Every setting of a run, typed and frozen; experiment files import from here. Loads no jax."""

from rft_jax.config.method import Method
from rft_jax.config.run import (
    CheckpointConfig,
    Config,
    DataConfig,
    Denominator,
    EvaluationConfig,
    Experiment,
    MeshConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    PoolConfig,
    RefillConfig,
    RolloutConfig,
    SelectionConfig,
    TokenizerConfig,
    UpdateConfig,
    VerificationConfig,
)
from rft_jax.errors import ConfigError

__all__ = [
    "CheckpointConfig",
    "Config",
    "ConfigError",
    "DataConfig",
    "Denominator",
    "EvaluationConfig",
    "Experiment",
    "MeshConfig",
    "Method",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimizerConfig",
    "PoolConfig",
    "RefillConfig",
    "RolloutConfig",
    "SelectionConfig",
    "TokenizerConfig",
    "UpdateConfig",
    "VerificationConfig",
]
