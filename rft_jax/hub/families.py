"""config.json of the families of models that can be served, as a ModelConfig.

A family is a row: its names, the defaults of keys that config.json may lack, and the switches that
hold for all of its models. Whatever would compute another function than a ModelConfig states is
refused by its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from rft_jax.config import ModelConfig
from rft_jax.errors import ConfigError, ModelError
from rft_jax.hub import rope, windows
from rft_jax.hub.folder import locate, raw_config
from rft_jax.hub.values import Raw, number, one_of, refusal, truth, whole

ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
"""Activations by their names in config.json."""

SOFTCAPS = {
    "attention_softcap": "attn_logit_softcapping",
    "final_softcap": "final_logit_softcapping",
}
"""Bounds of scores and logits: field of ModelConfig -> key of config.json."""


@dataclass(frozen=True)
class Family:
    """One `model_type`."""

    model_type: str
    architecture: str
    """The class that has a head for language modelling."""
    defaults: Mapping[str, Any]
    """Of keys that may be missing, as in the family's configuration class in transformers."""
    switches: Mapping[str, Any]
    """Fields of ModelConfig that are the same in all models of the family."""
    activation_key: str = "hidden_act"
    windows: bool = True
    """Reads sliding_window."""
    layer_types: bool = True
    """Reads layer_types."""

    @property
    def softcaps(self) -> bool:
        """Reads query_pre_attn_scalar and the bounds of scores and logits."""
        return "query_pre_attn_scalar" in self.defaults

    @property
    def local_rope(self) -> bool:
        """Layers with a sliding window have frequencies of their own."""
        return "rope_local_base_freq" in self.defaults


_DEFAULTS = {
    "num_key_value_heads": None,
    "head_dim": None,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "rope_theta": 10_000.0,
}
_LLAMA = _DEFAULTS | {"hidden_act": "silu"}
_QWEN = _LLAMA | {
    "num_key_value_heads": 32,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
_GEMMA = _DEFAULTS | {
    "num_key_value_heads": 4,
    "head_dim": 256,
    "tie_word_embeddings": True,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}
_GEMMA_SWITCHES = {"norm_offset": True, "post_norms": True, "scale_embeddings": True}

FAMILIES = (
    Family("llama", "LlamaForCausalLM", _LLAMA, {}, windows=False, layer_types=False),
    Family(
        "mistral",
        "MistralForCausalLM",
        _LLAMA | {"num_key_value_heads": 8, "sliding_window": 4096},
        {},
        layer_types=False,
    ),
    Family("qwen2", "Qwen2ForCausalLM", _QWEN, {"qkv_bias": True}),
    Family("qwen3", "Qwen3ForCausalLM", _QWEN | {"head_dim": 128}, {"qk_norm": True}),
    Family(
        "gemma2",
        "Gemma2ForCausalLM",
        _GEMMA
        | {
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
            "sliding_window_pattern": 2,
        },
        _GEMMA_SWITCHES,
        activation_key="hidden_activation",
    ),
    Family(
        "gemma3_text",
        "Gemma3ForCausalLM",
        _GEMMA
        | {
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "rope_theta": 1_000_000.0,
            "rope_local_base_freq": 10_000.0,
            "sliding_window_pattern": 6,
        },
        _GEMMA_SWITCHES | {"qk_norm": True},
        activation_key="hidden_activation",
    ),
)

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "attention_dropout": (0,),
    "hidden_dropout": (0,),
    "residual_dropout": (0,),
    "embd_pdrop": (0,),
    "resid_pdrop": (0,),
    "partial_rotary_factor": (1,),
    "use_bidirectional_attention": (False,),
    "original_max_position_embeddings": (),
    "quantization_config": (),
    "num_experts": (0,),
    "num_local_experts": (0,),
}
"""Keys that change the function, or its training, unless they are null or one of these values."""


