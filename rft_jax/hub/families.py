"""Reads config.json of the families of models that can be served, as a ModelConfig.

A family is a row: its names, the defaults of keys that config.json may lack, and the switches that
hold for all of its models. Whatever would compute another function than a ModelConfig states is
refused by its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from rft_jax.config import ModelConfig
from rft_jax.config.fields import FLOAT32_MAX
from rft_jax.config.model import MAX_LAYERS, order_of
from rft_jax.errors import ConfigError, ModelError
from rft_jax.hub.folder import locate, raw_config, text_half

Raw = Mapping[str, Any]
"""config.json, or an object in it."""

KEYS: dict[str, tuple[str, type]] = {
    "num_layers": ("num_hidden_layers", int),
    "d_model": ("hidden_size", int),
    "num_heads": ("num_attention_heads", int),
    "num_kv_heads": ("num_key_value_heads", int),
    "head_dim": ("head_dim", int),
    "mlp_dim": ("intermediate_size", int),
    "vocab_size": ("vocab_size", int),
    "tie_embeddings": ("tie_word_embeddings", bool),
    "norm_eps": ("rms_norm_eps", float),
}
"""Field of ModelConfig -> key of config.json and the type of its value, in every family."""

SOFTCAPS = {
    "attention_softcap": "attn_logit_softcapping",
    "final_softcap": "final_logit_softcapping",
}
"""Bounds of scores and logits: field of ModelConfig -> key of config.json, null for none."""

ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
SCALINGS = {"default": "none", "linear": "linear", "llama3": "llama3"}
"""Activations, and ways to scale rotary frequencies: name in config.json -> ours."""

FULL, SLIDING = "full_attention", "sliding_attention"
"""Types of layers in config.json."""


class Family(NamedTuple):
    """One `model_type`.

    architecture: the class that has a head for language modelling; defaults: of keys that may be
    missing, as in the family's configuration class in transformers, and of which the family reads
    some only if they are here; switches: fields of ModelConfig that all its models share.
    """

    model_type: str
    architecture: str
    defaults: Mapping[str, Any]
    switches: Mapping[str, Any]

    @property
    def activation_key(self) -> str:
        """The key of the MLP's activation."""
        return next(key for key in ("hidden_act", "hidden_activation") if key in self.defaults)

    @property
    def windows(self) -> bool:
        """Reads sliding_window."""
        return "sliding_window" in self.defaults

    @property
    def layer_types(self) -> bool:
        """Reads layer_types."""
        return not {"max_window_layers", "sliding_window_pattern"}.isdisjoint(self.defaults)

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
_MISTRAL = _LLAMA | {"num_key_value_heads": 8, "sliding_window": 4096}
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
_GEMMA2 = _GEMMA | {
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "sliding_window_pattern": 2,
}
_GEMMA3 = _GEMMA | {
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10_000.0,
    "sliding_window_pattern": 6,
    # Left out by the models that also see images.
    "vocab_size": 262_208,
    "num_attention_heads": 8,
}
_GEMMA_SWITCHES = {"norm_offset": True, "post_norms": True, "scale_embeddings": True}

