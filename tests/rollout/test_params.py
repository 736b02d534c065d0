"""The rollout's own parameters: what they are, where they lie, and that they are there once."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
import pytest
import tiny

from rft_jax.config import MeshConfig, ModelConfig
from rft_jax.distributed.mesh import make_mesh, param_shardings
from rft_jax.models import transformer
from rft_jax.models.axes import logical_axes
from rft_jax.rollout.params import rollout_params

MODEL = tiny.model(num_layers=3)
VOCAB = 32
each_dtype = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])


@functools.cache
def policy(model: ModelConfig) -> Any:
    init = functools.partial(transformer.init, config=model, vocab_size=VOCAB)
    return jax.jit(init)(jax.random.key(0))  # one program, where each array would be several


@pytest.mark.slow
@each_dtype
@pytest.mark.parametrize(
    "model",
    [MODEL, tiny.model(lora_rank=2, lora_alpha=4.0, lora_targets=("query",))],
    ids=["plain", "adapters"],
)
def test_they_are_the_policys_cast_and_layer_by_layer(model: ModelConfig, dtype: str) -> None:
    params = policy(model)
    found = rollout_params(params, params["embedding"].sharding, dtype=dtype)
    expected = transformer.unstack(transformer.cast(params, dtype))
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
@each_dtype
def test_they_are_split_as_their_layout_says_and_are_there_once(dtype: str) -> None:
    mesh = make_mesh(MeshConfig(2, 2, 2))
    model = tiny.model(num_layers=3, num_kv_heads=2)
    params = policy(model)
    trained = param_shardings(mesh, params, logical_axes(params))
    layout = param_shardings(mesh, params, logical_axes(params), fsdp=False)
    params = jax.device_put(params, trained)
    before = {id(array) for array in jax.live_arrays()}
    found = rollout_params(params, layout, dtype=dtype)
    # On one device: views of what was there, which moving it makes.
    new = [
        array
        for array in jax.live_arrays()
        if id(array) not in before and len(array.sharding.device_set) > 1
    ]
    assert {id(array) for array in new} <= {id(leaf) for leaf in jax.tree.leaves(found)}
    for layer in found["blocks"]:
        for leaf, where in zip(
            jax.tree.leaves(layer), jax.tree.leaves(layout["blocks"]), strict=True
        ):
            assert (
                leaf.sharding.shard_shape(leaf.shape)
                == where.shard_shape((model.num_layers, *leaf.shape))[1:]
            )
    for name in set(found) - {"blocks"}:
        for leaf, where in zip(
            jax.tree.leaves(found[name]), jax.tree.leaves(layout[name]), strict=True
        ):
            assert leaf.sharding == where
