"""Attention of new tokens over a cache."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rft_jax.models.attention import KeyValues, decode_attention, write_column

WIDTH = 8


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _plain(query: np.ndarray, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """One head of one query over the keys [seen, H] and values it sees, in float64."""
    scores = keys.astype(np.float64) @ query.astype(np.float64) / np.sqrt(WIDTH)
    weights = np.exp(scores - scores.max())
    return weights / weights.sum() @ values.astype(np.float64)


ROWS, LANES = 2, 3
BATCH = ROWS * LANES


def cache(seed: int, rows: int, positions: int) -> KeyValues:
    """Random keys and values of two heads."""
    return KeyValues(
        jnp.asarray(normal(seed, rows, 2, WIDTH, positions)),
        jnp.asarray(normal(seed + 1, rows, 2, positions, WIDTH)),
    )


def _check_decoding(*parts: tuple[KeyValues, np.ndarray], atol: float = 1e-6) -> None:
    """Every head of every sample against a plain softmax over what its masks let it see."""
    queries = normal(0, 4, WIDTH, BATCH)
    found = decode_attention(
        jnp.asarray(queries), tuple((of_part, jnp.asarray(mask)) for of_part, mask in parts)
    )
    assert found.shape == queries.shape
    for sample, head in np.ndindex(BATCH, 4):
        keys, values = [], []
        for of_part, mask in parts:
            all_keys, all_values = map(np.asarray, of_part)
            row = sample // (BATCH // len(all_keys))
            for at in np.flatnonzero(mask[sample]):
                keys.append(all_keys[row, head // 2, :, at])
                values.append(all_values[row, head // 2, at])
        expected = _plain(queries[head, :, sample], np.stack(keys), np.stack(values))
        np.testing.assert_allclose(found[head, :, sample], expected, atol=atol)


@pytest.mark.parametrize("position", [0, 2, 4])
def test_decode_attention_sees_the_prompt_and_its_own_tokens_so_far(position: int) -> None:
    lengths = np.repeat([3, 1], LANES)
    on_prompt = np.arange(4) < lengths[:, None]
    on_own = np.broadcast_to(np.arange(5) <= position, (BATCH, 5))
    _check_decoding((cache(1, ROWS, 4), on_prompt), (cache(3, BATCH, 5), on_own))


@pytest.mark.parametrize("column", [0, 1, 5])
def test_decode_attention_sees_one_of_a_rows_prompts_and_the_last_columns_of_a_ring(
    column: int,
) -> None:
    """Each sample sees one of its row's two prompts, of four places each, and as many columns back
    from the newest as it has tokens: around the end of the ring, with a hole in the middle."""
    entries, lengths = np.array([0, 1, 0, 1, 1, 0]), np.array([[3, 2], [1, 4]])
    ages = np.array([1, 6, 4, 5, 2, 3])
    on_prompt, on_own = np.zeros((BATCH, 8), bool), np.zeros((BATCH, 6), bool)
    for sample, (entry, age) in enumerate(zip(entries, ages, strict=True)):
        on_prompt[sample, 4 * entry : 4 * entry + lengths[sample // LANES, entry]] = True
        on_own[sample, (column - np.arange(age)) % 6] = True
    _check_decoding((cache(1, ROWS, 8), on_prompt), (cache(3, BATCH, 6), on_own))


@pytest.mark.slow
@settings(max_examples=25)
@given(seed=st.integers(0, 2**16))
def test_decode_attention_sees_what_its_masks_say(seed: int) -> None:
    """Any masks, also those that leave nothing of all parts but one; one part, two or three."""
    rng = np.random.default_rng(seed)
    prompts, shared, own = cache(1, ROWS, 8), cache(3, 1, 5), cache(5, BATCH, 6)
    on_prompts, on_shared, on_own = (rng.random((BATCH, size)) < 0.4 for size in (8, 5, 6))
    for mask in (on_shared, on_own):
        mask[rng.random(BATCH) < 0.3] = False
    on_prompts[:, rng.integers(8)] = True
    _check_decoding((prompts, on_prompts), (own, on_own))
    _check_decoding((prompts, on_prompts))
    _check_decoding((shared, on_shared), (prompts, on_prompts), (own, on_own))
    on_prompts[:3], on_own[:3, rng.integers(6)] = False, True
    _check_decoding((prompts, on_prompts), (own, on_own))
    _check_decoding((own, on_own | (np.arange(6) == 2)))


def test_decode_attention_caps_scores() -> None:
    queries, own = normal(0, 4, WIDTH, BATCH), cache(3, BATCH, 5)
    mask = jnp.ones((BATCH, 5), bool)
    found = decode_attention(jnp.asarray(queries), ((own, mask),), softcap=0.7)
    for head, sample in np.ndindex(4, BATCH):
        keys = np.asarray(own.keys, np.float64)[sample, head // 2].T
        scores = 0.7 * np.tanh(keys @ queries[head, :, sample] / np.sqrt(WIDTH) / 0.7)
        weights = np.exp(scores) / np.exp(scores).sum()
        expected = weights @ np.asarray(own.values, np.float64)[sample, head // 2]
        np.testing.assert_allclose(found[head, :, sample], expected, atol=1e-6)


@pytest.mark.parametrize("large", [0, 1])
def test_decode_attention_keeps_large_scores_finite(large: int) -> None:
    """Scores of some thousands, in either part; a float32 of that size errs by some 1e-4."""
    caches = [cache(1, ROWS, 4), cache(3, BATCH, 5)]
    caches[large] = caches[large]._replace(keys=1000 * caches[large].keys)
    masks = np.ones((BATCH, 4), bool), np.ones((BATCH, 5), bool)
    _check_decoding(*zip(caches, masks, strict=True), atol=2e-3)


def test_what_a_sample_does_not_see_does_not_change_a_bit() -> None:
    prompt, own = cache(1, ROWS, 4), cache(3, BATCH, 5)
    queries = jnp.asarray(normal(0, 4, WIDTH, BATCH))
    on_prompt, on_own = normal(5, BATCH, 4) > 0, normal(6, BATCH, 5) > 0
    on_prompt[:, 0], on_own[:, 3] = True, False
    first, mask = (prompt, jnp.asarray(on_prompt)), jnp.asarray(on_own)
    expected = decode_attention(queries, (first, (own, mask)))
    other = KeyValues(own.keys.at[..., 3].set(1e6), own.values.at[..., 3, :].set(1e6))
    np.testing.assert_array_equal(decode_attention(queries, (first, (other, mask))), expected)


@pytest.mark.parametrize("column", [0, 3, 4])
def test_writing_tokens_changes_their_column_alone(column: int) -> None:
    before, keys, values = (
        cache(3, BATCH, 5),
        normal(5, 2, WIDTH, BATCH),
        normal(6, 2, WIDTH, BATCH),
    )
    found = write_column(before, jnp.asarray(keys), jnp.asarray(values), jnp.int32(column))
    expected_keys, expected_values = map(np.array, before)
    for sample in range(BATCH):
        expected_keys[sample, :, :, column] = keys[:, :, sample]
        expected_values[sample, :, column] = values[:, :, sample]
    np.testing.assert_array_equal(found.keys, expected_keys)
    np.testing.assert_array_equal(found.values, expected_values)


def test_a_donated_cache_is_written_in_place() -> None:
    before, new = cache(3, BATCH, 5), jnp.asarray(normal(5, 2, WIDTH, BATCH))
    places = [leaf.unsafe_buffer_pointer() for leaf in before]
    found = jax.jit(write_column, donate_argnums=0)(before, new, new, jnp.int32(3))
    assert [leaf.unsafe_buffer_pointer() for leaf in found] == places