FAMILIES = (
    Family("llama", "LlamaForCausalLM", _LLAMA, {}),
    Family("mistral", "MistralForCausalLM", _MISTRAL, {}),
    Family("qwen2", "Qwen2ForCausalLM", _QWEN, {"qkv_bias": True}),
    Family("qwen3", "Qwen3ForCausalLM", _QWEN | {"head_dim": 128}, {"qk_norm": True}),
    Family("gemma2", "Gemma2ForCausalLM", _GEMMA2, _GEMMA_SWITCHES),
    Family("gemma3_text", "Gemma3ForCausalLM", _GEMMA3, _GEMMA_SWITCHES | {"qk_norm": True}),
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

_NOUNS = {int: "a whole number", float: "a finite number", bool: "true or false"}


def model_of(target: str, **changes: Any) -> ModelConfig:
    """The ModelConfig of a published model, for experiment files. Downloads no weights.

    Args:
        target: a folder or `ORG/NAME[@REVISION]`, with or without `hf:` before it.
        changes: fields that differ from the model's, such as compute_dtype="bfloat16".
    """
    folder = locate(target.removeprefix("hf:"), weights=False)
    return model_config(raw_config(folder), str(folder / "config.json"), **changes)


def model_config(raw: Raw, where: str = "config.json", **changes: Any) -> ModelConfig:
    """The ModelConfig of a config.json.

    Args:
        raw: the content of the file.
        where: the file it was read from, for messages.
        changes: fields that differ from the file's, such as compute_dtype="bfloat16".

    Raises ModelError, which names file and key, for what cannot be served.
    """
    try:
        return replace(_model_config(text_half(raw)), **changes)
    except ModelError as error:
        raise ModelError(f"{where}{str(error).removeprefix('config.json')}") from error


def _family_of(raw: Raw) -> Family:
    kind = raw.get("model_type")
    served = {family.model_type: family for family in FAMILIES}
    if "text_config" in raw or "vision_config" in raw:
        raise ModelError(
            f"config.json: model_type is {kind!r}, a model of more than text: choose a text-only "
            f"model of model_type {', '.join(served)}, or a gemma3, whose text half is served."
        )
    if not isinstance(kind, str) or kind not in served:
        raise ModelError(
            f"config.json: model_type is {kind!r}, and these can be served: {', '.join(served)}; "
            "choose another model."
        )
    family = served[kind]
    if raw.get("architectures") not in (None, [family.architecture]):
        raise refusal("architectures", raw["architectures"], f"[{family.architecture!r}]")
    return family


def _model_config(raw: Raw) -> ModelConfig:
    family = _family_of(raw)
    for key, neutral in NEUTRAL.items():
        value = raw.get(key)
        if value is not None and value not in neutral:
            raise refusal(key, value, repr(neutral[0]) if neutral else "no such key")
    if family.model_type == "gemma2":
        # Its class knows no such key: the order of its layers is fixed.
        raw = {key: value for key, value in raw.items() if key != "sliding_window_pattern"}
    try:
        return ModelConfig(**_fields(family, {**family.defaults, **raw}))
    except ConfigError as error:
        raise ModelError(f"config.json: {error}") from error


def _fields(family: Family, raw: dict[str, Any]) -> dict[str, Any]:
    if read(raw, "vocab_size", int) < 1:  # 0 in a ModelConfig leaves it to the tokenizer
        raise refusal("vocab_size", raw["vocab_size"], "a positive number")
    heads, width = read(raw, "num_attention_heads", int), read(raw, "hidden_size", int)
    if raw["num_key_value_heads"] is None:
        raw["num_key_value_heads"] = heads
    if raw["head_dim"] is None:
        if heads < 1 or width % heads:
            raise refusal("hidden_size", width, f"a multiple of num_attention_heads, {heads},")
        raw["head_dim"] = width // heads
    fields: dict[str, Any] = {
        **{field: read(raw, key, kind) for field, (key, kind) in KEYS.items()},
        "activation": _one_of(raw, family.activation_key, ACTIVATIONS),
        **family.switches,
        **_rope(raw, by_layer_type=family.local_rope),
    }
    if family.softcaps:
        scalar = read(raw, "query_pre_attn_scalar", int)
        fields["attention_scalar"] = 0 if scalar == fields["head_dim"] else scalar
        for field, key in SOFTCAPS.items():
            fields[field] = 0.0 if raw[key] is None else read(raw, key, float)
    if family.windows:
        fields |= _windows(raw, raw.get("layer_types") if family.layer_types else None)
    if not fields.get("sliding_window"):
        fields.pop("local_rope_theta", None)
    return fields


def _rope(raw: Raw, *, by_layer_type: bool) -> dict[str, Any]:
    """The rope fields of ModelConfig; local_rope_theta as for a model with a sliding window.

    They stand in the keys of published models, or in rope_parameters, as newer versions of
    transformers write them, there by type of layer where the types differ (Gemma 3).
    """
    parameters, scaling = raw.get("rope_parameters"), raw.get("rope_scaling")
    if parameters and scaling:
        raise ModelError(
            "config.json: rope_parameters and rope_scaling are both given, and may differ: remove "
            "one."
        )
    named = _object(parameters, "rope_parameters")
    sliding: Raw = {}
    if not parameters:
        named = _object(scaling, "rope_scaling")
    elif by_layer_type:
        named, sliding = (
            _object(named.get(kind), f"rope_parameters.{kind}") for kind in (FULL, SLIDING)
        )
    fields = _scaling({"rope_theta": raw["rope_theta"], **named})
    if by_layer_type:
        local = _scaling({"rope_theta": raw["rope_local_base_freq"], **sliding})
        if local["rope_scaling"] != "none":
            raise refusal(f"rope_parameters.{SLIDING}", sliding, "the rope_type default")
        fields["local_rope_theta"] = local["rope_theta"]
    return fields


def _scaling(parameters: Raw) -> dict[str, Any]:
    for key, value in parameters.items():
        if isinstance(value, dict):
            raise refusal(f"rope_parameters.{key}", value, "a number or a word")
    if parameters.get("partial_rotary_factor", 1) not in (None, 1):
        raise refusal("partial_rotary_factor", parameters["partial_rotary_factor"], "1")
    # Models from before transformers 4.43 say "type".
    name = "type" if "rope_type" not in parameters and "type" in parameters else "rope_type"
    kind = _one_of({"rope_type": "default", **parameters}, name, SCALINGS)
    fields: dict[str, Any] = {"rope_theta": read(parameters, "rope_theta", float)}
    factor = 1.0 if kind == "none" else read(parameters, "factor", float)
    if factor == 1:  # nothing is scaled, whatever the type
        return fields | {"rope_scaling": "none"}
    fields |= {"rope_scaling": kind, "rope_factor": factor}
    if kind == "llama3":
        fields |= {
            "rope_original_positions": read(parameters, "original_max_position_embeddings", int),
            "rope_low_turns": read(parameters, "low_freq_factor", float),
            "rope_high_turns": read(parameters, "high_freq_factor", float),
        }
    return fields


def _windows(raw: Raw, types: object) -> dict[str, Any]:
    """The fields of ModelConfig on sliding windows. types: of the layers, None by a rule."""
    window, count = 0, read(raw, "num_hidden_layers", int)
    if count > MAX_LAYERS:
        raise refusal("num_hidden_layers", count, f"at most {MAX_LAYERS}")
    # Qwen has a window only if it says so.
    used = "use_sliding_window" not in raw or read(raw, "use_sliding_window", bool)
    if used and raw["sliding_window"] is not None:
        window = read(raw, "sliding_window", int)
    if types is None:
        types = _types_by_rule(raw, count)
    if not isinstance(types, list) or not all(kind in (FULL, SLIDING) for kind in types):
        raise refusal("layer_types", types, f"a list of {FULL} and {SLIDING}")
    if len(types) != count:
        raise refusal("layer_types", types, f"an entry for each of {count} layers")
    if not window or SLIDING not in types:
        return {"sliding_window": 0}
    return {"sliding_window": window, **order_of([kind == FULL for kind in types])}


def _types_by_rule(raw: Raw, count: int) -> list[str]:
    if "max_window_layers" in raw:  # Qwen: the first N layers have no window
        first = read(raw, "max_window_layers", int)
        return [SLIDING if layer >= first else FULL for layer in range(count)]
    # Gemma: every Nth is full; Mistral: none.
    every = read(raw, "sliding_window_pattern", int) if "sliding_window_pattern" in raw else 0
    return [SLIDING if not every or (i + 1) % every else FULL for i in range(count)]


def read(raw: Raw, key: str, kind: type) -> Any:
    """The int, float or bool of a key. Raises ModelError when it is missing or something else."""
    value = raw.get(key)
    if value is None:
        raise ModelError(
            f"config.json: {key} is missing, and {_NOUNS[kind]} is expected: copy or download it "
            "again."
        )
    # A bool is no number.
    number = type(value) in (int, float) and -FLOAT32_MAX <= value <= FLOAT32_MAX
    if not (type(value) is bool if kind is bool else number and value == kind(value)):
        raise refusal(key, value, _NOUNS[kind])
    return kind(value)


def _one_of(raw: Raw, key: str, known: Mapping[str, str]) -> str:
    value = raw.get(key)
    if not isinstance(value, str) or value not in known:
        raise refusal(key, value, " or ".join(map(repr, known)))
    return known[value]


def _object(value: object, key: str) -> Raw:
    if value is not None and not isinstance(value, dict):
        raise refusal(key, value, "an object")
    return value or {}


def refusal(key: str, value: object, expected: str) -> ModelError:
    """The error for a value that cannot be served."""
    shown = repr(value)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    return ModelError(
        f"config.json: {key} is {shown}, and {expected} is expected: choose another model."
    )