def family_of(raw: Raw) -> Family:
    """The family of a config.json. Raises ModelError when it cannot be served."""
    kind = raw.get("model_type")
    served = ", ".join(family.model_type for family in FAMILIES)
    if "text_config" in raw or "vision_config" in raw:
        raise ModelError(
            f"config.json: model_type is {kind!r}, a model of more than text: choose a model of "
            f"text alone, of model_type {served}."
        )
    for family in FAMILIES:
        if family.model_type == kind:
            break
    else:
        raise ModelError(
            f"config.json: model_type is {kind!r}, and these can be served: {served}; choose "
            "another model."
        )
    architectures = raw.get("architectures")
    if architectures not in (None, [family.architecture]):
        raise refusal("architectures", architectures, f"[{family.architecture!r}]")
    return family


def model_config(raw: Raw, where: str = "config.json", **changes: Any) -> ModelConfig:
    """The ModelConfig of a config.json, with `changes`, such as compute_dtype="bfloat16".

    where: the file `raw` was read from. Raises ModelError, which names it and the key, for
    what cannot be served.
    """
    try:
        return replace(_model_config(raw), **changes)
    except ModelError as error:
        said = str(error).removeprefix("config.json")
        raise ModelError(f"{where}{said}") from error


def _model_config(raw: Raw) -> ModelConfig:
    family = family_of(raw)
    for key, neutral in NEUTRAL.items():
        found = raw.get(key)
        if found is not None and found not in neutral:
            expected = repr(neutral[0]) if neutral else "no such key"
            raise refusal(key, found, expected)
    if family.model_type == "gemma2":
        # Its class knows no such key: the order of its layers is fixed.
        raw = {key: value for key, value in raw.items() if key != "sliding_window_pattern"}
    try:
        return ModelConfig(**_fields(family, {**family.defaults, **raw}))
    except ConfigError as error:
        raise ModelError(f"config.json: {error}") from error


def _fields(family: Family, raw: Raw) -> dict[str, Any]:
    heads, width = whole(raw, "num_attention_heads"), whole(raw, "hidden_size")
    if raw["head_dim"] is None and (heads < 1 or width % heads):
        raise refusal("hidden_size", width, f"a multiple of num_attention_heads, {heads},")
    head_dim = width // heads if raw["head_dim"] is None else whole(raw, "head_dim")
    shared = raw["num_key_value_heads"] is None
    fields: dict[str, Any] = {
        "num_layers": whole(raw, "num_hidden_layers"),
        "d_model": width,
        "num_heads": heads,
        "num_kv_heads": heads if shared else whole(raw, "num_key_value_heads"),
        "head_dim": head_dim,
        "mlp_dim": whole(raw, "intermediate_size"),
        "vocab_size": whole(raw, "vocab_size"),
        "tie_embeddings": truth(raw, "tie_word_embeddings"),
        "norm_eps": float(number(raw, "rms_norm_eps")),
        "activation": one_of(raw, family.activation_key, ACTIVATIONS),
        **family.switches,
        **rope.read(raw, by_layer_type=family.local_rope),
    }
    if family.softcaps:
        scalar = whole(raw, "query_pre_attn_scalar")
        fields["attention_scalar"] = 0 if scalar == head_dim else scalar
        for field, key in SOFTCAPS.items():
            fields[field] = 0.0 if raw[key] is None else float(number(raw, key))
    if family.windows:
        listed = raw if family.layer_types else {**raw, "layer_types": None}
        fields |= windows.read(listed)
    if not fields.get("sliding_window"):
        fields.pop("local_rope_theta", None)
    return fields


def model_of(target: str, **changes: Any) -> ModelConfig:
    """The ModelConfig of a model named by a folder or `ORG/NAME[@REVISION]`, `hf:` before it or
    not, with `changes`: for experiment files. Downloads no weights."""
    folder = locate(target.removeprefix("hf:"), weights=False)
    return model_config(raw_config(folder), str(folder / "config.json"), **changes)
