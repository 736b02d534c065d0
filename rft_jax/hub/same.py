"""Whether two ModelConfigs state the same function of the same parameters."""

from __future__ import annotations

from rft_jax.config import ModelConfig
from rft_jax.errors import ConfigError
from rft_jax.hub.families import model_config
from rft_jax.hub.values import Raw


def check_same(config: ModelConfig, raw: Raw, where: str = "config.json") -> None:
    """Raise ConfigError, naming every field by which `config`, its adapters apart, differs from a
    model's config.json.

    where: the file `raw` was read from. Raises ModelError when it cannot be served at all.
    """
    theirs = model_config(raw, where)
    apart = config.without_adapters().differences(theirs)
    if apart:
        listed = ", ".join(
            f"model.{name} is {getattr(config, name)}, expected {getattr(theirs, name)}"
            for name in apart
        )
        raise ConfigError(
            f"{where} states another model: {listed}; take the settings from it with "
            "rft_jax.hub.families.model_of."
        )
