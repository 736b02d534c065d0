"""config.json of a model that goes out, and whether two ModelConfigs state the same model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rft_jax.config import ModelConfig
from rft_jax.errors import ConfigError, ModelError
from rft_jax.hub.families import (
    ACTIVATIONS,
    FAMILIES,
    FULL,
    KEYS,
    SLIDING,
    SOFTCAPS,
    Family,
    Raw,
    model_config,
)


def check_same(config: ModelConfig, raw: Raw, where: str = "config.json") -> None:
    """Raise ConfigError, naming every field by which `config`, its adapters apart, differs from
    the model of a config.json, which was read from `where`; ModelError when it cannot be served.
    """
    theirs = model_config(raw, where)
    listed = ", ".join(
        f"model.{name} is {getattr(config, name)}, expected {getattr(theirs, name)}"
        for name in config.without_adapters().differences(theirs)
    )
    if listed:
        raise ConfigError(
            f"{where} states another model: {listed}; take the settings from it with "
            "rft_jax.hub.families.model_of."
        )


def raw_config_of(
    config: ModelConfig,
    *,
    max_positions: int,
    eos_ids: Sequence[int],
    bos_id: int | None,
    pad_id: int | None,
) -> dict[str, Any]:
    """config.json for a model that never had one, of the first family that can express it.

    Args:
        max_positions: longest text it is meant for, in tokens.
        eos_ids: that end an output; likewise bos_id and pad_id, None for none.

    Raises ModelError, naming the fields that no family has together, when there is none.
    """
    if not config.vocab_size:
        raise ModelError(
            "model.vocab_size is 0, and config.json states the size: give the tokenizer's."
        )
    misfits: dict[str, tuple[str, ...]] = {}
    for family in FAMILIES:
        raw = _raw(family, config)
        misfits[family.model_type] = config.differences(model_config(raw))
        if not misfits[family.model_type]:
            ids = _special_ids(eos_ids, bos_id, pad_id)
            return raw | {"max_position_embeddings": max_positions} | ids
    closest = min(misfits, key=lambda kind: len(misfits[kind]))
    listed = ", ".join(f"model.{name}={getattr(config, name)}" for name in misfits[closest])
    raise ModelError(
        f"no published family can express this model: {closest} comes closest and has no {listed}; "
        "train with the switches of one family to use it elsewhere."
    )


def _raw(family: Family, config: ModelConfig) -> dict[str, Any]:
    """config.json for a model of the family, as near to `config` as the family can be, in the keys
    of published models, which every version of transformers reads."""
    raw: dict[str, Any] = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        **{key: getattr(config, field) for field, (key, _) in KEYS.items()},
        family.activation_key: {ours: key for key, ours in ACTIVATIONS.items()}[config.activation],
        "rope_theta": config.rope_theta,
        "rope_scaling": None,
    }
    if config.rope_scaling != "none":
        raw["rope_scaling"] = {"rope_type": config.rope_scaling, "factor": config.rope_factor}
    if config.rope_scaling == "llama3":
        raw["rope_scaling"] |= {
            "low_freq_factor": config.rope_low_turns,
            "high_freq_factor": config.rope_high_turns,
            "original_max_position_embeddings": config.rope_original_positions,
        }
    if family.local_rope:
        raw["rope_local_base_freq"] = config.local_rope_theta or config.rope_theta
    if family.softcaps:
        raw["query_pre_attn_scalar"] = config.attention_scalar or config.head_dim
        raw |= {key: getattr(config, field) or None for field, key in SOFTCAPS.items()}
    if family.windows:
        raw["sliding_window"] = config.sliding_window or None
    if "use_sliding_window" in family.defaults:
        raw["use_sliding_window"] = bool(config.sliding_window)
    if family.layer_types:
        layers = range(config.num_layers)
        types = [FULL if config.sees_all(layer) else SLIDING for layer in layers]
        raw["layer_types"] = types
        if "max_window_layers" in family.defaults:  # what older versions of transformers read
            raw["max_window_layers"] = (*types, SLIDING).index(SLIDING)
    return raw


def _special_ids(eos_ids: Sequence[int], bos_id: int | None, pad_id: int | None) -> dict[str, Any]:
    """The ids as config.json and generation_config.json name them."""
    if not eos_ids:
        raise ModelError("eos_ids is empty: name the token that ends an output.")
    eos = eos_ids[0] if len(eos_ids) == 1 else list(eos_ids)
    return {"eos_token_id": eos, "bos_token_id": bos_id, "pad_token_id": pad_id}


def generation_config(
    raw: Mapping[str, Any], eos_ids: Sequence[int], bos_id: int | None, pad_id: int | None
) -> dict[str, Any]:
    """generation_config.json: that of the model a run began from ({}: none), with the run's own
    special ids."""
    return {**raw, **_special_ids(eos_ids, bos_id, pad_id)}
