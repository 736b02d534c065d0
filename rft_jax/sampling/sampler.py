"""Autoregressive sampling: one jitted call from prompts to G outputs each.

Prompts are prefilled once and shared by their G samples. A `while_loop` decodes all samples in
step and stops when every one has ended. Randomness is addressed (rft_jax/keys.py): an output
depends on its question, sample index and step alone, not on what is sampled beside it.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from rft_jax.batches import Completions, Params, Prompts
from rft_jax.config import ModelConfig
from rft_jax.keys import sample_keys, token_keys
from rft_jax.models import transformer
from rft_jax.sampling import logits as sampling_logits


class _Loop(NamedTuple):
    """The decode loop's state; outputs are kept time-major so that a step writes one row."""

    position: Int[Array, ""]
    hidden: Float[Array, "Q G D"]
    cache: transformer.Cache
    done: Bool[Array, "B"]
    lengths: Int[Array, "B"]
    tokens: Int[Array, "T B"]
    log_probs: Float[Array, "T B"]
    entropies: Float[Array, "T B"]


@functools.partial(
    jax.jit, static_argnames=("config", "num_samples", "max_new_tokens", "eos_id", "greedy")
)
def sample(
    params: Params,
    prompts: Prompts,
    root: Key[Array, ""],
    step: Int[Array, ""],
    temperature: Float[Array, ""],
    *,
    config: ModelConfig,
    num_samples: int,
    max_new_tokens: int,
    eos_id: int,
    greedy: bool = False,
) -> Completions:
    """Sample `num_samples` outputs per prompt from softmax(logits / temperature), or greedily.

    root and step address the randomness (keys.sample_keys). A prompt whose id is negative fills
    the shape: it samples nothing and has length 0. EOS is part of an output that ends with it.
    Under `greedy` temperature and keys have no effect and log-probs are those of temperature 1.
    """
    questions = prompts.ids.shape[0]
    batch = questions * num_samples
    indices = jnp.tile(jnp.arange(num_samples), questions)
    ids = jnp.repeat(prompts.ids, num_samples)
    keys = sample_keys(root, step=step, question_ids=ids, sample_indices=indices)

    hidden, cache = transformer.prefill(
        params, prompts, config=config, num_samples=num_samples, max_new_tokens=max_new_tokens
    )
    start = _Loop(
        position=jnp.int32(0),
        hidden=jnp.broadcast_to(hidden[:, None], (questions, num_samples, hidden.shape[-1])),
        cache=cache,
        done=ids < 0,
        lengths=jnp.zeros((batch,), jnp.int32),
        tokens=jnp.zeros((max_new_tokens, batch), jnp.int32),
        log_probs=jnp.zeros((max_new_tokens, batch), jnp.float32),
        entropies=jnp.zeros((max_new_tokens, batch), jnp.float32),
    )

    def running(loop: _Loop) -> Bool[Array, ""]:
        return (loop.position < max_new_tokens) & ~jnp.all(loop.done)

    def advance(loop: _Loop) -> _Loop:
        scores = transformer.logits(params, loop.hidden, config=config).reshape(batch, -1)
        if greedy:
            new = sampling_logits.greedy(scores)
        else:
            new = sampling_logits.draw(scores, token_keys(keys, loop.position), temperature)
        tokens = jnp.where(loop.done, 0, new.tokens)
        hidden, cache = transformer.decode(
            params,
            tokens.reshape(questions, num_samples),
            loop.position,
            loop.cache,
            config=config,
        )
        return _Loop(
            position=loop.position + 1,
            hidden=hidden,
            cache=cache,
            done=loop.done | (tokens == eos_id),
            lengths=loop.lengths + ~loop.done,
            tokens=loop.tokens.at[loop.position].set(tokens),
            log_probs=loop.log_probs.at[loop.position].set(
                jnp.where(loop.done, 0.0, new.log_probs)
            ),
            entropies=loop.entropies.at[loop.position].set(
                jnp.where(loop.done, 0.0, new.entropies)
            ),
        )

    end = jax.lax.while_loop(running, advance, start)
    shape = (questions, num_samples)
    finished = jnp.any(end.tokens == eos_id, axis=0) & (end.lengths > 0)
    return Completions(
        tokens=end.tokens.T.reshape(*shape, max_new_tokens),
        log_probs=end.log_probs.T.reshape(*shape, max_new_tokens),
        entropies=end.entropies.T.reshape(*shape, max_new_tokens),
        lengths=end.lengths.reshape(shape),
        finished=finished.reshape(shape),
    )
