"""Draws follow the tempered softmax, and say of themselves what it says of them."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from rft_jax.rollout.logits import Draw, block_shape, draw, greedy

VOCAB = 7
ROW = np.array([0.3, -1.0, 2.0, 0.0, 1.1, -2.5, 0.6], np.float32)

jitted_draw = jax.jit(draw)


def _keys(seed: int, count: int) -> jax.Array:
    return jax.random.split(jax.random.key(seed), count)


def _check_facts(drawn: Draw, logits: np.ndarray, temperature: float) -> None:
    """log_probs and entropies are those of softmax(logits / temperature), in float64."""
    expected = special.log_softmax(logits.astype(np.float64) / temperature, axis=0)
    chosen = np.take_along_axis(expected, np.asarray(drawn.tokens)[None], axis=0)[0]
    np.testing.assert_allclose(drawn.log_probs, chosen, rtol=1e-5, atol=2e-5)
    np.testing.assert_allclose(drawn.entropies, special.entr(np.exp(expected)).sum(0), atol=1e-4)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_tempered_softmax(temperature: float) -> None:
    count = 20_000
    logits = np.tile(ROW[:, None], count)
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
    logits = np.random.default_rng(seed).normal(scale=scale, size=(VOCAB, 5)).astype(np.float32)
    drawn = jitted_draw(logits, _keys(seed, 5), np.float32(temperature))
    _check_facts(drawn, logits, temperature)


def test_a_draw_depends_on_its_own_column_and_key_alone() -> None:
    logits = np.random.default_rng(0).normal(size=(VOCAB, 64)).astype(np.float32)
    keys = _keys(1, 64)
    drawn = jitted_draw(logits, keys, np.float32(1))
    backwards = jitted_draw(logits[:, ::-1], keys[::-1], np.float32(1))
    np.testing.assert_array_equal(drawn.tokens, backwards.tokens[::-1])
    other = jitted_draw(logits, _keys(2, 64), np.float32(1))
    assert np.any(drawn.tokens != other.tokens)


def test_tokens_of_probability_zero_are_never_drawn_and_leave_the_facts_finite() -> None:
    row = np.where(np.arange(VOCAB) % 2 == 0, ROW, -np.inf).astype(np.float32)
    drawn = jitted_draw(np.tile(row[:, None], 500), _keys(0, 500), np.float32(1))
    assert set(np.asarray(drawn.tokens).tolist()) <= {0, 2, 4, 6}
    kept = special.log_softmax(ROW[::2].astype(np.float64))
    np.testing.assert_allclose(drawn.entropies, -np.sum(np.exp(kept) * kept), atol=1e-5)
    np.testing.assert_allclose(drawn.log_probs, kept[np.asarray(drawn.tokens) // 2], atol=1e-5)


LARGE = 512


def _with_holes(seed: int, count: int) -> np.ndarray:
    """Logits [LARGE, count], three quarters of them -inf: first, last, half of the blocks."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=2.0, size=(LARGE, count)).astype(np.float32)
    logits[rng.random((LARGE, count)) < 0.5] = -np.inf
    logits[np.repeat(rng.random((LARGE // 32, count)) < 0.5, 32, axis=0)] = -np.inf
    logits[[0, -1]] = -np.inf
    logits[rng.integers(1, LARGE - 1, count), np.arange(count)] = 1.0
    return logits


def test_tokens_of_probability_zero_are_never_drawn_from_many_blocks() -> None:
    logits = _with_holes(0, 4000)
    assert 0.7 < np.mean(np.isneginf(logits)) < 0.8
    drawn = jitted_draw(logits, _keys(0, 4000), np.float32(1))
    assert np.all(np.isfinite(np.take_along_axis(logits, np.asarray(drawn.tokens)[None], axis=0)))
    _check_facts(drawn, logits, 1.0)


def _drawn_at(
    uniforms: np.ndarray | float, logits: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> np.ndarray:
    """The tokens when both uniform numbers of a column are the given one."""
    count = logits.shape[1]
    table = jnp.asarray(np.broadcast_to(np.float32(uniforms), count))

    def uniform(key: jax.Array, shape: tuple[int, ...], dtype: np.dtype) -> jax.Array:
        return jnp.broadcast_to(table[jax.random.key_data(key)[1]].astype(dtype), shape)

    monkeypatch.setattr(jax.random, "uniform", uniform)
    numbered = np.stack([np.zeros(count), np.arange(count)], axis=1).astype(np.uint32)
    keys = jax.random.wrap_key_data(jnp.asarray(numbered), impl="threefry2x32")
    return np.asarray(draw(jnp.asarray(logits), keys, jnp.float32(1)).tokens)


@pytest.mark.slow
def test_a_uniform_number_on_a_boundary_draws_what_comes_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two blocks of two equal tokens."""
    uniforms = np.array([0.0, 0.25, 0.5, 0.75])
    assert _drawn_at(uniforms, np.zeros((4, 4), np.float32), monkeypatch).tolist() == [0, 0, 3, 3]


@pytest.mark.slow
def test_rounding_of_cumulated_weights_draws_no_token_of_probability_zero(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A sum of some hundred float32 numbers may change where the next one is 0: aim there."""
    count, block, vocab_size = 64, 512, 8 * 8193
    rng = np.random.default_rng(0)
    inside = np.log(rng.exponential(size=(block, count))).astype(np.float32)
    inside[rng.random((block, count)) < 0.5] = -np.inf
    inside -= inside.max(axis=0)
    logits = np.full((vocab_size, count), -np.inf, np.float32)
    logits[:block] = inside
    assert block_shape(vocab_size)[2] == block
    cumulated = np.asarray(jnp.cumsum(jnp.exp(jnp.asarray(inside)), axis=0))
    rises = (np.diff(cumulated, axis=0) > 0) & np.isneginf(inside[1:])
    before = np.take_along_axis(cumulated, np.argmax(rises, axis=0)[None], axis=0)[0]
    tokens = _drawn_at(before / cumulated[-1], logits, monkeypatch)
    assert np.all(np.isfinite(np.take_along_axis(logits, tokens[None], axis=0)))


@pytest.mark.slow
def test_uniform_numbers_of_zero_draw_the_first_token_of_some_probability(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logits = _with_holes(1, 500)
    tokens = _drawn_at(0.0, logits, monkeypatch)
    np.testing.assert_array_equal(tokens, np.argmax(np.isfinite(logits), axis=0))


@pytest.mark.slow
def test_uniform_numbers_next_to_one_draw_a_last_token_of_some_probability(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Their product with the total may round to the total: what lies beyond is rounding too."""
    logits = _with_holes(1, 500)
    tokens = _drawn_at(1 - 2**-24, logits, monkeypatch)
    assert np.all(np.isfinite(np.take_along_axis(logits, tokens[None], axis=0)))
    shares = special.softmax(logits.astype(np.float64), axis=0)
    assert np.all(np.where(np.arange(LARGE)[:, None] > tokens, shares, 0.0).sum(axis=0) < 1e-5)


BLOCKS = {
    7: (1, 2, 4),
    12: (1, 3, 4),
    512: (8, 2, 32),
    8192: (8, 8, 128),
    151936: (8, 38, 512),
}


@pytest.mark.parametrize("vocab_size", BLOCKS)
def test_blocks_are_equal_cuts_of_equal_parts(vocab_size: int) -> None:
    parts, blocks, size = block_shape(vocab_size)
    assert (parts, blocks, size) == BLOCKS[vocab_size]
    part = vocab_size // parts
    assert parts * part == vocab_size
    assert (blocks - 1) * size < part <= blocks * size
    assert (size // 2) ** 2 < vocab_size <= size**2


_pairs = jax.jit(jax.vmap(lambda key: jax.random.uniform(key, (2,), jnp.float32)))
"""The uniform numbers of each key."""


class Expected(NamedTuple):
    """A token by the documented rule, and how near one of its uniform numbers is to another."""

    token: int
    margin: float


def _pick(weights: np.ndarray, uniform: float) -> tuple[int, float]:
    """The first index whose cumulated share exceeds `uniform`; the distance of the next share."""
    shares = np.cumsum(weights) / np.sum(weights)
    return int(np.sum(shares <= uniform)), float(np.min(np.abs(shares[:-1] - uniform), initial=1))


def _by_the_rule(logits: np.ndarray, temperature: float, uniforms: np.ndarray) -> Expected:
    """The first uniform number picks a block, the second a token of the block, in float64."""
    probabilities = special.softmax(logits.astype(np.float64) / temperature)
    parts, _, size = BLOCKS[len(logits)]
    part = len(logits) // parts
    starts = [first + at for first in range(0, len(logits), part) for at in range(0, part, size)]
    blocks = np.split(probabilities, starts[1:])
    block, outer = _pick(np.array([np.sum(inside) for inside in blocks]), float(uniforms[0]))
    offset, inner = _pick(blocks[block], float(uniforms[1]))
    return Expected(starts[block] + offset, min(outer, inner))


@pytest.mark.slow
@pytest.mark.parametrize("scale", [0.0, 1.0, 6.0])
@pytest.mark.parametrize("vocab_size", BLOCKS)
def test_a_draw_inverts_the_distribution_function_block_by_block(
    vocab_size: int, scale: float
) -> None:
    """Equal to the rule in float64, but where rounding may move a uniform number past a share."""
    count, temperature = (64 if vocab_size > 10_000 else 500), 0.75
    rng = np.random.default_rng(vocab_size)
    logits = rng.normal(scale=scale, size=(vocab_size, count)).astype(np.float32)
    keys = _keys(3, count)
    drawn = jitted_draw(logits, keys, np.float32(temperature))
    uniforms = np.asarray(_pairs(keys))
    expected = [
        _by_the_rule(column, temperature, pair)
        for column, pair in zip(logits.T, uniforms, strict=True)
    ]
    clear = np.array([one.margin > 1e-5 for one in expected])
    assert np.mean(clear) > 0.9
    np.testing.assert_array_equal(
        np.asarray(drawn.tokens)[clear], np.array([one.token for one in expected])[clear]
    )
    _check_facts(drawn, logits, temperature)


def test_greedy_takes_the_most_probable_token_and_the_lowest_id_among_equals() -> None:
    logits = np.stack([ROW, ROW[::-1], np.zeros(VOCAB, np.float32)], axis=1)
    logits[5, 0] = ROW.max()
    chosen = greedy(jnp.asarray(logits))
    assert chosen.tokens.tolist() == [2, 4, 0]
    _check_facts(chosen, logits, 1.0)


def test_a_small_temperature_draws_what_greedy_takes() -> None:
    logits = np.random.default_rng(0).normal(size=(VOCAB, 64)).astype(np.float32)
    drawn = jitted_draw(logits, _keys(0, 64), np.float32(1e-4))
    np.testing.assert_array_equal(drawn.tokens, greedy(jnp.asarray(logits)).tokens)
