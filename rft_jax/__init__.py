"""RFT and Online RFT for language models in JAX (DeepSeekMath, arXiv 2402.03300, section 5.2).

Use it as `import rft_jax as rj` (docs/api.md). Every name is loaded when it is first asked for.
"""

# ruff: noqa: F405

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from rft_jax.commands.policy import open_policy
    from rft_jax.commands.report import read_metrics
    from rft_jax.commands.run import run
    from rft_jax.commands.verify import verify
    from rft_jax.config import *  # noqa: F403
    from rft_jax.config.experiment import load as load_experiment
    from rft_jax.errors import UserError
    from rft_jax.types import Question

_HOMES = {
    "Question": ("types", "Question"),
    "UserError": ("errors", "UserError"),
    "load_experiment": ("config.experiment", "load"),
    "open_policy": ("commands.policy", "open_policy"),
    "read_metrics": ("commands.report", "read_metrics"),
    "run": ("commands.run", "run"),
    "verify": ("commands.verify", "verify"),
}
"""(module, name in it) of what is given beside the config's sections."""

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
    "Question",
    "RefillConfig",
    "ReplayConfig",
    "RolloutConfig",
    "ScheduleConfig",
    "SelectionConfig",
    "Study",
    "TokenizerConfig",
    "UpdateConfig",
    "UserError",
    "VerificationConfig",
    "load_experiment",
    "open_policy",
    "read_metrics",
    "run",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, inner = _HOMES.get(name, ("config", name))
    value = getattr(importlib.import_module(f"{__name__}.{module}"), inner)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
