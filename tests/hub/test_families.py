"""config.json as a ModelConfig: published files to the letter, and no silent change of function."""

from __future__ import annotations

import contextlib
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import reference_models
from published import PUBLISHED
from reference_models import transformers

from rft_jax.config import ModelConfig
from rft_jax.errors import ModelError
from rft_jax.hub.families import FAMILIES, model_config, model_of
from rft_jax.hub.folder import raw_config

LLAMA = PUBLISHED["Llama-2-7b-hf"].raw
QWEN2 = PUBLISHED["Qwen2.5-0.5B"].raw
GEMMA2 = PUBLISHED["gemma-2-2b"].raw
GEMMA3 = PUBLISHED["gemma-3-1b-pt"].raw

FULL, SLIDING = "full_attention", "sliding_attention"


def refusal(raw: dict[str, Any]) -> str:
    """The one line of the error that a config.json raises."""
    with pytest.raises(ModelError) as error:
        model_config(raw)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("config.json: ")
    return str(error.value)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files(name: str) -> None:
    published = PUBLISHED[name]
    assert model_config(published.raw) == ModelConfig(**published.expected)


@pytest.mark.parametrize("name", PUBLISHED)
def test_both_formats_say_the_same(name: str) -> None:
    """transformers reads the published format and writes its own."""
    raw = PUBLISHED[name].raw
    config = transformers.AutoConfig.for_model(**raw)
    rewritten = json.loads(config.to_json_string())
    assert "rope_theta" not in rewritten
    assert model_config(rewritten) == model_config(raw)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.model_type)
