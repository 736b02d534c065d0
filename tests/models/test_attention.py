"""Rotary positions, and attention over packed rows and over a cache."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rft_jax.models.attention import (
    KeyValues,
    Rotation,
    decode_attention,
    rotate,
    rotation,
    write_column,
)

WIDTH = 8
THETA = 100.0


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def angles(positions: np.ndarray) -> Rotation:
    return rotation(jnp.asarray(positions), width=WIDTH, theta=THETA, dtype=jnp.float32)


def phases(positions: np.ndarray) -> np.ndarray:
    """exp(i * position * theta^(-2i / H)) of each pair [H / 2, ...positions], in float64."""
    frequencies = THETA ** (-np.arange(WIDTH // 2) / (WIDTH // 2))
    return np.exp(1j * np.multiply.outer(frequencies, positions))


def turned(vector: np.ndarray, position: int) -> np.ndarray:
    """One vector of WIDTH at one position."""
    found = rotate(jnp.asarray(vector).reshape(1, WIDTH, 1), angles(np.array([position])))
    return np.asarray(found)[0, :, 0]


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


POSITIONS = np.array([[0, 1, 2, 3, 4], [7, 0, 900, 2, 1]])


def test_rotation_turns_the_halves_as_complex_pairs() -> None:
    x = normal(0, 3, WIDTH, 2, 5)
    pairs = (x[:, : WIDTH // 2] + 1j * x[:, WIDTH // 2 :]) * phases(POSITIONS)
    expected = np.concatenate([pairs.real, pairs.imag], axis=1)
    found = rotate(jnp.asarray(x), angles(POSITIONS))
    np.testing.assert_allclose(found, expected, atol=3e-4)
    np.testing.assert_array_equal(found[..., 0, 0], x[..., 0, 0])


@pytest.mark.parametrize(("dtype", "atol"), [("float32", 1e-4), ("float64", 1e-12)])
@pytest.mark.parametrize("positions", [np.array(900), np.arange(5), POSITIONS])
def test_rotations_are_the_cosines_and_sines_of_the_angles(
    positions: np.ndarray, dtype: str, atol: float
) -> None:
    with jax.enable_x64(True):
        found = rotation(jnp.asarray(positions), width=WIDTH, theta=THETA, dtype=dtype)
        assert found.cos.dtype == found.sin.dtype == dtype
        assert found.cos.shape == found.sin.shape == (WIDTH // 2, *positions.shape)
        together = np.asarray(found.cos) + 1j * np.asarray(found.sin)
    np.testing.assert_allclose(together, phases(positions), atol=atol)


def test_a_float32_rotation_of_bfloat16_keeps_its_angles_exact() -> None:
    """At position 1001 a bfloat16 angle would be off by up to 4 radians."""
    x, by = jnp.asarray(normal(0, 1, WIDTH, 1)), angles(np.array([1001]))
    found = rotate(x.astype(jnp.bfloat16), by)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), rotate(x, by), atol=2e-2)


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
