"""Rotary positions and grouped-query attention, for packed rows and for decoding with a cache."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int


class PromptCache(NamedTuple):
    """Keys and values of one layer's prompts, stored once for the G samples of each question."""

    keys: Float[Array, "Q K P H"]
    values: Float[Array, "Q K P H"]


class CompletionCache(NamedTuple):
    """Keys and values of one layer's sampled tokens; slot t belongs to the token at position t."""

    keys: Float[Array, "Q G K T H"]
    values: Float[Array, "Q G K T H"]


def at_least_float32(dtype: DTypeLike) -> DTypeLike:
    """The type of norms, angles, scores and logits: float32, or float64 for float64."""
    return jnp.promote_types(dtype, jnp.float32)


def rotate(
    x: Float[Array, "... S N H"], positions: Int[Array, "... S"], *, theta: float
) -> Float[Array, "... S N H"]:
    """Rotary position embedding (RoFormer, arXiv 2104.09864, eq. 34), halves rotated as in Llama.

    Angles are computed in at least float32 whatever the type of x.
    """
    half, dtype = x.shape[-1] // 2, at_least_float32(x.dtype)
    frequencies = theta ** (-jnp.arange(half, dtype=dtype) / half)
    angles = positions[..., None, None].astype(dtype) * frequencies.reshape(
        (1,) * (positions.ndim + 1) + (half,)
    )
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = x[..., :half].astype(dtype), x[..., half:].astype(dtype)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)


def _softmax(scores: Float[Array, "... S"], mask: Bool[Array, "... S"]) -> Float[Array, "... S"]:
    """Softmax in at least float32 over unmasked positions; a row with none gives zeros, not NaN."""
    scores = jnp.where(mask, scores.astype(at_least_float32(scores.dtype)), -jnp.inf)
    top = jnp.max(scores, axis=-1, keepdims=True)
    weights = jnp.exp(scores - jnp.where(jnp.isfinite(top), top, 0.0))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    return weights / jnp.where(total > 0, total, 1.0)


def packed_attention(
    queries: Float[Array, "R S N H"],
    keys: Float[Array, "R S K H"],
    values: Float[Array, "R S K H"],
    segments: Int[Array, "R S"],
) -> Float[Array, "R S N H"]:
    """Causal attention within each segment of each row; segment 0 is padding."""
    rows, slots, heads, width = queries.shape
    kv_heads = keys.shape[2]
    grouped = queries.reshape(rows, slots, kv_heads, heads // kv_heads, width)
    scores = jnp.einsum(
        "rsknh,rtkh->rknst",
        grouped,
        keys,
        preferred_element_type=at_least_float32(queries.dtype),
    )
    same = (segments[:, :, None] == segments[:, None, :]) & (segments > 0)[:, :, None]
    causal = jnp.tril(jnp.ones((slots, slots), dtype=bool))
    weights = _softmax(scores / math.sqrt(width), (same & causal[None])[:, None, None])
    mixed = jnp.einsum("rknst,rtkh->rsknh", weights.astype(values.dtype), values)
    return mixed.reshape(queries.shape)


def decode_attention(
    queries: Float[Array, "Q G N H"],
    prompt: PromptCache,
    completion: CompletionCache,
    prompt_lengths: Int[Array, "Q"],
    position: Int[Array, ""],
) -> Float[Array, "Q G N H"]:
    """Attention of one new token per sample over its question's prompt and its own tokens.

    The prompt's keys are read once per question, not once per sample. `position` counts the
    sampled tokens before this one, whose own keys already stand in slot `position`.
    """
    questions, samples, heads, width = queries.shape
    kv_heads = prompt.keys.shape[1]
    grouped = queries.reshape(questions, samples, kv_heads, heads // kv_heads, width)
    dtype = at_least_float32(queries.dtype)
    on_prompt = jnp.einsum("qgknh,qkph->qgknp", grouped, prompt.keys, preferred_element_type=dtype)
    on_own = jnp.einsum(
        "qgknh,qgkth->qgknt", grouped, completion.keys, preferred_element_type=dtype
    )
    slots = prompt.keys.shape[2]
    in_prompt = jnp.arange(slots)[None, :] < prompt_lengths[:, None]
    in_own = jnp.arange(completion.keys.shape[3]) <= position
    mask = jnp.concatenate(
        [
            jnp.broadcast_to(in_prompt[:, None, None, None, :], on_prompt.shape),
            jnp.broadcast_to(in_own.reshape(1, 1, 1, 1, -1), on_own.shape),
        ],
        axis=-1,
    )
    scores = jnp.concatenate([on_prompt, on_own], axis=-1) / math.sqrt(width)
    weights = _softmax(scores, mask).astype(prompt.values.dtype)
    mixed = jnp.einsum("qgknp,qkph->qgknh", weights[..., :slots], prompt.values)
    mixed += jnp.einsum("qgknt,qgkth->qgknh", weights[..., slots:], completion.values)
    return mixed.reshape(queries.shape)


def write_completion(
    cache: CompletionCache,
    keys: Float[Array, "Q G K H"],
    values: Float[Array, "Q G K H"],
    position: Int[Array, ""],
) -> CompletionCache:
    """Put the new token's keys and values in slot `position`."""
    return CompletionCache(
        jax.lax.dynamic_update_slice_in_dim(cache.keys, keys[:, :, :, None], position, axis=3),
        jax.lax.dynamic_update_slice_in_dim(cache.values, values[:, :, :, None], position, axis=3),
    )
