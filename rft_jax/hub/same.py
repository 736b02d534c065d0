"""Whether two ModelConfigs state the same function of the same parameters."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from rft_jax.config import ModelConfig
from rft_jax.errors import ConfigError
from rft_jax.hub.families import model_config
from rft_jax.hub.values import Raw

FREE = ("compute_dtype", "attention", "remat")
"""Fields of how the function is computed."""


def differences(config: ModelConfig, other: ModelConfig) -> tuple[str, ...]:
    """Names of the fields by which they state another function."""
    layers = max(config.num_layers, other.num_layers)
    ours, theirs = _one_spelling(config, layers), _one_spelling(other, layers)
    return tuple(name for name in ours if ours[name] != theirs[name])


def _one_spelling(config: ModelConfig, layers: int) -> dict[str, Any]:
    """The fields without FREE, with one spelling for each function."""
    values = {f.name: getattr(config, f.name) for f in fields(config) if f.name not in FREE}
    if config.attention_scalar == config.head_dim:
        values["attention_scalar"] = 0
    full = [config.sees_all(layer) for layer in range(layers)]
    if all(full):
        return values | {"sliding_window": 0, "global_every": 0, "local_rope_theta": 0.0}
    if not any(full):
        values["global_every"] = 0
    if config.rope_scaling == "none":
        values["local_rope_theta"] = config.local_rope_theta or config.rope_theta
    return values


def check_same(config: ModelConfig, raw: Raw, where: str = "config.json") -> None:
    """Raise ConfigError, naming every field by which `config`, its adapters apart, differs from a
    model's config.json.

    where: the file `raw` was read from. Raises ModelError when it cannot be served at all.
    """
    theirs = model_config(raw, where)
    apart = differences(config.without_adapters(), theirs)
    if apart:
        listed = ", ".join(
            f"model.{name} is {getattr(config, name)}, expected {getattr(theirs, name)}"
            for name in apart
        )
        raise ConfigError(
            f"{where} states another model: {listed}; take the settings from it with "
            "rft_jax.hub.families.model_of."
        )
