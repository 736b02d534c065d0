"""Changes the layout of the slots of a rollout in progress: a longer ring, or fewer slots.

Everything here is for one shard of the batch, like rft_jax/rollout/slots.py.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array

from rft_jax.models.attention import KeyValues
from rft_jax.models.transformer import Cache
from rft_jax.rollout.slots import Slots, by_heads


def grow(slots: Slots, *, ring: int, prompt_width: int) -> Slots:
    """The same slots with a ring of `ring` columns, more than before; prompt_width: P."""
    in_front = 0 if slots.cache.prompts else prompt_width
    old = slots.cache.own[0].keys.shape[-1] - in_front
    newest = slots.step[0] - 1
    step_of_column = newest - (newest - jnp.arange(ring)) % ring
    # Columns older than the old ring hold nothing anyone sees.
    source = jnp.concatenate([jnp.arange(in_front), in_front + step_of_column % old])
    own = tuple(
        by_heads(
            KeyValues(jnp.take(own.keys, source, axis=3), jnp.take(own.values, source, axis=2))
        )
        for own in slots.cache.own
    )
    return slots._replace(cache=slots.cache._replace(own=own))


def shrink(slots: Slots, *, size: int) -> Slots:
    """The slots at work, at most `size`, each with a copy of its prompt before its own tokens.

    For the last samples of a rollout, once the queue is empty.
    """
    entries = slots.questions.shape[1]
    lanes = slots.samples.shape[0] // slots.questions.shape[0]
    chosen = jnp.argsort(slots.samples < 0, stable=True)[:size]
    row, entry = chosen // lanes, slots.entries[chosen]

    def prompt(rows: Array, axis: int) -> Array:
        parts = jnp.split(rows[row], entries, axis=axis)
        own_prompt = parts[0]
        for number, part in enumerate(parts[1:], start=1):
            own_prompt = jnp.where((entry == number)[:, None, None, None], part, own_prompt)
        return own_prompt

    own = tuple(KeyValues(kv.keys[chosen], kv.values[chosen]) for kv in slots.cache.own)
    if slots.cache.prompts:
        own = tuple(
            KeyValues(
                jnp.concatenate([prompt(before.keys, 3), mine.keys], axis=3),
                jnp.concatenate([prompt(before.values, 2), mine.values], axis=2),
            )
            for before, mine in zip(slots.cache.prompts, own, strict=True)
        )
    return slots._replace(
        samples=slots.samples[chosen],
        ages=slots.ages[chosen],
        entries=jnp.zeros((size,), jnp.int32),
        questions=slots.questions[row, entry][:, None],
        hidden=slots.hidden[chosen],
        cache=Cache((), tuple(by_heads(kv) for kv in own)),
    )