def test_missing_keys_have_the_defaults_of_transformers(family: Any) -> None:
    sizes = {
        "vocab_size": 96,
        "hidden_size": 256,
        "intermediate_size": 40,
        "num_hidden_layers": 12,
        "num_attention_heads": 32,
    }
    raw = {"model_type": family.model_type, **sizes}
    complete = json.loads(transformers.AutoConfig.for_model(**raw).to_json_string())
    # transformers leaves out what all its models have by default.
    complete.setdefault("tie_word_embeddings", True)
    assert model_config(raw) == model_config(complete)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (LLAMA | {"num_key_value_heads": None}, {"num_kv_heads": 32}),
        (LLAMA | {"head_dim": 64}, {"head_dim": 64}),
        (LLAMA | {"hidden_act": "gelu_pytorch_tanh"}, {"activation": "gelu_tanh"}),
        (LLAMA | {"sliding_window": 4096}, {"sliding_window": 0}),  # Llama reads no such key
        (
            LLAMA | {"rope_scaling": {"type": "linear", "factor": 2}},
            {"rope_scaling": "linear", "rope_factor": 2.0},
        ),
        (LLAMA | {"rope_scaling": {"type": "linear", "factor": 1.0}}, {"rope_scaling": "none"}),
        (
            LLAMA | {"rope_parameters": {"rope_theta": 5.0, "rope_type": "default"}},
            {"rope_theta": 5.0},
        ),
        (GEMMA2 | {"query_pre_attn_scalar": 144}, {"attention_scalar": 144}),
        (GEMMA2 | {"attn_logit_softcapping": None}, {"attention_softcap": 0.0}),
        # Its class knows no pattern but its own.
        (GEMMA2 | {"sliding_window_pattern": 3}, {"global_every": 2}),
        (GEMMA2 | {"sliding_window": None}, {"sliding_window": 0, "global_every": 0}),
        (GEMMA3 | {"sliding_window_pattern": 3}, {"global_every": 3}),
        (GEMMA3 | {"num_hidden_layers": 5}, {"sliding_window": 512, "global_every": 0}),
        (
            GEMMA3 | {"layer_types": [FULL] * 26},
            {"sliding_window": 0, "local_rope_theta": 0.0, "rope_theta": 1e6},
        ),
        (
            GEMMA3 | {"rope_scaling": {"rope_type": "linear", "factor": 8.0}},
            {"rope_scaling": "linear", "rope_factor": 8.0, "local_rope_theta": 1e4},
        ),
        (QWEN2 | {"use_sliding_window": True}, {"sliding_window": 0}),  # no layer is beyond 24
        (
            QWEN2 | {"use_sliding_window": True, "max_window_layers": 0},
            {"sliding_window": 32768, "global_every": 0},
        ),
        (
            QWEN2 | {"use_sliding_window": True, "layer_types": [SLIDING, SLIDING, FULL] * 8},
            {"sliding_window": 32768, "global_every": 3},
        ),
        (QWEN2 | {"layer_types": [SLIDING, FULL] * 12}, {"sliding_window": 0}),
        (
            QWEN2 | {"use_sliding_window": True, "max_window_layers": 2, "num_hidden_layers": 4},
            {"sliding_window": 32768, "global_every": 0, "layer_types": "ffss"},
        ),
        (
            GEMMA3 | {"layer_types": [SLIDING, FULL, FULL, FULL], "num_hidden_layers": 4},
            {"global_every": 0, "layer_types": "sfff"},
        ),
    ],
)
def test_keys_of_families(raw: dict[str, Any], expected: dict[str, Any]) -> None:
    config = asdict(model_config(raw))
    assert {name: config[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (LLAMA | {"attention_bias": True}, "attention_bias is True, and False is expected"),
        (LLAMA | {"mlp_bias": True}, "mlp_bias is True"),
        (LLAMA | {"attention_dropout": 0.1}, "attention_dropout is 0.1"),
        (LLAMA | {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        (LLAMA | {"quantization_config": {"bits": 4}}, "quantization_config is {'bits': 4}"),
        (LLAMA | {"hidden_act": "relu"}, "hidden_act is 'relu'"),
        (GEMMA2 | {"hidden_activation": "gelu"}, "hidden_activation is 'gelu'"),
        (GEMMA3 | {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        (LLAMA | {"rope_scaling": {"type": "yarn", "factor": 2}}, "type is 'yarn', and 'default'"),
        (LLAMA | {"rope_scaling": {"rope_type": "dynamic"}}, "rope_type is 'dynamic'"),
        (LLAMA | {"rope_scaling": {"rope_type": "linear"}}, "factor is missing"),
        (LLAMA | {"rope_scaling": {"rope_type": "linear", "factor": 0.5}}, "rope_factor is 0.5"),
        (LLAMA | {"rope_scaling": "linear"}, "rope_scaling is 'linear', and an object"),
        (
            LLAMA | {"rope_parameters": {"partial_rotary_factor": 0.25}},
            "partial_rotary_factor is 0.25",
        ),
        (
            LLAMA | {"rope_scaling": {"type": "linear", "factor": 2}, "rope_parameters": {"a": 1}},
            "are both given",
        ),
        (LLAMA | {"rope_parameters": {FULL: {}}}, "rope_parameters.full_attention is {}"),
        (
            GEMMA3 | {"rope_parameters": {SLIDING: {"rope_type": "linear", "factor": 2.0}}},
            "rope_parameters.sliding_attention is {'rope_type': 'linear'",
        ),
        (LLAMA | {"hidden_size": 4095}, "hidden_size is 4095, and a multiple"),
        (LLAMA | {"hidden_size": "4096"}, "hidden_size is '4096', and a whole number"),
        (LLAMA | {"hidden_size": 40.5}, "hidden_size is 40.5, and a whole number"),
        (LLAMA | {"num_key_value_heads": 5}, "model.num_kv_heads is 5"),
        (LLAMA | {"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no', and true or false"),
        (LLAMA | {"rms_norm_eps": float("nan")}, "rms_norm_eps is nan, and a finite number"),
        ({k: v for k, v in LLAMA.items() if k != "vocab_size"}, "vocab_size is missing"),
        (LLAMA | {"vocab_size": 0}, "vocab_size is 0, and a positive number"),
        (LLAMA | {"num_hidden_layers": 10**9}, "model.num_layers is 1000000000: it must be at "),
        (QWEN2 | {"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, and at most"),
        (LLAMA | {"hidden_size": 2**40}, "model.d_model is 1099511627776: it must be at most"),
        (LLAMA | {"rms_norm_eps": 0}, "model.norm_eps is 0.0: it must be at least"),
        (LLAMA | {"model_type": "mixtral"}, "model_type is 'mixtral', and these can be served: "),
        (LLAMA | {"model_type": ["llama"]}, "model_type is ['llama'], and these can be served: "),
        ({}, "model_type is None, and these can be served: llama, mistral, qwen2, qwen3, gemma2"),
        (LLAMA | {"architectures": ["LlamaForSequenceClassification"]}, "architectures is ['Ll"),
        (
            {"model_type": "llava", "text_config": {"model_type": "llama"}},
            "model_type is 'llava', a model of more than text",
        ),
        (
            {
                "model_type": "gemma3",
                "architectures": ["Gemma3ForSequenceClassification"],
                "text_config": {"model_type": "gemma3_text"},
            },
            "model_type is 'gemma3', a model of more than text",
        ),
        (
            {"model_type": "gemma3", "text_config": {}, "quantization_config": {"bits": 4}},
            "quantization_config is {'bits': 4}",
        ),
        (GEMMA3 | {"layer_types": [FULL]}, "layer_types is ['full_attention'], and an entry for"),
        (GEMMA3 | {"layer_types": ["chunked_attention"] * 26}, "layer_types is ['chunked_att"),
    ],
)
def test_what_would_compute_another_function_is_refused(raw: dict[str, Any], said: str) -> None:
    assert said in refusal(raw)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.model_type)
@pytest.mark.parametrize(
    "value",
    [-1, 0, 1, 0.5, -0.0, True, "4", "", None, [], {}, [{}], 1e308, math.nan, math.inf, 10**400],
    ids=repr,
)
def test_any_value_of_any_key(family: Any, value: object) -> None:
    """Is a model, or one line."""
    raw = next(p.raw for p in PUBLISHED.values() if p.raw["model_type"] == family.model_type)
    for key in {**raw, **family.defaults, "layer_types": [], "rope_parameters": {}}:
        with contextlib.suppress(ModelError):
            model_config(raw | {key: value})
            continue
        assert refusal(raw | {key: value})


def test_the_text_half_of_a_model_that_sees_images(tmp_path: Path) -> None:
    """gemma-3-4b: its text_config leaves out what is its class's default."""
    text = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    raw = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "boi_token_index": 255999,
        "eos_token_id": [1, 106],
        "model_type": "gemma3",
        "text_config": text,
        "torch_dtype": "bfloat16",
        "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"},
    }
    (tmp_path / "config.json").write_text(json.dumps(raw))
    config = model_of(str(tmp_path))
    assert config == model_config(raw)
    theirs = json.loads(transformers.AutoConfig.for_model(**raw).to_json_string())["text_config"]
    assert config == model_config(theirs)
    assert (config.num_heads, config.vocab_size, config.rope_factor) == (8, 262_208, 8.0)
    assert raw_config(tmp_path) == text | {
        "architectures": ["Gemma3ForCausalLM"],
        "eos_token_id": [1, 106],
        "torch_dtype": "bfloat16",
    }


def test_changes() -> None:
    config = model_config(LLAMA, compute_dtype="bfloat16", remat="full")
    assert (config.compute_dtype, config.remat) == ("bfloat16", "full")
    with pytest.raises(TypeError, match="layers"):
        model_config(LLAMA, layers=3)


@pytest.mark.parametrize("prefix", ["", "hf:"])
def test_model_of_a_folder(tmp_path: Path, prefix: str) -> None:
    reference_models.save("gemma3", tmp_path)
    config = model_of(f"{prefix}{tmp_path}", compute_dtype="bfloat16")
    assert (config.d_model, config.compute_dtype) == (24, "bfloat16")


def test_model_of_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | {"mlp_bias": True}))
    with pytest.raises(ModelError, match=f"^{tmp_path}/config.json: mlp_bias is True"):
        model_of(str(tmp_path))
