"""Grouped-query attention of new tokens over a cache."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rft_jax.models.rope import at_least_float32


class KeyValues(NamedTuple):
    """What one layer's attention reads while decoding, row by row of a cache.

    A row serves B / R samples that follow one another: a prompt's serves the samples of its
    question, a sample's own tokens serve only it. Keys stand transposed, as the products that
    read them run along the positions.
    """

    keys: Float[Array, "R K H T"]
    values: Float[Array, "R K T H"]


def decode_attention(
    queries: Float[Array, "N H B"],
    parts: tuple[tuple[KeyValues, Bool[Array, "B _"]], ...],
    *,
    softcap: float = 0.0,
) -> Float[Array, "N H B"]:
    """Attention of one new token per sample over the parts of what came before it.

    A row of a cache is read once for all its samples.

    Args:
        queries: rotated, not yet scaled.
        parts: caches, each with which of its positions a sample sees; every sample must see one.
        softcap: bound of the scores, see `capped`.
    """
    heads, width, batch = queries.shape
    kv_heads = parts[0][0].keys.shape[1]
    groups, dtype = heads // kv_heads, at_least_float32(queries.dtype)
    # Samples come first as in the caches: XLA's CPU backend would copy those otherwise.
    grouped = (queries / math.sqrt(width)).reshape(kv_heads, groups, width, batch)
    grouped = grouped.transpose(3, 0, 1, 2)

    def scores(cache: KeyValues, visible: Array) -> Array:
        rows = _by_row(grouped, cache.keys.shape[0])
        products = capped(_of_few("rkmh,rkht->rkmt", rows, cache.keys), softcap)
        return jnp.where(visible[:, None, None], _by_sample(products, batch), -jnp.inf)

    all_scores = [scores(*part) for part in parts]
    # One softmax over all parts.
    top = functools.reduce(jnp.maximum, [jnp.max(s, axis=-1, keepdims=True) for s in all_scores])
    weights = [jnp.exp(s - top) for s in all_scores]
    total = sum(jnp.sum(w, axis=-1, keepdims=True) for w in weights)
    mixed = jnp.zeros((), dtype)
    for weight, (cache, _) in zip(weights, parts, strict=True):
        rows = _by_row(weight.astype(cache.values.dtype), cache.values.shape[0])
        values = _of_few("rkmt,rkth->rkmh", rows, cache.values)
        mixed = mixed + _by_sample(values, batch)
    mixed = (mixed / total).astype(queries.dtype)
    return mixed.transpose(1, 2, 3, 0).reshape(queries.shape)


def capped(x: Float[Array, "..."], softcap: float) -> Float[Array, "..."]:
    """softcap * tanh(x / softcap) (Gemma 2, arXiv 2408.00118, section 2); x itself for 0."""
    return softcap * jnp.tanh(x / softcap) if softcap else x


def _of_few(
    terms: str, queries: Float[Array, "R K M _"], cache: Float[Array, "R K _ _"]
) -> Float[Array, "R K M _"]:
    """`product` where a row may have a single query.

    With a single one XLA's TPU backend multiplies and sums element by element: that leaves the
    matrix unit idle, and wants the caches in another layout than they come in.
    """
    if queries.shape[2] > 1:
        return product(terms, queries, cache)
    return jax.lax.platform_dependent(
        queries,
        cache,
        tpu=lambda a, b: product(terms, jnp.pad(a, ((0, 0), (0, 0), (0, 1), (0, 0))), b)[:, :, :1],
        default=lambda a, b: product(terms, a, b),
    )


def product(terms: str, a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    """einsum with sums in at least float32."""
    dtype = at_least_float32(a.dtype)
    if a.dtype == dtype:
        return jnp.einsum(terms, a, b)
    # XLA's CPU backend has no batched product of bfloat16 with a sum in float32 for every shape.
    return jax.lax.platform_dependent(
        a,
        b,
        cpu=lambda a, b: jnp.einsum(terms, a.astype(dtype), b.astype(dtype)),
        default=lambda a, b: jnp.einsum(terms, a, b, preferred_element_type=dtype),
    )


def _by_row(x: Float[Array, "B K G E"], rows: int) -> Float[Array, "R K M E"]:
    """The samples of a row side by side, M = G B / R."""
    batch, kv_heads, groups, last = x.shape
    if batch == rows:
        return x
    split = x.reshape(rows, batch // rows, kv_heads, groups, last)
    return split.transpose(0, 2, 1, 3, 4).reshape(rows, kv_heads, -1, last)


def _by_sample(x: Float[Array, "R K M E"], batch: int) -> Float[Array, "B K G E"]:
    """The inverse of `_by_row`."""
    rows, kv_heads, side_by_side, last = x.shape
    if batch == rows:
        return x
    lanes = batch // rows
    split = x.reshape(rows, kv_heads, lanes, side_by_side // lanes, last)
    return split.transpose(0, 2, 1, 3, 4).reshape(batch, kv_heads, -1, last)


def write_column(
    cache: KeyValues,
    keys: Float[Array, "K H B"],
    values: Float[Array, "K H B"],
    column: Int[Array, ""],
) -> KeyValues:
    """Write the new tokens' keys and values to one column, in place when the cache is donated."""
    new_keys = keys.transpose(2, 0, 1)[..., None]
    new_values = values.transpose(2, 0, 1)[:, :, None]
    return KeyValues(
        jax.lax.dynamic_update_slice_in_dim(cache.keys, new_keys, column, axis=3),
        jax.lax.dynamic_update_slice_in_dim(cache.values, new_values, column, axis=2),
    )
