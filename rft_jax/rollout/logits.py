"""From logits to a token: the sampling distribution, its log-probs and its entropy."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

_PARTS = 8
"""Equal parts that the vocabulary is cut into first, so that no block of tokens straddles two
devices of a tensor axis that divides it."""


class Draw(NamedTuple):
    """One token per sample, with what the sampling distribution says of it, in nats."""

    tokens: Int[Array, "B"]
    log_probs: Float[Array, "B"]
    entropies: Float[Array, "B"]


class _Distribution(NamedTuple):
    """softmax(logits) as shifted logits (the largest is 0), their exponentials and the sum."""

    shifted: Float[Array, "V B"]
    weights: Float[Array, "V B"]
    total: Float[Array, "B"]


def _distribution(logits: Float[Array, "V B"]) -> _Distribution:
    shifted = logits - jnp.max(logits, axis=0, keepdims=True)
    weights = jnp.exp(shifted)
    return _Distribution(shifted, weights, jnp.sum(weights, axis=0))


def _with_facts(tokens: Int[Array, "B"], by: _Distribution) -> Draw:
    chosen = jnp.take_along_axis(by.shifted, tokens[None], axis=0)[0]
    log_total = jnp.log(by.total)
    finite = jnp.where(by.weights > 0, by.shifted, 0.0)
    mean = jnp.sum(by.weights * finite, axis=0) / by.total
    return Draw(tokens, chosen - log_total, log_total - mean)


def block_shape(vocab_size: int) -> tuple[int, int, int]:
    """(parts, blocks of a part, tokens of a block): about as many blocks as tokens in one."""
    parts = _PARTS if vocab_size % _PARTS == 0 else 1
    size = 1
    while size * size < vocab_size:
        size *= 2
    return parts, -(-vocab_size // (parts * size)), size


def _invert(weights: Float[Array, "W B"], uniform: Float[Array, "B"]) -> Int[Array, "B"]:
    """The first index whose cumulative weight exceeds `uniform` of the total; never a weight 0."""
    cumulated = jnp.cumsum(weights, axis=0)
    above = (cumulated > uniform[None] * cumulated[-1:]) & (weights > 0)
    # uniform * total may round up to the total: then it is the last one of any weight.
    last = weights.shape[0] - 1 - jnp.argmax(weights[::-1] > 0, axis=0)
    return jnp.where(jnp.any(above, axis=0), jnp.argmax(above, axis=0), last)


def draw(logits: Float[Array, "V B"], keys: Key[Array, "B"], temperature: Float[Array, ""]) -> Draw:
    """Sample from softmax(logits / temperature) by inverting its distribution function.

    Each key gives two uniform numbers: the first picks a block of tokens by its probability, the
    second a token of that block (a Gumbel-max draw takes V numbers). Neither sum is longer than
    some sqrt(V) blocks, so rounding hides no rare token. A token of probability 0 is never drawn.

    Args:
        logits: at least float32, any finite numbers, or -inf for a token never drawn.
        keys: one for each sample (keys.token_keys).
        temperature: positive.
    """
    distribution = _distribution(logits / temperature)
    vocab_size, batch = logits.shape
    parts, per_part, size = block_shape(vocab_size)
    part = vocab_size // parts
    blocks = distribution.weights.reshape(parts, part, batch)
    blocks = jnp.pad(blocks, ((0, 0), (0, per_part * size - part), (0, 0)))
    blocks = blocks.reshape(parts * per_part, size, batch)
    uniform = jax.vmap(lambda key: jax.random.uniform(key, (2,), jnp.float32))(keys)
    uniform = uniform.astype(distribution.weights.dtype)
    block = _invert(jnp.sum(blocks, axis=1), uniform[:, 0])
    inside = jnp.take_along_axis(blocks, block[None, None], axis=0)[0]
    offset = (block % per_part) * size + _invert(inside, uniform[:, 1])
    tokens = (block // per_part) * part + offset
    return _with_facts(tokens.astype(jnp.int32), distribution)


def greedy(logits: Float[Array, "V B"]) -> Draw:
    """The most probable token (among equals the lowest id); log-probs at temperature 1."""
    tokens = jnp.argmax(logits, axis=0).astype(jnp.int32)
    return _with_facts(tokens, _distribution(logits))
