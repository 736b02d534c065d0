"""Low-rank adapters: apart from the rest, joined with it, and merged into it."""

from __future__ import annotations

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from policies import random_policy

from rft_jax.config import ModelConfig
from rft_jax.config.model import LORA_TARGETS
from rft_jax.models import adapters, transformer
from rft_jax.types import Params

VOCAB = 20
PLAIN = tiny.model(num_heads=4, num_kv_heads=2, qkv_bias=True)


def with_lora(*targets: str, rank: int = 3, alpha: float = 6.0) -> ModelConfig:
    return dataclasses.replace(PLAIN, lora_rank=rank, lora_alpha=alpha, lora_targets=targets)


@functools.cache
def policy(config: ModelConfig) -> Params:
    """With random adapters, B included."""
    return random_policy(config, VOCAB, seed=3)


def paths(tree: Params) -> set[str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {".".join(part.key for part in path) for path, _ in leaves}


@pytest.mark.parametrize("targets", [("query",), ("output", "down"), LORA_TARGETS])
def test_split_takes_the_adapters_out_and_join_puts_them_back(targets: tuple[str, ...]) -> None:
    config = with_lora(*targets)
    frozen, trained = adapters.split(policy(config), config)
    room = {name: "attention" if name in LORA_TARGETS[:4] else "mlp" for name in targets}
    assert paths(trained) == {
        f"blocks.{room[name]}.{name}{end}" for name, end in itertools.product(targets, ("_a", "_b"))
    }
    assert paths(frozen) == paths(transformer.abstract_params(config=PLAIN, vocab_size=VOCAB))
    joined = adapters.join(frozen, trained)
    assert jax.tree.structure(joined) == jax.tree.structure(policy(config))
    jax.tree.map(np.testing.assert_array_equal, joined, policy(config))


def test_without_adapters_everything_is_trained() -> None:
    frozen, trained = adapters.split(policy(PLAIN), PLAIN)
    assert frozen == {}
    assert trained is policy(PLAIN)
    assert adapters.merge(policy(PLAIN), PLAIN) is policy(PLAIN)


@functools.partial(jax.jit, static_argnames="config")
def logits_of(params: Params, config: ModelConfig) -> jax.Array:
    tokens = jnp.asarray(np.random.default_rng(0).integers(VOCAB, size=(2, 9)), jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(9), tokens.shape)
    hidden = transformer.hidden_states(
        params, tokens, positions, jnp.ones_like(tokens), config=config
    )
    return transformer.logits(params, hidden, config=config)


@pytest.mark.slow
@pytest.mark.parametrize("targets", [("key", "value"), LORA_TARGETS])
def test_the_merged_policy_computes_the_same(targets: tuple[str, ...]) -> None:
    config = with_lora(*targets)
    merged = adapters.merge(policy(config), config)
    found, expected = logits_of(merged, config=PLAIN), logits_of(policy(config), config=config)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    # The adapters do something.
    frozen, _ = adapters.split(policy(config), config)
    assert np.max(np.abs(logits_of(frozen, config=PLAIN) - expected)) > 0.1


@pytest.mark.slow
def test_new_adapters_change_nothing() -> None:
    config = with_lora(*LORA_TARGETS)
    fresh = transformer.init(jax.random.key(0), config=config, vocab_size=VOCAB)
    frozen, trained = adapters.split(fresh, config)
    np.testing.assert_array_equal(logits_of(fresh, config=config), logits_of(frozen, config=PLAIN))
    for path, leaf in jax.tree_util.tree_leaves_with_path(trained):
        assert np.any(leaf) == path[-1].key.endswith("_a")


def test_a_merge_keeps_the_type_of_the_weights_and_sums_in_float32() -> None:
    config = with_lora("query")
    frozen, trained = adapters.split(policy(config), config)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), frozen)
    found = adapters.merge(adapters.join(half, trained), config)
    query = found["blocks"]["attention"]["query"]
    assert query.dtype == jnp.bfloat16
    of = trained["blocks"]["attention"]
    product = np.einsum("lnhr,lrd->lnhd", of["query_b"], of["query_a"])
    wide = half["blocks"]["attention"]["query"].astype(jnp.float32) + 2.0 * product
    # Half a unit in the last place of bfloat16, and the rounding of sums in another order.
    np.testing.assert_allclose(query.astype(jnp.float32), wide, rtol=2**-8, atol=1e-6)
