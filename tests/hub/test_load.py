"""Published weights as parameters: every value in its place, on any mesh, in little memory."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_models
from imports import imported, like, mesh_of, open_model
from safetensors.numpy import load_file, save_file

from rft_jax.config import ModelConfig
from rft_jax.hub import weights as weights_module
from rft_jax.hub.load import load_params
from rft_jax.hub.names import tensors
from rft_jax.hub.tensors import SINGLE, Header
from rft_jax.types import Params

pytestmark = pytest.mark.slow

MESHES = {"one device": (1, 1, 1), "fsdp and tensor": (1, 4, 2), "all three": (2, 2, 2)}


def held(params: Params, config: ModelConfig) -> dict[str, np.ndarray]:
    """The parameters by the names and in the shapes of the published format."""
    found = {}
    for tensor in tensors(config, config.vocab_size):
        leaf: Any = params
        for name in tensor.path:
            leaf = leaf[name]
        values = np.asarray(leaf if tensor.layer is None else leaf[tensor.layer])
        found[tensor.name] = values.reshape(tensor.shape)
    return found


def assert_values_of(params: Params, config: ModelConfig, model: Any) -> None:
    """Every parameter of transformers' model is in the tree, to the last bit."""
    found = held(params, config)
    theirs = {name: weight.detach().float() for name, weight in model.named_parameters()}
    assert found.keys() == theirs.keys()
    for name, weight in theirs.items():
        np.testing.assert_array_equal(found[name], weight.numpy(), err_msg=name)


@pytest.mark.parametrize("case", reference_models.CASES)
def test_values_of_all_families(tmp_path: Path, case: str) -> None:
    model = reference_models.save(case, tmp_path)
    config, params = imported(tmp_path, 1, 1, 1)
    assert_values_of(params, config, model)


@pytest.mark.parametrize("dtype", reference_models.DTYPES)
@pytest.mark.parametrize("mesh", MESHES.values(), ids=MESHES)
def test_values_on_any_mesh(tmp_path: Path, mesh: tuple[int, int, int], dtype: str) -> None:
    model = reference_models.save("qwen2", tmp_path, dtype=dtype)
    config, weights = open_model(tmp_path)
    wanted = like(config, mesh_of(*mesh))
    params = load_params(weights, wanted)
    assert jax.tree.structure(params) == jax.tree.structure(wanted)
    for leaf, shape in zip(jax.tree.leaves(params), jax.tree.leaves(wanted), strict=True):
        assert (leaf.shape, leaf.dtype, leaf.sharding) == (shape.shape, shape.dtype, shape.sharding)
    assert_values_of(params, config, model)


def test_parameters_may_be_of_another_type(tmp_path: Path) -> None:
    """Such as those that stay as they are under adapters."""
    model = reference_models.save("llama", tmp_path, dtype="bfloat16")
    config, weights = open_model(tmp_path)
    params = load_params(weights, like(config, mesh_of(1, 4, 2), jnp.bfloat16))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"bfloat16"}
    assert_values_of(jax.tree.map(lambda leaf: leaf.astype(np.float32), params), config, model)


def test_an_update_may_take_the_parameters(tmp_path: Path) -> None:
    """Donated, and files changed meanwhile: nothing of them is shared with the host."""
    model = reference_models.save("llama", tmp_path, max_shard_size="1GB")
    config, params = imported(tmp_path, 1, 1, 1)
    before = {name: values.copy() for name, values in load_file(tmp_path / SINGLE).items()}
    with (tmp_path / SINGLE).open("r+b") as file:
        file.seek(2000)
        file.write(b"\xff" * 5000)
    assert_values_of(params, config, model)
    change = jax.jit(functools.partial(jax.tree.map, lambda leaf: leaf + 1), donate_argnums=0)
    changed = change(params)  # a warning, and so an error, if a buffer cannot be given
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(params))
    np.testing.assert_array_equal(changed["final_norm"]["scale"], before["model.norm.weight"] + 1)


def test_no_more_than_a_part_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each device's share of one tensor, once, however many devices hold copies of it."""
    reference_models.save("llama", tmp_path)
    config, weights = open_model(tmp_path)
    sizes: dict[str, list[int]] = {}
    whole = weights_module.files.read

    def read(header: Header, name: str, *part: slice) -> np.ndarray:
        values = whole(header, name, *part)
        sizes.setdefault(name, []).append(values.size)
        return values

    monkeypatch.setattr(weights_module.files, "read", read)
    load_params(weights, like(config, mesh_of(2, 2, 2)))
    for tensor in weights.tensors:
        split = 4 if len(tensor.shape) > 1 else 1  # norms are whole everywhere
        assert sizes[tensor.name] == [np.prod(tensor.shape) // split] * split


def test_values_are_not_changed_on_their_way(tmp_path: Path) -> None:
    """Denormal numbers, signed zeros and the largest ones."""
    reference_models.save("llama", tmp_path, max_shard_size="1GB")
    tensors_of_file = load_file(tmp_path / SINGLE)
    odd = np.array([-0.0, 1e-45, -1e-40, np.finfo(np.float32).max], np.float32)
    tensors_of_file["model.norm.weight"] = np.resize(odd, 24)
    tensors_of_file["model.layers.0.input_layernorm.weight"] = np.resize(odd, 24)
    save_file(tensors_of_file, tmp_path / SINGLE)
    config, params = imported(tmp_path, 1, 4, 2)
    found = held(params, config)
    for name, values in tensors_of_file.items():
        assert found[name].tobytes() == values.tobytes(), name
