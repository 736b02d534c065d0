"""Whether two settings of a model state one function."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
from published import PUBLISHED

from rft_jax.config import ModelConfig
from rft_jax.config.model import COMPUTATION_FIELDS
from rft_jax.errors import ConfigError, ModelError
from rft_jax.hub.families import model_config
from rft_jax.hub.raw_config import check_same

RAW = PUBLISHED["gemma-3-1b-pt"].raw
CONFIG = model_config(RAW)

BASE = ModelConfig(
    num_heads=4,
    num_kv_heads=2,
    attention_scalar=5,
    sliding_window=8,
    global_every=2,
    local_rope_theta=5.0,
    rope_scaling="llama3",
    rope_factor=2.0,
    rope_original_positions=8,
)
"""Every field of it acts."""

OTHER: dict[str, Any] = {
    "num_heads": 8,
    "num_kv_heads": 4,
    "head_dim": 16,
    "activation": "gelu_tanh",
    "rope_high_turns": 3.0,
    "compute_dtype": "bfloat16",
    "attention": "xla",
    "remat": "full",
}
"""Fields that cannot be just one more, or the opposite."""


def _another(value: Any) -> Any:
    return not value if isinstance(value, bool) else value + 1


ADAPTERS: dict[str, Any] = {"lora_rank": 2, "lora_alpha": 4.0, "lora_targets": ("query",)}
NAMES = [field.name for field in fields(ModelConfig)]


@pytest.mark.parametrize(
    "name", [name for name in NAMES if name not in {"rope_scaling", "layer_types", *ADAPTERS}]
)
def test_every_field_counts_or_is_free(name: str) -> None:
    value = getattr(BASE, name)
    changed = {name: OTHER[name] if name in OTHER else _another(value)}
    assert BASE.differences(replace(BASE, **changed)) == (
        () if name in COMPUTATION_FIELDS else (name,)
    )


def test_adapters_count_between_runs_alone() -> None:
    assert BASE.differences(replace(BASE, **ADAPTERS)) == tuple(ADAPTERS)
    check_same(replace(CONFIG, **ADAPTERS), RAW)


def test_the_scaling_counts() -> None:
    linear = replace(BASE, rope_scaling="linear", rope_original_positions=0)
    assert BASE.differences(linear) == ("rope_scaling", "rope_original_positions")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"attention_scalar": 0}, {"attention_scalar": 32}),
        ({"sliding_window": 8, "global_every": 0}, {"sliding_window": 8, "global_every": 6}),
        ({"sliding_window": 0}, {"sliding_window": 8, "global_every": 1}),
        (
            {"sliding_window": 8, "rope_theta": 5.0},
            {"sliding_window": 8, "rope_theta": 5.0, "local_rope_theta": 5.0},
        ),
    ],
)
def test_two_spellings_of_one_function(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert ModelConfig(**one).differences(ModelConfig(**other)) == ()


def test_the_order_of_layers_counts() -> None:
    assert BASE.differences(replace(BASE, global_every=0, layer_types="sfsf")) == ()
    other = replace(BASE, global_every=0, layer_types="ssff")
    assert BASE.differences(other) == ("global_every", "layer_types")


def test_a_model_is_its_own_config_json() -> None:
    check_same(replace(CONFIG, compute_dtype="bfloat16", remat="dots"), RAW)


def test_what_cannot_be_served_is_named_with_its_file() -> None:
    with pytest.raises(ModelError, match=r"^models/gemma/config\.json: mlp_bias is True"):
        check_same(CONFIG, RAW | {"mlp_bias": True}, "models/gemma/config.json")


def test_all_differences_are_named_at_once() -> None:
    config = replace(CONFIG, num_layers=4, norm_eps=1e-5)
    with pytest.raises(ConfigError) as error:
        check_same(config, RAW, "models/gemma/config.json")
    assert str(error.value) == (
        "models/gemma/config.json states another model: model.num_layers is 4, expected 26, "
        "model.norm_eps is 1e-05, expected 1e-06; take the settings from it with "
        "rft_jax.hub.families.model_of."
    )
