"""Log-probs of given tokens, computed so that the logits of all tokens never exist at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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
    rows = (inputs, targets, positions, segments, temperature)
    found: Array = _of_slots(_log_probs, params, *rows, config=config, chunk=chunk)
    return found


def log_probs_and_entropies(
    params: Params, *rows: Array, config: ModelConfig, chunk: int
) -> tuple[Float[Array, "R S"], Float[Array, "R S"]]:
    """`target_log_probs` of the same arguments, and the entropies, in nats, of the distributions
    that the targets are of; both from the same logits."""

    def of_part(logits: Array, wanted: Array) -> tuple[Array, Array]:
        every = jax.nn.log_softmax(logits, axis=0)
        chances = jnp.exp(every)
        entropies = -jnp.sum(chances * jnp.where(chances > 0, every, 0.0), axis=0)
        return _log_probs(logits, wanted), entropies

    found: tuple[Array, Array] = _of_slots(of_part, params, *rows, config=config, chunk=chunk)
    return found


def _log_probs(logits: Float[Array, "V R S"], wanted: Int[Array, "R S"]) -> Float[Array, "R S"]:
    # A sum takes no look-up in a vocabulary that may be split, and no scatter to go back.
    token = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 0)
    chosen = jnp.sum(jnp.where(token == wanted[None], logits, 0.0), axis=0)
    return chosen - jax.nn.logsumexp(logits, axis=0)


def _of_slots(
    of_logits: Callable[[Array, Array], Any],
    params: Params,
    inputs: Int[Array, "R S"],
    targets: Int[Array, "R S"],
    positions: Int[Array, "R S"],
    segments: Int[Array, "R S"],
    temperature: Float[Array, ""],
    *,
    config: ModelConfig,
    chunk: int,
) -> Any:
    """Numbers at every slot, of its logits [V, ...] over the temperature and its target."""
    hidden = transformer.hidden_states(params, inputs, positions, segments, config=config)
    name = "embedding" if config.tie_embeddings else "unembedding"
    table = transformer.in_use({name: params[name]}, config)
    rows, slots = targets.shape
    size = min(max(1, chunk // rows), slots)
    parts = -(-slots // size)
    padding = parts * size - slots
    flat = jnp.pad(hidden, ((0, 0), (0, 0), (0, padding))).reshape(-1, rows, parts, size)
    wanted = jnp.pad(targets, ((0, 0), (0, padding))).reshape(rows, parts, size)

    def of_part(hidden_part: Array, wanted_part: Array) -> Any:
        logits = transformer.logits(table, hidden_part, config=config) / temperature
        return of_logits(logits, wanted_part)

    if parts == 1:
        return of_part(hidden, targets)
    one = jax.checkpoint(of_part, prevent_cse=False)
    _, found = jax.lax.scan(
        lambda _, part: (None, one(*part)),
        None,
        (jnp.moveaxis(flat, 2, 0), jnp.moveaxis(wanted, 1, 0)),
    )
    return jax.tree.map(
        lambda of_parts: jnp.moveaxis(of_parts, 0, 1).reshape(rows, -1)[:, :slots], found
    )
