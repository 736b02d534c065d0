"""Chunked log-probs are those of a plain log-softmax."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from rft_jax.models import transformer
from rft_jax.training.log_probs import target_log_probs
from rft_jax.types import Params

MODEL = tiny.model(num_layers=1)
ROWS, SLOTS, VOCABULARY = 2, 7, 11


@functools.cache
def setting() -> tuple[Params, tuple[jax.Array, ...]]:
    """Parameters; inputs, targets, positions and segments of two rows, the second half empty."""
    params = transformer.init(jax.random.key(0), config=MODEL, vocab_size=VOCABULARY)
    rng = np.random.default_rng(0)
    inputs, targets = rng.integers(0, VOCABULARY, (2, ROWS, SLOTS)).astype(np.int32)
    positions = np.array([[0, 1, 2, 0, 1, 2, 3], [0, 1, 2, 0, 0, 0, 0]], np.int32)
    segments = np.array([[1, 1, 1, 2, 2, 2, 2], [1, 1, 1, 0, 0, 0, 0]], np.int32)
    return params, tuple(map(jnp.asarray, (inputs, targets, positions, segments)))


def plain(params: Params, temperature: jax.Array) -> jax.Array:
    """log softmax of all logits at once."""
    inputs, targets, positions, segments = setting()[1]
    hidden = transformer.hidden_states(params, inputs, positions, segments, config=MODEL)
    scores = transformer.logits(params, hidden, config=MODEL) / temperature
    return jnp.take_along_axis(jax.nn.log_softmax(scores, axis=0), targets[None], axis=0)[0]


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [1, 5, 100])
def test_values_do_not_depend_on_the_chunk(chunk: int) -> None:
    params, rows = setting()
    for temperature in (1.0, 0.6):
        found = target_log_probs(params, *rows, jnp.float32(temperature), config=MODEL, chunk=chunk)
        assert found.shape == (ROWS, SLOTS)
        assert found.dtype == jnp.float32
        expected = plain(params, jnp.float32(temperature))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_gradients_go_to_parameters_and_temperature() -> None:
    params, rows = setting()
    # Slots of segment 0 mean nothing and are not weighed.
    weights = jnp.where(rows[3] > 0, jnp.arange(SLOTS, dtype=jnp.float32)[None], 0.0)

    def chunked(params: Params, temperature: jax.Array) -> jax.Array:
        values = target_log_probs(params, *rows, temperature, config=MODEL, chunk=4)
        return jnp.sum(weights * values)

    def whole(params: Params, temperature: jax.Array) -> jax.Array:
        return jnp.sum(weights * plain(params, temperature))

    found, expected = (
        jax.jit(jax.grad(f, argnums=(0, 1)))(params, jnp.float32(0.8)) for f in (chunked, whole)
    )
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_log_probs_are_float32_under_bfloat16() -> None:
    params, rows = setting()
    config = tiny.model(num_layers=1, compute_dtype="bfloat16")
    found = target_log_probs(params, *rows, jnp.float32(1.0), config=config, chunk=8)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, plain(params, jnp.float32(1.0)), atol=0.1)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_vocabulary() -> None:
    """Beyond the table's own gradient: 2**14 logits at a time, of 2**20 to 2**24."""
    tokens, at_once = 1024, 2**14
    rows = [jnp.zeros((4, tokens // 4), jnp.int32)] * 2 + [
        jnp.ones((4, tokens // 4), jnp.int32)
    ] * 2

    def temporary(vocab_size: int) -> int:
        params = transformer.init(jax.random.key(0), config=MODEL, vocab_size=vocab_size)

        def loss(params: Params) -> jax.Array:
            return jnp.sum(
                target_log_probs(
                    params, *rows, jnp.float32(1), config=MODEL, chunk=at_once // vocab_size
                )
            )

        compiled = jax.jit(jax.grad(loss)).lower(params).compile()
        tables = 2 * vocab_size * MODEL.d_model * 4
        return compiled.memory_analysis().temp_size_in_bytes - 2 * tables

    small, large = temporary(1024), temporary(16_384)
    assert large - small < 8 * at_once * 4, (small, large)
    assert large < tokens * 16_384 * 4 / 8
