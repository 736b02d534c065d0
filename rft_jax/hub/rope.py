"""Rotary frequencies in config.json: in the keys of published models, or in `rope_parameters`, as
newer versions of transformers write them."""

from __future__ import annotations

from typing import Any

from rft_jax.config import ModelConfig
from rft_jax.errors import ModelError
from rft_jax.hub.values import Raw, number, one_of, refusal, whole

TYPES = {"default": "none", "linear": "linear", "llama3": "llama3"}
"""Types of scaling by their names in config.json."""


def read(raw: Raw, *, by_layer_type: bool) -> dict[str, Any]:
    """The rope fields of ModelConfig; local_rope_theta as for a model with a sliding window.

    raw: config.json with the family's defaults filled in; by_layer_type: layers with a sliding
    window have frequencies of their own (Gemma 3).
    """
    parameters = raw.get("rope_parameters")
    scaling = raw.get("rope_scaling")
    if parameters and scaling:
        raise ModelError(
            "config.json: rope_parameters and rope_scaling are both given, and may differ: remove "
            "one."
        )
    if not parameters:
        fields = _scaling({"rope_theta": raw["rope_theta"], **_object(scaling, "rope_scaling")})
        if by_layer_type:
            fields["local_rope_theta"] = float(number(raw, "rope_local_base_freq"))
        return fields
    parameters = _object(parameters, "rope_parameters")
    if not by_layer_type:
        return _scaling({"rope_theta": raw["rope_theta"], **parameters})
    full, sliding = (
        _object(parameters.get(name), f"rope_parameters.{name}")
        for name in ("full_attention", "sliding_attention")
    )
    local = _scaling({"rope_theta": raw["rope_local_base_freq"], **sliding})
    if local["rope_scaling"] != "none":
        raise refusal("rope_parameters.sliding_attention", sliding, "the rope_type default")
    fields = _scaling({"rope_theta": raw["rope_theta"], **full})
    return fields | {"local_rope_theta": local["rope_theta"]}


def _object(value: object, key: str) -> Raw:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise refusal(key, value, "an object")
    return value


def _scaling(parameters: Raw) -> dict[str, Any]:
    nested = [key for key, value in parameters.items() if isinstance(value, dict)]
    if nested:
        raise refusal(f"rope_parameters.{nested[0]}", parameters[nested[0]], "a number or a word")
    if parameters.get("partial_rotary_factor", 1) not in (None, 1):
        raise refusal("partial_rotary_factor", parameters["partial_rotary_factor"], "1")
    # Models from before transformers 4.43 say "type".
    name = "type" if "rope_type" not in parameters and "type" in parameters else "rope_type"
    kind = one_of({"rope_type": "default", **parameters}, name, TYPES)
    fields: dict[str, Any] = {"rope_theta": float(number(parameters, "rope_theta"))}
    factor = 1.0 if kind == "none" else float(number(parameters, "factor"))
    if factor == 1:  # nothing is scaled, whatever the type
        return fields | {"rope_scaling": "none"}
    fields |= {"rope_scaling": kind, "rope_factor": factor}
    if kind == "llama3":
        fields |= {
            "rope_original_positions": whole(parameters, "original_max_position_embeddings"),
            "rope_low_turns": float(number(parameters, "low_freq_factor")),
            "rope_high_turns": float(number(parameters, "high_freq_factor")),
        }
    return fields


def written(config: ModelConfig, *, by_layer_type: bool) -> dict[str, Any]:
    """The keys of config.json for the rope fields, as published models have them: every version of
    transformers reads those."""
    keys: dict[str, Any] = {"rope_theta": config.rope_theta, "rope_scaling": None}
    if by_layer_type:
        keys["rope_local_base_freq"] = config.local_rope_theta or config.rope_theta
    if config.rope_scaling != "none":
        keys["rope_scaling"] = {"rope_type": config.rope_scaling, "factor": config.rope_factor}
    if config.rope_scaling == "llama3":
        keys["rope_scaling"] |= {
            "low_freq_factor": config.rope_low_turns,
            "high_freq_factor": config.rope_high_turns,
            "original_max_position_embeddings": config.rope_original_positions,
        }
    return keys
