"""From logits to a token: the sampling distribution, its log-probs and its entropy."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key


class Draw(NamedTuple):
    """One token per sample, with what the sampling distribution says of it, in nats."""

    tokens: Int[Array, "B"]
    log_probs: Float[Array, "B"]
    entropies: Float[Array, "B"]


def _entropy(log_probs: Float[Array, "B V"]) -> Float[Array, "B"]:
    return -jnp.sum(jnp.exp(log_probs) * jnp.where(log_probs > -jnp.inf, log_probs, 0.0), axis=-1)


def draw(logits: Float[Array, "B V"], keys: Key[Array, "B"], temperature: Float[Array, ""]) -> Draw:
    """Sample from softmax(logits / temperature) by the Gumbel-max trick, one key per sample."""
    log_probs = jax.nn.log_softmax(logits / temperature)
    noise = jax.vmap(lambda key: jax.random.gumbel(key, (logits.shape[-1],)))(keys)
    tokens = jnp.argmax(log_probs + noise, axis=-1).astype(jnp.int32)
    chosen = jnp.take_along_axis(log_probs, tokens[:, None], axis=-1)[:, 0]
    return Draw(tokens, chosen, _entropy(log_probs))


def greedy(logits: Float[Array, "B V"]) -> Draw:
    """The most probable token (the lowest id among equals); log-probs at temperature 1."""
    log_probs = jax.nn.log_softmax(logits)
    tokens = jnp.argmax(log_probs, axis=-1).astype(jnp.int32)
    chosen = jnp.take_along_axis(log_probs, tokens[:, None], axis=-1)[:, 0]
    return Draw(tokens, chosen, _entropy(log_probs))
