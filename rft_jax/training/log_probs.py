"""Log-probs of given tokens, computed so that the logits of all tokens never exist at once."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rft_jax.config import ModelConfig
from rft_jax.models import transformer
from rft_jax.types import Params


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

    Logits exist for about `chunk` tokens at a time, in the forward pass and, recomputed when there
    are more tokens, in the backward pass. A part takes some slots of every row, so that rows split
    over devices stay where they are.
    Slots of segment 0 hold numbers without meaning: weigh them by 0.
    """
    hidden = transformer.hidden_states(params, inputs, positions, segments, config=config)
    name = "embedding" if config.tie_embeddings else "unembedding"
    table = transformer.in_use({name: params[name]}, config)
    rows, slots = targets.shape
    size = min(max(1, chunk // rows), slots)
    parts = -(-slots // size)
    padding = parts * size - slots
    flat = jnp.pad(hidden, ((0, 0), (0, 0), (0, padding))).reshape(-1, rows, parts, size)
    wanted = jnp.pad(targets, ((0, 0), (0, padding))).reshape(rows, parts, size)

    def of_part(hidden_part: Array, wanted_part: Array) -> Array:
        logits = transformer.logits(table, hidden_part, config=config) / temperature
        # A sum takes no look-up in a vocabulary that may be split, and no scatter to go back.
        token = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 0)
        chosen = jnp.sum(jnp.where(token == wanted_part[None], logits, 0.0), axis=0)
        return chosen - jax.nn.logsumexp(logits, axis=0)

    if parts == 1:
        return of_part(hidden, targets)
    one = jax.checkpoint(of_part, prevent_cse=False)
    _, log_probs = jax.lax.scan(
        lambda _, part: (None, one(*part)),
        None,
        (jnp.moveaxis(flat, 2, 0), jnp.moveaxis(wanted, 1, 0)),
    )
    return jnp.moveaxis(log_probs, 0, 1).reshape(rows, -1)[:, :slots]
