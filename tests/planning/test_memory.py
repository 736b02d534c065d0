"""Memory of runs: the count beside real shapes and compilers."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import planned
import pytest
from jax.sharding import Mesh
from planned import ALONE, MODEL, config

from benchmarks import compiled_memory
from rft_jax.config import MeshConfig, ModelConfig, ObjectiveConfig, OptimizerConfig, UpdateConfig
from rft_jax.errors import ConfigError
from rft_jax.keys import Purpose, run_key
from rft_jax.models import adapters, transformer
from rft_jax.planning import memory
from rft_jax.planning.memory import Sampled, Shards
from rft_jax.rollout import sampler
from rft_jax.training.optimizer import make_optimizer
from rft_jax.training.state import make_layout, param_shapes
from rft_jax.types import Prompts

MESHES = (ALONE, Shards(4, 1, 1), Shards(1, 8, 1), Shards(2, 2, 2))
each_model = pytest.mark.parametrize("model", planned.MODELS.values(), ids=planned.MODELS)
each_mesh = pytest.mark.parametrize("of", MESHES, ids=lambda of: "x".join(map(str, of)))


def mesh_of(of: Shards) -> Mesh:
    devices = np.array(jax.devices()[: math.prod(of)])
    return Mesh(devices.reshape(of), ("data", "fsdp", "tensor"))


def local_bytes(tree: Any) -> int:
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
        if leaf.shape  # counts of the optimizer apart
    )


def tree_bytes(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


# What a run holds


@pytest.mark.slow
@each_mesh
@each_model
@pytest.mark.parametrize("first", ["float32", "bfloat16"])
def test_parameters_and_moments_are_those_of_the_layout(
    model: ModelConfig, of: Shards, first: Any
) -> None:
    settings = config(model, optimizer=OptimizerConfig(first_moment_dtype=first))
    optimizer = make_optimizer(settings.optimizer, settings.steps)
    layout = make_layout(model, mesh_of(of), optimizer, 64)
    held = memory.held(settings, of)
    assert held["masters"] == local_bytes(layout.state.params)
    assert held["moments"] == local_bytes(layout.state.optimizer)
    frozen = local_bytes(layout.base) if model.lora_rank else 0
    assert held.get("frozen base", 0) == frozen


def test_a_reference_is_a_copy_of_what_is_trained() -> None:
    held = memory.held(config(objective=ObjectiveConfig(kl_coefficient=0.1)), ALONE)
    assert held["reference"] == held["masters"]


@each_mesh
@each_model
def test_the_rollouts_weights_are_cast_and_whole_along_the_width(
    model: ModelConfig, of: Shards
) -> None:
    mesh = mesh_of(of)
    params = param_shapes(model, mesh, 64)
    where = make_layout(model, mesh, make_optimizer(OptimizerConfig(), 1), 64).rollout
    cast = jax.eval_shape(functools.partial(transformer.cast, dtype=model.compute_dtype), params)
    expected = local_bytes(
        jax.tree.map(
            lambda leaf, to: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=to), cast, where
        )
    )
    assert memory.rollout_weights(config(model), of) == expected


# What sampling adds


@pytest.mark.slow
@pytest.mark.parametrize(
    "work", [Sampled(16, 4, 32), Sampled(16, 4, 0), Sampled(32, 1, 8)], ids=str
)
@each_mesh
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_caches_are_those_of_the_sampler(dtype: Any, of: Shards, work: Sampled) -> None:
    """Of one shard: what `start` makes of its questions, but for small arrays."""
    settings = config(replace(MODEL, compute_dtype=dtype))
    questions, ring = work.questions // of.batch, 40
    number = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.int32)
    prompts = Prompts(number((questions, 12)), number((questions,)), number((questions,)))
    params, _, _ = memory.params(memory.model_of(settings))
    cast = functools.partial(transformer.cast, dtype=dtype)
    params = jax.eval_shape(lambda params: transformer.unstack(cast(params)), params)
    shape = sampler.slots_shape(questions, work.samples, -(-work.slots // of.batch))
    store, slots = jax.eval_shape(
        functools.partial(
            sampler.start, mesh=None, config=settings.model, shape=shape, ring=ring,
            max_new_tokens=100,
        ),
        params,
        prompts,
        number((questions, work.samples)),
        jax.eval_shape(lambda: run_key(seed=0, purpose=Purpose.ROLLOUT)),
        number(()),
    )  # fmt: skip
    found = memory.caches(settings, of, work)
    assert found.store * of.tensor == tree_bytes(store.caches)
    assert found.prompts * of.tensor == tree_bytes(slots.cache.prompts)
    assert found.column * ring * of.tensor == tree_bytes(slots.cache.own)
    assert found.outputs == tree_bytes(slots.outputs[:3])


def test_the_worst_moment_is_taken() -> None:
    settings = config()
    moments = memory.sampling(settings, ALONE, memory.rollout(settings, ALONE), tpu=False)
    assert list(moments) == ["prefill", "decode", "growth"]
    found = memory.by_phase(settings, ALONE, tpu=False)["sampling"]
    held = sum(memory.held(settings, ALONE).values())
    worst = max(sum(parts.values()) for parts in moments.values())
    assert sum(found.values()) == held + worst


def test_fewer_slots_take_less() -> None:
    few, many = (
        memory.sampling(config(), ALONE, Sampled(16, 4, slots), tpu=False)["growth"]
        for slots in (8, 32)
    )
    assert few["slots"] < many["slots"]


# What the update adds


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "dots", "full"])
@pytest.mark.parametrize("targets", [(), ("query", "output", "gate", "down"), ("key", "up")])
def test_activations_kept_are_those_that_jax_keeps(remat: Any, targets: tuple[str, ...]) -> None:
    model = replace(MODEL, compute_dtype="bfloat16", remat=remat)
    if targets:
        model = replace(model, **planned.LORA | {"lora_targets": targets})
    rows, slots = 2, 16
    frozen, trained = memory.params(memory.model_of(config(model)))[1:]
    tokens = jax.ShapeDtypeStruct((rows, slots), jnp.int32)

    def backward(frozen: Any, trained: Any, tokens: Any) -> Any:
        positions = jnp.broadcast_to(jnp.arange(slots), (rows, slots))

        def forward(trained: Any) -> Any:
            params = adapters.join(frozen, trained)
            ones = jnp.ones_like(tokens)
            return transformer.hidden_states(params, tokens, positions, ones, config=model)

        return jax.vjp(forward, trained)[1]

    residuals = jax.tree.leaves(jax.eval_shape(backward, frozen, trained, tokens))
    weights = {leaf.shape for leaf in jax.tree.leaves((frozen, trained))}
    of_layers = [
        leaf
        for leaf in residuals
        if leaf.shape[:1] == (model.num_layers,) and leaf.shape not in weights
    ]
    numbers = tree_bytes(of_layers) / 2 / (model.num_layers * rows * slots)
    assert numbers == memory.kept_numbers(model, ALONE)


LARGER = ModelConfig(
    num_layers=4, d_model=128, num_heads=4, num_kv_heads=2, head_dim=32, mlp_dim=512,
    vocab_size=4096, tie_embeddings=True,
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        replace(LARGER, remat="full"),
        replace(LARGER, tie_embeddings=False, lora_rank=8, lora_alpha=8.0, lora_targets=("up",)),
    ],
    ids=["tied, remat", "untied, adapters"],
)
def test_the_count_is_near_what_a_compiler_allots(model: ModelConfig) -> None:
    """This machine's, for shapes at which weights and activations tell."""
    settings = config(
        model,
        update=UpdateConfig(row_length=512, rows_per_microbatch=4, logits_at_once=2**18),
    )
    rows = list(itertools.islice(compiled_memory.rows(settings, "cpu"), 4))
    names = ["update", "rollout, prefill", "rollout, growth", "rollout, decode"]
    assert [row.program for row in rows] == names
    for row in rows:
        assert 0.75 < row.counted / row.compiled < 1.6, row


def test_meshes_are_made_of_the_devices() -> None:
    assert memory.shards(MeshConfig(data=1, fsdp=-1), 4) == (1, 4, 1)
    assert memory.shards(MeshConfig(), 8) == (8, 1, 1)
    with pytest.raises(ConfigError, match="there are 4 devices"):
        memory.shards(MeshConfig(fsdp=3), 4)
    with pytest.raises(ConfigError, match="there are 4 devices"):
        memory.shards(MeshConfig(data=1, fsdp=2), 4)


def test_settings_that_leave_the_vocabulary_open_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.vocab_size is 0"):
        memory.model_of(config(replace(MODEL, vocab_size=0)))
