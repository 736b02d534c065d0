"""Weights against the model that is to take them: nothing missing, left over or out of shape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import reference_models
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from rft_jax.config import ModelConfig
from rft_jax.errors import ModelError
from rft_jax.hub.families import model_of
from rft_jax.hub.names import Tensor
from rft_jax.hub.tensors import SINGLE, Header
from rft_jax.hub.weights import Weights, check_values, open_weights, read_part

Change = Callable[[dict[str, np.ndarray]], Any]
UP, HEAD, EMBEDDING = (
    "model.layers.1.mlp.up_proj.weight",
    "lm_head.weight",
    "model.embed_tokens.weight",
)


def folder_of(tmp_path: Path, case: str, change: Change = lambda held: None) -> Path:
    """A model in one file, its tensors changed."""
    reference_models.save(case, tmp_path, max_shard_size="1GB")
    held = load_file(tmp_path / SINGLE)
    change(held)
    save_file(held, tmp_path / SINGLE)
    return tmp_path


def refusal(folder: Path, config: ModelConfig | None = None) -> str:
    """The one line of the error that opening and checking raises."""
    with pytest.raises(ModelError) as error:
        check_values(open_weights(folder, config or model_of(str(folder)), 96))
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(str(folder))
    return str(error.value)


@pytest.mark.parametrize("case", reference_models.CASES)
def test_models_of_all_families(tmp_path: Path, case: str) -> None:
    model = reference_models.save(case, tmp_path)
    weights = open_weights(tmp_path, model_of(str(tmp_path)), 96)
    check_values(weights)
    assert weights.parameters == sum(weight.numel() for weight in model.parameters())
    assert not weights.copies


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda held: held.pop(UP), f": tensor {UP} is missing from its safetensors files"),
        (
            lambda held: [held.pop(name) for name in (UP, HEAD)],
            f": tensor {UP} and 1 more are missing",
        ),
        (
            lambda held: held.update({"model.layers.0.self_attn.q_proj.bias": np.ones(24)}),
            f"{SINGLE}: tensor model.layers.0.self_attn.q_proj.bias is without a place in this",
        ),
        (
            lambda held: held.update(
                {"model.layers.2.mlp.up_proj.weight": held[UP], "x": held[UP]}
            ),
            "and 1 more are without a place in this model",
        ),
        (
            lambda held: held.update({UP: held[UP][1:]}),
            f"{SINGLE}: tensor {UP} is [39, 24], expected [40, 24]",
        ),
        (
            lambda held: held.update({UP: held[UP].astype(np.int8)}),
            f"{SINGLE}: tensor {UP} is of type I8, expected F32, BF16, F16: use a model that is",
        ),
        (
            lambda held: held.update({UP: held[UP].astype(ml_dtypes.float8_e4m3fn)}),
            f"tensor {UP} is of type F8_E4M3",
        ),
        (lambda held: held.update({UP: held[UP] / 0}), f"tensor {UP} is "),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_what_does_not_fit(tmp_path: Path, change: Change, said: str) -> None:
    assert said in refusal(folder_of(tmp_path, "llama", change))


@pytest.mark.parametrize("layers", [3, 9_999])
def test_layers_are_counted_first(tmp_path: Path, layers: int) -> None:
    folder = folder_of(tmp_path, "llama")
    message = refusal(folder, replace(model_of(str(folder)), num_layers=layers))
    assert "hold 2 layers, and num_hidden_layers of config.json, model.num_layers, is" in message


def test_another_model(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "qwen2")
    config = model_of(str(folder))
    message = refusal(folder, replace(config, qkv_bias=False))
    assert "_proj.bias and 5 more are without a place in this model" in message
    assert f"tensor {HEAD} is missing" in refusal(folder, replace(config, tie_embeddings=False))
    with pytest.raises(ModelError, match=r"is \[96, 24\], expected \[80, 24\].*vocab_size"):
        open_weights(folder, config, 80)


def test_buffers_of_old_versions_are_passed_over(tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    folder = folder_of(tmp_path, "llama", lambda held: held.update({name: np.ones(3)}))
    weights = open_weights(folder, model_of(str(folder)), 96)
    check_values(weights)
    assert name not in weights.headers


def test_a_tied_head_must_be_a_copy(tmp_path: Path) -> None:
    def copy(held: dict[str, np.ndarray]) -> None:
        held[HEAD] = held[EMBEDDING].copy()

    folder = folder_of(tmp_path, "llama_tied", copy)
    weights = open_weights(folder, model_of(str(folder)), 96)
    check_values(weights)
    assert weights.copies == {HEAD: EMBEDDING}
    assert HEAD not in {tensor.name for tensor in weights.tensors}

    held = load_file(folder / SINGLE)
    held[HEAD][5, 5] += 1
    save_file(held, folder / SINGLE)
    message = refusal(folder)
    assert f"tensor {HEAD} differs from {EMBEDDING}, and tie_word_embeddings says" in message

    held[HEAD] = held[HEAD][:-1]
    save_file(held, folder / SINGLE)
    assert f"tensor {HEAD} is [95, 24], expected [96, 24]" in refusal(folder)


@given(st.data())
def test_a_part_of_joined_axes(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Whatever the axes a tensor joins, the part is that of the parameter."""
    groups = data.draw(
        st.sampled_from([((2, 3), (4,)), ((4,), (2, 3)), ((5,),), ((2, 3),), ((2, 3), (3, 2))])
    )
    tensor = Tensor("it", ("it",), None, groups)
    values = np.arange(np.prod(tensor.shape), dtype=np.float32).reshape(tensor.shape)
    file = tmp_path_factory.getbasetemp() / "part.safetensors"
    save_file({"it": values}, file)
    weights = Weights(file.parent, (tensor,), {"it": Header(file, "F32", tensor.shape)}, {})
    index = tuple(
        data.draw(
            st.just(slice(None))
            | st.tuples(st.integers(0, size - 1), st.integers(1, size)).map(
                lambda pair: slice(pair[0], max(pair[0] + 1, pair[1]))
            )
        )
        for size in tensor.param_shape
    )
    part = read_part(weights, tensor, index)
    np.testing.assert_array_equal(part, values.reshape(tensor.param_shape)[index])
