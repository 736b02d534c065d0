"""Attention within packed rows: values and gradients of the formula, whatever the blocks."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rft_jax.models.packed_attention import MAX_BLOCKS, QUERY_BLOCK, packed_attention

WIDTH = 8
LONGEST = QUERY_BLOCK * MAX_BLOCKS
"""Slots of the longest row in blocks of QUERY_BLOCK."""


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _plain(query: np.ndarray, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """One head of one query over the keys [seen, H] and values it sees, in float64."""
    scores = keys.astype(np.float64) @ query.astype(np.float64) / np.sqrt(WIDTH)
    weights = np.exp(scores - scores.max())
    return weights / weights.sum() @ values.astype(np.float64)


SEGMENTS = np.array([[1, 1, 2, 2, 2, 0, 3], [0, 0, 5, 5, 0, 0, 0]])


def packed() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Queries of four heads, keys and values of two, for the slots of SEGMENTS."""
    return normal(0, 4, WIDTH, 2, 7), normal(1, 2, WIDTH, 2, 7), normal(2, 2, WIDTH, 2, 7)


def test_packed_attention_is_causal_within_segments() -> None:
    queries, keys, values = packed()
    found = packed_attention(*map(jnp.asarray, (queries, keys, values, SEGMENTS)))
    for row, slot, head in np.ndindex(2, 7, 4):
        seen = (SEGMENTS[row] == SEGMENTS[row, slot]) & (np.arange(7) <= slot)
        expected = (
            _plain(
                queries[head, :, row, slot],
                keys[head // 2, :, row, seen],
                values[head // 2, :, row, seen],
            )
            if SEGMENTS[row, slot]
            else np.zeros(WIDTH)
        )
        np.testing.assert_allclose(found[head, :, row, slot], expected, atol=1e-6)


def test_slots_without_anything_to_see_give_zeros_and_finite_gradients() -> None:
    def total(queries: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
        return jnp.sum(packed_attention(queries, keys, values, jnp.asarray(SEGMENTS)) ** 2)

    grads = jax.grad(total, argnums=(0, 1, 2))(*map(jnp.asarray, packed()))
    for grad in grads:
        assert np.all(np.isfinite(grad))
        assert not np.any(np.asarray(grad)[..., SEGMENTS == 0])


def formula(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    segments: jax.Array,
    window: int | None = None,
    softcap: float = 0.0,
) -> jax.Array:
    """softmax(q k / sqrt(H)) v with all weights at once, differentiated as it stands."""
    slots = jnp.arange(segments.shape[1])
    ago = slots[:, None] - slots[None]
    seen = (ago >= 0) & (ago < (window or len(slots)))
    seen = (segments[:, :, None] == segments[:, None]) & seen[None]
    groups = queries.shape[0] // keys.shape[0]
    keys, values = (jnp.repeat(x, groups, axis=0) for x in (keys, values))
    scores = jnp.einsum("nhrs,nhrt->nrst", queries, keys) / math.sqrt(queries.shape[1])
    if softcap:
        scores = softcap * jnp.tanh(scores / softcap)
    weights = jax.nn.softmax(jnp.where(seen[None], scores, -jnp.inf), axis=-1)
    mixed = jnp.einsum("nrst,nhrt->nhrs", weights, values)
    return jnp.where(segments > 0, mixed, 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("softcap", [0.0, 1.5])
@pytest.mark.parametrize("window", [None, 1, 7, QUERY_BLOCK + 9])
def test_windows_and_caps_act_on_values_and_gradients(window: int | None, softcap: float) -> None:
    slots = 2 * QUERY_BLOCK + 5
    segments = np.repeat(np.array([[1, 2, 0]], np.int32), [30, slots - 34, 4], axis=1)
    qkv = [jnp.asarray(normal(i, n, WIDTH, 1, slots)) for i, n in enumerate((4, 2, 2))]
    upstream = jnp.asarray(normal(3, 4, WIDTH, 1, slots))

    def results(attention, window):  # type: ignore[no-untyped-def]
        def total(*qkv: jax.Array) -> tuple[jax.Array, jax.Array]:
            found = attention(*qkv, jnp.asarray(segments), window, softcap)
            return jnp.sum(upstream * found), found

        gradients, found = jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(*qkv)
        return found, *gradients

    found = results(packed_attention, None if window is None else jnp.int32(window))
    for one, other in zip(found, results(formula, window), strict=True):
        # With a window of 1 nothing depends on queries and keys: their gradients are 0.
        np.testing.assert_allclose(one, other, atol=1e-5 * max(np.abs(other).max(), 1.0))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-5), ("bfloat16", 2e-2)]
)
@pytest.mark.parametrize(
    "slots", [QUERY_BLOCK - 3, 2 * QUERY_BLOCK + 5, QUERY_BLOCK * MAX_BLOCKS + 9]
)
def test_values_and_gradients_are_those_of_the_formula(
    slots: int, dtype: str, tolerance: float
) -> None:
    ends = np.sort(np.random.default_rng(slots).integers(slots, size=(2, 3)), axis=1)
    segments = (np.arange(slots) >= ends[..., None]).sum(axis=1) + 1
    segments[:, slots - 5 :] = 0
    with jax.enable_x64(True):
        wide = [jnp.asarray(normal(i, n, WIDTH, 2, slots), dtype) for i, n in enumerate((4, 2, 2))]
        upstream = jnp.asarray(normal(3, 4, WIDTH, 2, slots), jnp.float64)

        def results(attention, qkv):  # type: ignore[no-untyped-def]
            def total(*qkv: jax.Array) -> tuple[jax.Array, jax.Array]:
                found = attention(*qkv, jnp.asarray(segments))
                return jnp.sum(upstream * found.astype(jnp.float64)), found

            gradients, found = jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(*qkv)
            return found, *gradients

        found = results(packed_attention, wide)
        expected = results(formula, [x.astype(jnp.float64) for x in wide])
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        difference = np.asarray(one, np.float64) - np.asarray(other)
        assert np.abs(difference).max() < tolerance * np.abs(other).max()


def test_no_weights_are_kept_for_the_backward_pass() -> None:
    def kept(attention: Callable[..., jax.Array]) -> int:
        """Numbers that the forward pass of a gradient leaves behind."""
        shapes = [jax.ShapeDtypeStruct((n, WIDTH, 1, LONGEST), jnp.float32) for n in (4, 2, 2)]
        segments = jnp.ones((1, LONGEST), jnp.int32)
        backward = jax.eval_shape(lambda *qkv: jax.vjp(attention, *qkv, segments)[1], *shapes)
        return sum(leaf.size for leaf in jax.tree.leaves(backward))

    assert kept(packed_attention) < 4 * LONGEST**2 < kept(formula)
