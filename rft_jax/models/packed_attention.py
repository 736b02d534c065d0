"""Attention within packed rows, for training and for prefill.

Weights are not kept for the backward pass, which recomputes them from scores and their log-sum-exp
(FlashAttention-2, arXiv 2307.08691, algorithms 1 and 2). Queries are taken in blocks, each with the
keys up to its end only: little more than half of all pairs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from rft_jax.models.attention import capped, product
from rft_jax.models.rope import at_least_float32

QUERY_BLOCK = 64
"""Queries of a block, if that makes no more than MAX_BLOCKS of them."""
MAX_BLOCKS = 8
"""Blocks are unrolled: more would make the program longer, and save little."""

RESULTS = "attention"
"""The name of the results to a rematerialisation policy: what costs most to recompute."""

_LOWEST = -1e30
"""Stands for the largest score of a slot that sees nothing."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def packed_attention(
    queries: Float[Array, "N H R S"],
    keys: Float[Array, "K H R S"],
    values: Float[Array, "K H R S"],
    segments: Int[Array, "R S"],
    window: Int[Array, ""] | None = None,
    softcap: float = 0.0,
) -> Float[Array, "N H R S"]:
    """Causal attention within each segment of each row; zeros in segment 0, which is padding.

    Args:
        queries, keys: rotated; queries not yet scaled.
        values: in the type of the others.
        segments: number of the sequence of each slot, from 1.
        window: newest slots that a slot sees, its own included; None for all.
        softcap: bound of the scores, see `attention.capped`.
    """
    return _forward(queries, keys, values, segments, window, softcap)[0]


def scaled(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x / sqrt(H), [N, H, R, S]."""
    return x / math.sqrt(x.shape[1])


_Kept = tuple[Array, Array, Array, Array, Array | None, Array, Array]


def _forward(
    queries: Array,
    keys: Array,
    values: Array,
    segments: Array,
    window: Array | None,
    softcap: float,
) -> tuple[Array, _Kept]:
    q, k = _by_head(scaled(queries), keys.shape[0]), _by_head(keys)
    v = _by_head(values)
    mixed, log_sums = [], []
    for block, seen in _blocks(queries.shape[-1]):
        scores = capped(_scores(q[:, :, :, block], k[:, :, seen]), softcap)
        scores = jnp.where(_visible(segments, block, seen, window), scores, -jnp.inf)
        top = jnp.maximum(jnp.max(scores, axis=-1), _LOWEST)
        weights = jnp.exp(scores - top[..., None])
        total = jnp.sum(weights, axis=-1)
        total = jnp.where(total > 0, total, 1.0)
        sums = product("rkgst,rkth->rkgsh", weights.astype(values.dtype), v[:, :, seen])
        mixed.append(sums / total[..., None])
        log_sums.append(top + jnp.log(total))
    out = _features_first(jnp.concatenate(mixed, axis=3)).astype(queries.dtype)
    out = checkpoint_name(out, RESULTS)
    log_sum = checkpoint_name(jnp.concatenate(log_sums, axis=3), RESULTS)
    return out, (queries, keys, values, segments, window, out, log_sum)


def _backward(softcap: float, kept: _Kept, d_out: Array) -> tuple[Array, Array, Array, None, None]:
    queries, keys, values, segments, window, out, log_sums = kept
    kv_heads, dtype = keys.shape[0], at_least_float32(queries.dtype)
    q, k = _by_head(scaled(queries), kv_heads), _by_head(keys)
    v, d_o = _by_head(values), _by_head(d_out, kv_heads)
    # What a weight gains by an increase of its score, the other weights lose: sum_t w_t dw_t.
    given = jnp.sum(d_out.astype(dtype) * out.astype(dtype), axis=1)
    given = given.reshape(kv_heads, -1, *given.shape[1:]).transpose(2, 0, 1, 3)
    d_queries = []
    d_keys, d_values = (jnp.zeros(k.shape, dtype) for _ in range(2))
    for block, seen in _blocks(queries.shape[-1]):
        some, theirs = q[:, :, :, block], d_o[:, :, :, block]
        scores = capped(_scores(some, k[:, :, seen]), softcap)
        weights = jnp.exp(scores - log_sums[:, :, :, block, None])
        weights = jnp.where(_visible(segments, block, seen, window), weights, 0.0)
        d_weights = _scores(theirs, v[:, :, seen])
        d_scores = weights * (d_weights - given[:, :, :, block, None])
        if softcap:
            d_scores = d_scores * (1 - (scores / softcap) ** 2)  # tanh' = 1 - tanh^2
        d_scores = d_scores.astype(keys.dtype)
        weights = weights.astype(values.dtype)
        d_queries.append(product("rkgst,rkth->rkgsh", d_scores, k[:, :, seen]))
        d_keys = d_keys.at[:, :, seen].add(product("rkgst,rkgsh->rkth", d_scores, some))
        d_values = d_values.at[:, :, seen].add(product("rkgst,rkgsh->rkth", weights, theirs))
    return (
        scaled(_features_first(jnp.concatenate(d_queries, axis=3))).astype(queries.dtype),
        _features_first(d_keys[:, :, None]).astype(keys.dtype),
        _features_first(d_values[:, :, None]).astype(values.dtype),
        None,
        None,
    )


packed_attention.defvjp(_forward, _backward)


def _blocks(slots: int) -> Iterator[tuple[slice, slice]]:
    """(queries of a block, keys that some of them see)."""
    size = max(QUERY_BLOCK, -(-slots // MAX_BLOCKS))
    for first in range(0, slots, size):
        last = min(first + size, slots)
        yield slice(first, last), slice(0, last)


def _visible(
    segments: Int[Array, "R S"], block: slice, seen: slice, window: Int[Array, ""] | None
) -> Bool[Array, "R 1 1 Block Seen"]:
    here, there = segments[:, block, None], segments[:, None, seen]
    slots = jnp.arange(segments.shape[1])
    ago = slots[None, block, None] - slots[None, None, seen]
    visible = (here == there) & (here > 0) & (ago >= 0)
    if window is not None:
        # Slots of a segment follow one another, so slots apart are positions apart.
        visible = visible & (ago < window)
    return visible[:, None, None]


_scores = functools.partial(product, "rkgsh,rkth->rkgst")


def _by_head(x: Array, kv_heads: int = 0) -> Array:
    """[K, H, R, S] as [R, K, S, H]; with `kv_heads` [N, H, R, S] as [R, K, G, S, H], G = N / K."""
    if not kv_heads:
        return x.transpose(2, 0, 3, 1)
    return x.reshape(kv_heads, -1, *x.shape[1:]).transpose(3, 0, 1, 4, 2)


def _features_first(x: Float[Array, "R K G S H"]) -> Float[Array, "N H R S"]:
    by_head = x.transpose(1, 2, 4, 0, 3)
    return by_head.reshape(-1, *by_head.shape[2:])
