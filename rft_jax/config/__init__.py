"""Every setting of a run, typed and frozen; experiment files import from here. Loads no jax."""

from rft_jax.config.alarms import AlarmsConfig
from rft_jax.config.data import DataConfig, TokenizerConfig
from rft_jax.config.machine import CheckpointConfig, MeshConfig
from rft_jax.config.method import Method
from rft_jax.config.model import ModelConfig
from rft_jax.config.run import Config, Experiment
from rft_jax.config.sampling import (
    PoolConfig,
    RefillConfig,
    ReplayConfig,
    RolloutConfig,
    SelectionConfig,
)
from rft_jax.config.schedule import CurriculumConfig, ScheduleConfig
from rft_jax.config.study import Study
from rft_jax.config.update import (
    CriticConfig,
    Denominator,
    ObjectiveConfig,
    OptimizerConfig,
    UpdateConfig,
)
from rft_jax.config.verification import EvaluationConfig, VerificationConfig
from rft_jax.errors import ConfigError

__all__ = [
    "AlarmsConfig",
    "CheckpointConfig",
    "Config",
    "ConfigError",
    "CriticConfig",
    "CurriculumConfig",
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
    "ReplayConfig",
    "RolloutConfig",
    "ScheduleConfig",
    "SelectionConfig",
    "Study",
    "TokenizerConfig",
    "UpdateConfig",
    "VerificationConfig",
]
