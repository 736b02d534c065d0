"""Rotary positions, and attention over packed rows and over a cache."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rft_jax.models.attention import (
    CompletionCache,
    PromptCache,
    decode_attention,
    packed_attention,
    rotate,
    write_completion,
)

WIDTH = 8
THETA = 100.0


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def turned(vector: np.ndarray, position: int) -> np.ndarray:
    """One vector of WIDTH at one position."""
    found = rotate(jnp.asarray(vector).reshape(1, 1, WIDTH), jnp.array([position]), theta=THETA)
    return np.asarray(found)[0, 0]


@given(seed=st.integers(0, 2**16), position=st.integers(0, 4096))
def test_rotation_keeps_norms(seed: int, position: int) -> None:
    vector = normal(seed, WIDTH)
    assert np.linalg.norm(turned(vector, position)) == pytest.approx(
        np.linalg.norm(vector), rel=1e-5
    )


@given(
    seed=st.integers(0, 2**16),
    query_at=st.integers(0, 500),
    key_at=st.integers(0, 500),
    shift=st.integers(0, 500),
)
def test_a_score_depends_on_the_distance_alone(
    seed: int, query_at: int, key_at: int, shift: int
) -> None:
    query, key = normal(seed, 2, WIDTH)
    here = turned(query, query_at) @ turned(key, key_at)
    there = turned(query, query_at + shift) @ turned(key, key_at + shift)
    assert here == pytest.approx(there, abs=2e-3)


def test_rotation_turns_the_halves_as_complex_pairs() -> None:
    x, positions = normal(0, 2, 5, 3, WIDTH), np.array([[0, 1, 2, 3, 4], [7, 0, 900, 2, 1]])
    frequencies = THETA ** (-np.arange(WIDTH // 2) / (WIDTH // 2))
    pairs = x[..., : WIDTH // 2] + 1j * x[..., WIDTH // 2 :]
    pairs = pairs * np.exp(1j * positions[..., None, None] * frequencies)
    expected = np.concatenate([pairs.real, pairs.imag], axis=-1)
    found = rotate(jnp.asarray(x), jnp.asarray(positions), theta=THETA)
    np.testing.assert_allclose(found, expected, atol=3e-4)
    np.testing.assert_array_equal(found[0, 0], x[0, 0])


def test_rotation_of_bfloat16_computes_its_angles_in_float32() -> None:
    """At position 1001 a bfloat16 angle would be off by up to 4 radians."""
    x = jnp.asarray(normal(0, 1, 1, WIDTH))
    positions = jnp.array([1001])
    found = rotate(x.astype(jnp.bfloat16), positions, theta=THETA)
    assert found.dtype == jnp.bfloat16
    expected = rotate(x, positions, theta=THETA)
    np.testing.assert_allclose(found.astype(jnp.float32), expected, atol=2e-2)


def _plain(query: np.ndarray, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """One head of one query over the keys it sees, in float64."""
    scores = keys.astype(np.float64) @ query.astype(np.float64) / np.sqrt(WIDTH)
    weights = np.exp(scores - scores.max())
    return weights / weights.sum() @ values.astype(np.float64)


SEGMENTS = np.array([[1, 1, 2, 2, 2, 0, 3], [0, 0, 5, 5, 0, 0, 0]])


def test_packed_attention_is_causal_within_segments() -> None:
    queries, keys, values = (
        normal(0, 2, 7, 4, WIDTH),
        normal(1, 2, 7, 2, WIDTH),
        normal(2, 2, 7, 2, WIDTH),
    )
    found = packed_attention(*map(jnp.asarray, (queries, keys, values, SEGMENTS)))
    for row, slot, head in np.ndindex(2, 7, 4):
        seen = (SEGMENTS[row] == SEGMENTS[row, slot]) & (np.arange(7) <= slot)
        expected = (
            _plain(
                queries[row, slot, head], keys[row, seen, head // 2], values[row, seen, head // 2]
            )
            if SEGMENTS[row, slot]
            else np.zeros(WIDTH)
        )
        np.testing.assert_allclose(found[row, slot, head], expected, atol=1e-6)


def test_slots_without_anything_to_see_give_zeros_and_finite_gradients() -> None:
    def total(queries: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
        return jnp.sum(packed_attention(queries, keys, values, jnp.asarray(SEGMENTS)) ** 2)

    arrays = (normal(0, 2, 7, 4, WIDTH), normal(1, 2, 7, 2, WIDTH), normal(2, 2, 7, 2, WIDTH))
    grads = jax.grad(total, argnums=(0, 1, 2))(*map(jnp.asarray, arrays))
    for grad in grads:
        assert np.all(np.isfinite(grad))
        assert not np.any(np.asarray(grad)[SEGMENTS == 0])


@pytest.mark.parametrize("position", [0, 2, 4])
def test_decode_attention_sees_the_prompt_and_its_own_tokens_so_far(position: int) -> None:
    lengths = np.array([3, 1])
    queries = normal(0, 2, 3, 4, WIDTH)
    prompt = PromptCache(
        jnp.asarray(normal(1, 2, 2, 4, WIDTH)), jnp.asarray(normal(2, 2, 2, 4, WIDTH))
    )
    own = CompletionCache(
        jnp.asarray(normal(3, 2, 3, 2, 5, WIDTH)), jnp.asarray(normal(4, 2, 3, 2, 5, WIDTH))
    )
    found = decode_attention(
        jnp.asarray(queries), prompt, own, jnp.asarray(lengths), jnp.int32(position)
    )
    for question, sample, head in np.ndindex(2, 3, 4):
        keys, values = (
            np.concatenate(
                [
                    np.asarray(of_prompt)[question, head // 2, : lengths[question]],
                    np.asarray(of_own)[question, sample, head // 2, : position + 1],
                ]
            )
            for of_prompt, of_own in zip(prompt, own, strict=True)
        )
        expected = _plain(queries[question, sample, head], keys, values)
        np.testing.assert_allclose(found[question, sample, head], expected, atol=1e-6)


def test_writing_a_token_changes_its_slot_alone() -> None:
    cache = CompletionCache(
        jnp.asarray(normal(0, 1, 2, 2, 5, WIDTH)), jnp.asarray(normal(1, 1, 2, 2, 5, WIDTH))
    )
    keys, values = normal(2, 1, 2, 2, WIDTH), normal(3, 1, 2, 2, WIDTH)
    found = write_completion(cache, jnp.asarray(keys), jnp.asarray(values), jnp.int32(3))
    for before, after, new in zip(cache, found, (keys, values), strict=True):
        np.testing.assert_array_equal(after[..., 3, :], new)
        others = np.arange(5) != 3
        np.testing.assert_array_equal(after[..., others, :], np.asarray(before)[..., others, :])
