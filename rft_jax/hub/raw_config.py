"""config.json and generation_config.json of a model that goes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rft_jax.config import ModelConfig
from rft_jax.errors import ModelError
from rft_jax.hub import rope, windows
from rft_jax.hub.families import ACTIVATIONS, FAMILIES, SOFTCAPS, Family, model_config


def raw_config_of(
    config: ModelConfig,
    *,
    max_positions: int,
    eos_ids: Sequence[int],
    bos_id: int | None,
    pad_id: int | None,
) -> dict[str, Any]:
    """config.json for a model that never had one, of the first family that can express it.

    max_positions: longest text it is meant for. Raises ModelError, naming the fields that no
    family has together, when there is none.
    """
    if not config.vocab_size:
        raise ModelError(
            "model.vocab_size is 0, and config.json states the size: give the tokenizer's."
        )
    closest: tuple[str, ...] = ()
    nearest = ""
    for family in FAMILIES:
        raw = _raw(family, config)
        apart = config.differences(model_config(raw))
        if not apart:
            ids = _special_ids(eos_ids, bos_id, pad_id)
            return raw | {"max_position_embeddings": max_positions} | ids
        if not nearest or len(apart) < len(closest):
            closest, nearest = apart, family.model_type
    found = ", ".join(f"model.{name}={getattr(config, name)}" for name in closest)
    raise ModelError(
        f"no published family can express this model: {nearest} comes closest and has no {found}; "
        "train with the switches of one family to use it elsewhere."
    )


def _raw(family: Family, config: ModelConfig) -> dict[str, Any]:
    """config.json for a model of the family, as near to `config` as the family can be."""
    raw: dict[str, Any] = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.d_model,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.mlp_dim,
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tie_embeddings,
        "rms_norm_eps": config.norm_eps,
        family.activation_key: {ours: key for key, ours in ACTIVATIONS.items()}[config.activation],
        **rope.written(config, by_layer_type=family.local_rope),
    }
    if family.softcaps:
        raw["query_pre_attn_scalar"] = config.attention_scalar or config.head_dim
        raw |= {key: getattr(config, field) or None for field, key in SOFTCAPS.items()}
    if family.windows:
        raw["sliding_window"] = config.sliding_window or None
        if "use_sliding_window" in family.defaults:
            raw["use_sliding_window"] = bool(config.sliding_window)
        if family.layer_types:
            raw["layer_types"] = windows.layer_types(config)
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
