"""Training adapters alone: their gradient is that of the merged policy by the chain rule."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import NamedSharding, PartitionSpec
from policies import random_policy

from rft_jax.config import MeshConfig, OptimizerConfig
from rft_jax.config.model import LORA_TARGETS
from rft_jax.distributed.mesh import batch_sharding, make_mesh, replicated
from rft_jax.models import adapters
from rft_jax.training.optimizer import make_optimizer
from rft_jax.training.packing import TrainingSequence, pack
from rft_jax.training.state import make_layout, shardings
from rft_jax.training.update import Terms, gradients, init_state, update
from rft_jax.types import PackedBatch, Params

pytestmark = pytest.mark.slow

VOCAB = 16
CONFIG = tiny.model(
    num_heads=2, num_kv_heads=2, mlp_dim=32,
    lora_rank=2, lora_alpha=6.0, lora_targets=LORA_TARGETS,
)  # fmt: skip
SCALE = 3.0
SETTINGS: dict[str, Any] = {"terms": Terms(), "chunk": 16}


@functools.cache
def parts() -> tuple[Params, Params]:
    return adapters.split(random_policy(CONFIG, VOCAB, seed=1), CONFIG)


@functools.cache
def batch() -> PackedBatch:
    rng = np.random.default_rng(2)
    sequences = [
        TrainingSequence((1, 3), tuple(rng.integers(VOCAB, size=size).tolist()), weight)
        for size, weight in zip((3, 5, 2, 6, 4), (0.5, 1.0, 0.25, 2.0, 1.5), strict=True)
    ]
    return pack(sequences, row_length=12, rows_per_microbatch=8, max_microbatches=2)


@functools.cache
def found() -> Params:
    frozen, trained = parts()
    one = jax.jit(functools.partial(gradients, config=CONFIG, **SETTINGS))
    return one(trained, None, batch(), jnp.float32(0.8), frozen).gradients


def test_the_gradient_of_adapters_follows_from_that_of_the_merged_policy() -> None:
    frozen, trained = parts()
    merged = adapters.merge(adapters.join(frozen, trained), CONFIG)
    plain = functools.partial(gradients, config=CONFIG.without_adapters(), **SETTINGS)
    of_merged = jax.jit(plain)(merged, None, batch(), jnp.float32(0.8)).gradients
    assert jax.tree.structure(found()) == jax.tree.structure(trained)
    for room, names in (("attention", LORA_TARGETS[:4]), ("mlp", LORA_TARGETS[4:])):
        for name in names:
            first, second, slope = (
                np.asarray(tree["blocks"][room][leaf], np.float64)
                for tree, leaf in (
                    (trained, f"{name}_a"), (trained, f"{name}_b"), (of_merged, name)
                )
            )  # fmt: skip
            layers, rank, *inputs = first.shape
            slope = slope.reshape(layers, -1, int(np.prod(inputs)))
            of_first = SCALE * second.reshape(layers, -1, rank).transpose(0, 2, 1) @ slope
            of_second = SCALE * slope @ first.reshape(layers, rank, -1).transpose(0, 2, 1)
            for leaf, expected in ((f"{name}_a", of_first), (f"{name}_b", of_second)):
                mine = np.asarray(found()["blocks"][room][leaf])
                np.testing.assert_allclose(
                    mine, expected.reshape(mine.shape), atol=2e-5 * np.abs(expected).max()
                )


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2)])
def test_any_mesh_gives_the_same_step(sizes: tuple[int, int, int]) -> None:
    """Frozen parameters lie as the others do, and do not change."""
    mesh = make_mesh(MeshConfig(*sizes))
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-2, clip_norm=0.0), 1)
    layout = make_layout(CONFIG, mesh, optimizer, VOCAB)
    frozen, trained = parts()
    fresh = jax.tree.map(np.asarray, init_state(trained, optimizer))  # updates overwrite theirs
    state = jax.device_put(fresh, shardings(layout.state))
    assert len(jax.tree.leaves(state.params)) == 2 * len(LORA_TARGETS)
    by_rows = batch_sharding(mesh, axis=1)
    where = jax.tree.map(lambda leaf: by_rows if leaf.ndim else replicated(mesh), batch())
    state, metrics = update(
        state, None, jax.device_put(batch(), where),
        jax.device_put(np.float32(0.8), NamedSharding(mesh, PartitionSpec())),
        jax.device_put(frozen, shardings(layout.base)),
        config=CONFIG, optimizer=optimizer, mesh=mesh, **SETTINGS,
    )  # fmt: skip
    changes, _ = optimizer.update(found(), optimizer.init(trained), trained)
    expected = jax.tree.map(jnp.add, trained, changes)
    for one, other in zip(jax.tree.leaves(state.params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    norm = np.sqrt(sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(found())))
    assert float(metrics.gradient_norm) == pytest.approx(norm, rel=1e-4)
