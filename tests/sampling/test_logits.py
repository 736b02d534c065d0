"""Draws follow the tempered softmax, and say of themselves what it says of them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from rft_jax.sampling.logits import Draw, draw, greedy

VOCAB = 7
ROW = np.array([0.3, -1.0, 2.0, 0.0, 1.1, -2.5, 0.6], np.float32)

jitted_draw = jax.jit(draw)


def _keys(seed: int, count: int) -> jax.Array:
    return jax.random.split(jax.random.key(seed), count)


def _check_facts(drawn: Draw, logits: np.ndarray, temperature: float) -> None:
    """log_probs and entropies are those of softmax(logits / temperature), in float64."""
    expected = special.log_softmax(logits.astype(np.float64) / temperature, axis=-1)
    chosen = np.take_along_axis(expected, np.asarray(drawn.tokens)[:, None], axis=-1)[:, 0]
    np.testing.assert_allclose(drawn.log_probs, chosen, rtol=1e-5, atol=2e-5)
    np.testing.assert_allclose(drawn.entropies, special.entr(np.exp(expected)).sum(-1), atol=1e-4)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_tempered_softmax(temperature: float) -> None:
    count = 20_000
    logits = np.tile(ROW, (count, 1))
    drawn = jitted_draw(logits, _keys(0, count), np.float32(temperature))
    observed = np.bincount(drawn.tokens, minlength=VOCAB)
    expected = count * special.softmax(ROW.astype(np.float64) / temperature)
    assert stats.chisquare(observed, expected).pvalue > 1e-3
    other = count * special.softmax(ROW.astype(np.float64) / (temperature * 1.15))
    assert stats.chisquare(observed, other).pvalue < 1e-6
    _check_facts(drawn, logits, temperature)


@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**16),
    scale=st.floats(0.01, 50),
    temperature=st.floats(0.125, 8, width=32),
)
def test_log_probs_and_entropies_are_those_of_the_sampling_distribution(
    seed: int, scale: float, temperature: float
) -> None:
    logits = np.random.default_rng(seed).normal(scale=scale, size=(5, VOCAB)).astype(np.float32)
    drawn = jitted_draw(logits, _keys(seed, 5), np.float32(temperature))
    _check_facts(drawn, logits, temperature)


def test_a_draw_depends_on_its_own_row_and_key_alone() -> None:
    logits = np.random.default_rng(0).normal(size=(64, VOCAB)).astype(np.float32)
    keys = _keys(1, 64)
    drawn = jitted_draw(logits, keys, np.float32(1))
    backwards = jitted_draw(logits[::-1], keys[::-1], np.float32(1))
    np.testing.assert_array_equal(drawn.tokens, backwards.tokens[::-1])
    other = jitted_draw(logits, _keys(2, 64), np.float32(1))
    assert np.any(drawn.tokens != other.tokens)


def test_tokens_of_probability_zero_are_never_drawn_and_leave_the_facts_finite() -> None:
    row = np.where(np.arange(VOCAB) % 2 == 0, ROW, -np.inf).astype(np.float32)
    drawn = jitted_draw(np.tile(row, (500, 1)), _keys(0, 500), np.float32(1))
    assert set(np.asarray(drawn.tokens).tolist()) <= {0, 2, 4, 6}
    kept = special.log_softmax(ROW[::2].astype(np.float64))
    np.testing.assert_allclose(drawn.entropies, -np.sum(np.exp(kept) * kept), atol=1e-5)
    np.testing.assert_allclose(drawn.log_probs, kept[np.asarray(drawn.tokens) // 2], atol=1e-5)


def test_greedy_takes_the_most_probable_token_and_the_lowest_id_among_equals() -> None:
    logits = np.stack([ROW, ROW[::-1], np.zeros(VOCAB, np.float32)])
    logits[0, 5] = ROW.max()
    chosen = greedy(jnp.asarray(logits))
    assert chosen.tokens.tolist() == [2, 4, 0]
    _check_facts(chosen, logits, 1.0)


def test_a_small_temperature_draws_what_greedy_takes() -> None:
    logits = np.random.default_rng(0).normal(size=(64, VOCAB)).astype(np.float32)
    drawn = jitted_draw(logits, _keys(0, 64), np.float32(1e-4))
    np.testing.assert_array_equal(drawn.tokens, greedy(jnp.asarray(logits)).tokens)
