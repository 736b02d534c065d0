"""config.json of models that never had one: the same function comes back, in both readers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from published import PUBLISHED
from reference_models import transformers

from rft_jax.config import ModelConfig
from rft_jax.errors import ModelError
from rft_jax.hub.families import model_config
from rft_jax.hub.raw_config import generation_config, raw_config_of

IDS: dict[str, Any] = {"max_positions": 64, "eos_ids": [2], "bos_id": 1, "pad_id": 0}

GEMMA = {"norm_offset": True, "post_norms": True, "scale_embeddings": True}
WINDOWS = st.sampled_from([{}, {"sliding_window": 8}, {"sliding_window": 8, "global_every": 2}])
SCALINGS = st.sampled_from(
    [
        {},
        {"rope_scaling": "linear", "rope_factor": 4.0},
        {
            "rope_scaling": "llama3",
            "rope_factor": 8.0,
            "rope_original_positions": 32,
            "rope_high_turns": 3.0,
        },
    ]
)
SWITCHES = st.sampled_from(
    [
        {},
        {"qkv_bias": True},
        {"qk_norm": True},
        {**GEMMA, "attention_scalar": 20, "attention_softcap": 5.0},
        {**GEMMA, "qk_norm": True, "local_rope_theta": 7.0, "final_softcap": 3.0},
    ]
)
FREELY = st.fixed_dictionaries(
    {
        "tie_embeddings": st.booleans(),
        "activation": st.sampled_from(["silu", "gelu_tanh"]),
        "norm_eps": st.sampled_from([1e-6, 1e-5]),
        "num_heads": st.sampled_from([2, 4]),
        "num_kv_heads": st.sampled_from([1, 2]),
        "head_dim": st.sampled_from([6, 10]),
        "rope_theta": st.sampled_from([10_000.0, 500.0]),
    }
)


@st.composite
def models(draw: st.DrawFn) -> dict[str, Any]:
    """Fields of models that some family can express."""
    fields = draw(FREELY) | draw(SWITCHES) | draw(WINDOWS) | draw(SCALINGS)
    if not fields.get("sliding_window"):
        fields.pop("local_rope_theta", None)
    elif fields.get("qk_norm") and fields.get("norm_offset") and "local_rope_theta" not in fields:
        fields["local_rope_theta"] = 7.0
    if not any(fields.get(name) for name in ("qkv_bias", "qk_norm", "norm_offset")):
        fields.pop("global_every", None)  # plain models have a window in all layers or none
        fields.pop("layer_types", None)
    return {"num_layers": 4, "d_model": 24, "mlp_dim": 40, "vocab_size": 96, **fields}


@given(models())
def test_the_same_model_comes_back(fields: dict[str, Any]) -> None:
    config = ModelConfig(**fields)
    raw = raw_config_of(config, **IDS)
    assert config.differences(model_config(raw)) == ()


@given(models())
def test_transformers_reads_the_same_model(fields: dict[str, Any]) -> None:
    config = ModelConfig(**fields)
    raw = raw_config_of(config, **IDS)
    theirs = transformers.AutoConfig.for_model(**raw).to_dict()
    assert config.differences(model_config(theirs)) == ()
    kept = ("max_position_embeddings", "eos_token_id", "bos_token_id", "pad_token_id")
    assert [theirs[key] for key in kept] == [64, 2, 1, 0]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_keep_their_family(name: str) -> None:
    config = model_config(PUBLISHED[name].raw)
    raw = raw_config_of(config, **IDS)
    assert config.differences(model_config(raw)) == ()
    theirs = PUBLISHED[name].raw["model_type"]
    # Without its window a Mistral is a Llama.
    plain = theirs == "mistral" and not config.sliding_window
    assert raw["model_type"] == ("llama" if plain else theirs)


@pytest.mark.parametrize(
    ("switches", "said"),
    [
        ({"qkv_bias": True, "qk_norm": True}, "qwen2 comes closest and has no model.qk_norm=True"),
        ({"post_norms": True}, "llama comes closest and has no model.post_norms=True"),
        ({"final_softcap": 2.0}, "llama comes closest and has no model.final_softcap=2.0"),
        ({"sliding_window": 2, "global_every": 2}, "has no model."),
    ],
)
def test_what_no_family_has(switches: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match="no published family can express") as error:
        raw_config_of(ModelConfig(vocab_size=96, **switches), **IDS)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_the_vocabulary_must_be_known() -> None:
    with pytest.raises(ModelError, match="vocab_size is 0"):
        raw_config_of(ModelConfig(), **IDS)
    raw = raw_config_of(replace(ModelConfig(), vocab_size=96), **IDS)
    assert raw["model_type"] == "llama"


@pytest.mark.parametrize(("eos_ids", "written"), [([7], 7), ([7, 9], [7, 9])])
def test_generation_config(eos_ids: list[int], written: object) -> None:
    theirs = {"temperature": 0.6, "eos_token_id": 1, "pad_token_id": 5}
    ours = generation_config(theirs, eos_ids, 3, None)
    assert ours == {
        "temperature": 0.6,
        "bos_token_id": 3,
        "eos_token_id": written,
        "pad_token_id": None,
    }
    assert theirs["eos_token_id"] == 1
    read = transformers.GenerationConfig.from_dict(dict(ours))
    assert (read.eos_token_id, read.bos_token_id, read.temperature) == (written, 3, 0.6)


def test_an_output_must_be_able_to_end() -> None:
    with pytest.raises(ModelError, match="eos_ids is empty"):
        generation_config({}, [], None, None)
