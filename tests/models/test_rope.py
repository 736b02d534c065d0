"""Rotary positions: angles, the rotation by them, and how published models scale frequencies."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from rft_jax.models.rope import Rotation, frequencies, rotate, rotation

WIDTH = 8
THETA = 100.0
FREQUENCIES = frequencies(tiny.model(head_dim=WIDTH, rope_theta=THETA))


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def angles(positions: np.ndarray) -> Rotation:
    return rotation(jnp.asarray(positions), FREQUENCIES, dtype=jnp.float32)


def phases(positions: np.ndarray) -> np.ndarray:
    """exp(i * position * theta^(-2i / H)) of each pair [H / 2, ...positions], in float64."""
    plain = THETA ** (-np.arange(WIDTH // 2) / (WIDTH // 2))
    return np.exp(1j * np.multiply.outer(plain, positions))


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
        found = rotation(jnp.asarray(positions), FREQUENCIES, dtype=dtype)
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


def test_linear_scaling_divides_every_frequency() -> None:
    scaled = tiny.model(head_dim=WIDTH, rope_theta=THETA, rope_scaling="linear", rope_factor=8.0)
    np.testing.assert_allclose(frequencies(scaled), FREQUENCIES / 8)


LLAMA3 = tiny.model(
    head_dim=128, rope_theta=500_000.0, rope_scaling="llama3", rope_factor=8.0,
    rope_original_positions=8192,
)  # fmt: skip


def test_llama3_scaling_keeps_fast_frequencies_and_divides_slow_ones() -> None:
    plain = 500_000.0 ** (-np.arange(64) / 64)
    found, wavelengths = frequencies(LLAMA3), 2 * math.pi / plain
    fast, slow = wavelengths < 8192 / 4, wavelengths > 8192 / 1
    np.testing.assert_allclose(found[fast], plain[fast])
    np.testing.assert_allclose(found[slow], plain[slow] / 8)
    between = ~fast & ~slow
    assert np.all((found < plain)[between] & (found > plain / 8)[between])
    assert between.sum() > 3
    assert np.all(np.diff(found) < 0)


def test_layers_with_a_window_may_have_a_base_of_their_own_unscaled() -> None:
    config = tiny.model(
        head_dim=WIDTH, rope_theta=1e6, rope_scaling="linear", rope_factor=8.0,
        sliding_window=4, local_rope_theta=THETA,
    )  # fmt: skip
    np.testing.assert_allclose(frequencies(config, local=True), FREQUENCIES)
    assert np.max(np.abs(frequencies(config) - FREQUENCIES)) > 0.1
