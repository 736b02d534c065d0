"""Log-probs of given tokens, computed so that the logits of all tokens never exist at once."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rft_jax.batches import Params
from rft_jax.config import ModelConfig
from rft_jax.models import transformer


def target_log_probs(
    params: Params,
    inputs: Int[Array, "R S"],
    targets: Int[Array, "R S"],
    positions: Int[Array, "R S"],
    segments: Int[Array, "R S"],
    temperature: Float[Array, ""],
    *,
    config: ModelConfig,
    chunk: int,
) -> Float[Array, "R S"]:
    """log softmax(logits / temperature)[target] in nats at every slot, float32.

    Logits exist for `chunk` tokens at a time, in the forward and (recomputed) the backward pass.
    Slots of segment 0 hold numbers without meaning: weigh them by 0.
    """
    hidden = transformer.hidden_states(params, inputs, positions, segments, config=config)
    tokens = targets.size
    size = min(chunk, tokens)
    chunks = -(-tokens // size)
    padding = chunks * size - tokens
    flat = jnp.pad(hidden.reshape(tokens, -1), ((0, padding), (0, 0)))
    wanted = jnp.pad(targets.reshape(tokens), (0, padding))

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def of_chunk(hidden_chunk: Array, wanted_chunk: Array) -> Array:
        logits = transformer.logits(params, hidden_chunk, config=config) / temperature
        chosen = jnp.take_along_axis(logits, wanted_chunk[:, None], axis=-1)[:, 0]
        return chosen - jax.nn.logsumexp(logits, axis=-1)

    _, log_probs = jax.lax.scan(
        lambda _, part: (None, of_chunk(*part)),
        None,
        (flat.reshape(chunks, size, -1), wanted.reshape(chunks, size)),
    )
    return log_probs.reshape(-1)[:tokens].reshape(targets.shape)
