"""The decode loop on the device: slots that take sample after sample from a queue.

The S slots stand in R rows of S / R lanes. The lanes of a row read one copy of a prompt's keys and
values. Where slots are refilled a row has room for two prompts, so that a lane whose sample has
ended takes the next one while its neighbours still work on the question before. All slots write the
keys and values of step s to column s mod T of a ring, one write in place for all; a slot sees the
last columns, as many as its sample has tokens.

Everything here is for one shard of the batch; samples are numbered question by question.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from rft_jax.config import ModelConfig
from rft_jax.distributed.mesh import constrain
from rft_jax.keys import sample_keys, token_keys
from rft_jax.models import transformer
from rft_jax.models.attention import KeyValues
from rft_jax.rollout import logits as sampling_logits
from rft_jax.types import Params, Prompts

PREFILL_TOKENS = 16_384
"""Prompt tokens that are prefilled at a time."""


class Store(NamedTuple):
    """What the queue hands out: the questions of a shard after their prefill.

    caches: empty when every sample has its slot from the start; hidden: after the prompt's last
    token; keys: one for each sample; limits: the most tokens of a sample, 0 for none.
    """

    caches: tuple[KeyValues, ...]
    hidden: Float[Array, "Q D"]
    prompt_lengths: Int[Array, "Q"]
    keys: Key[Array, "Q G"]
    limits: Int[Array, "Q G"]


class Outputs(NamedTuple):
    """Everything sampled so far, by sample number (B = Q G); zero where nothing is.

    ended: by EOS or at its limit; one of limit 0 never begins.
    """

    tokens: Int[Array, "B T"]
    log_probs: Float[Array, "B T"]
    entropies: Float[Array, "B T"]
    lengths: Int[Array, "B"]
    finished: Bool[Array, "B"]
    ended: Bool[Array, "B"]


class Slots(NamedTuple):
    """The loop's state: S slots in R rows with W prompts each. Scalars of a shard are arrays [1],
    so that shards can be put in a row.

    step: decode steps so far; head: the next sample of the queue; samples: of each slot, -1 for
        none; ages: tokens it has so far; entries: which prompt of its row; questions: in the row,
        -1 for none; hidden: what its next token is drawn from.
    """

    step: Int[Array, "1"]
    head: Int[Array, "1"]
    samples: Int[Array, "S"]
    ages: Int[Array, "S"]
    entries: Int[Array, "S"]
    questions: Int[Array, "R W"]
    hidden: Float[Array, "S D"]
    cache: transformer.Cache
    outputs: Outputs


def by_heads(cache: KeyValues) -> KeyValues:
    """The cache with each device of a tensor-parallel shard holding its own heads."""
    return KeyValues(*(constrain(leaf, None, "kv_heads", None, None) for leaf in cache))


def start(
    params: Params,
    prompts: Prompts,
    limits: Int[Array, "Q G"],
    root: Key[Array, ""],
    rollout_step: Int[Array, ""],
    *,
    config: ModelConfig,
    shape: tuple[int, int],
    ring: int,
    max_new_tokens: int,
) -> tuple[Store, Slots]:
    """Prefill all prompts, and put the first samples into the slots.

    Args:
        params: unstacked (transformer.unstack).
        prompts: int32 [Q, P].
        limits: most tokens of each output, 0 for none.
        root: the run's key.
        rollout_step: number of the rollout, int32.
        config: of the model.
        shape: (rows, lanes) of the slots; with as many slots as samples each row is a question,
            otherwise lanes must not exceed G.
        ring: columns of the slots' own cache.
        max_new_tokens: T.
    """
    questions, samples = limits.shape
    rows, lanes = shape
    hidden, caches = _prefill(params, prompts, config)
    caches = tuple(by_heads(cache) for cache in caches)
    total = questions * samples
    numbers = jnp.arange(rows * lanes)
    slot_questions = jnp.minimum(numbers, total - 1) // samples
    first, last = slot_questions[::lanes], slot_questions[lanes - 1 :: lanes]
    everyone = rows * lanes == total and lanes == samples
    if everyone:
        in_rows, kept = first[:, None], caches
    else:
        in_rows = jnp.stack([first, jnp.where(last > first, last, -1)], axis=1)
        kept = tuple(by_heads(_of_rows(cache, in_rows)) for cache in caches)
    keys = sample_keys(
        root,
        step=rollout_step,
        question_ids=jnp.repeat(prompts.ids, samples),
        sample_indices=jnp.tile(jnp.arange(samples), questions),
    )
    working = (numbers < total) & (limits.reshape(-1)[jnp.minimum(numbers, total - 1)] > 0)
    own, dtype = (rows * lanes, config.num_kv_heads), caches[0].keys.dtype
    empty = by_heads(
        KeyValues(
            jnp.zeros((*own, config.head_dim, ring), dtype),
            jnp.zeros((*own, ring, config.head_dim), dtype),
        )
    )
    store = Store(
        () if everyone else caches,
        hidden,
        prompts.lengths,
        keys.reshape(questions, samples),
        limits,
    )
    slots = Slots(
        step=jnp.zeros((1,), jnp.int32),
        head=jnp.full((1,), min(rows * lanes, total), jnp.int32),
        samples=jnp.where(working, numbers, -1),
        ages=jnp.zeros((rows * lanes,), jnp.int32),
        entries=(slot_questions > jnp.repeat(first, lanes)).astype(jnp.int32),
        questions=in_rows.astype(jnp.int32),
        hidden=hidden[slot_questions],
        cache=transformer.Cache(kept, (empty,) * config.num_layers),
        outputs=Outputs(
            jnp.zeros((total, max_new_tokens), jnp.int32),
            jnp.zeros((total, max_new_tokens), jnp.float32),
            jnp.zeros((total, max_new_tokens), jnp.float32),
            jnp.zeros((total,), jnp.int32),
            jnp.zeros((total,), bool),
            jnp.zeros((total,), bool),
        ),
    )
    return store, slots


def _prefill(
    params: Params, prompts: Prompts, config: ModelConfig
) -> tuple[Float[Array, "Q D"], tuple[KeyValues, ...]]:
    questions, width = prompts.tokens.shape
    at_once = max(1, PREFILL_TOKENS // width)
    if questions <= at_once:
        hidden, caches = transformer.prefill(params, prompts, config=config)
        return hidden.T, caches

    def one(prompt: Prompts) -> tuple[Array, tuple[KeyValues, ...]]:
        single = jax.tree.map(lambda leaf: leaf[None], prompt)
        hidden, caches = transformer.prefill(params, single, config=config)
        return hidden[:, 0], jax.tree.map(lambda leaf: leaf[0], caches)

    return jax.lax.map(one, prompts, batch_size=at_once)


def _of_rows(cache: KeyValues, questions: Int[Array, "R W"]) -> KeyValues:
    """Each row's prompts side by side, [R, K, H, W P] and [R, K, W P, H]."""
    entries = range(questions.shape[1])
    rows = [jnp.maximum(questions[:, entry], 0) for entry in entries]
    return KeyValues(
        jnp.concatenate([cache.keys[row] for row in rows], axis=3),
        jnp.concatenate([cache.values[row] for row in rows], axis=2),
    )


def decode(
    params: Params,
    store: Store,
    slots: Slots,
    temperature: Float[Array, ""],
    max_steps: Int[Array, ""],
    *,
    config: ModelConfig,
    prompt_width: int,
    eos_ids: tuple[int, ...],
    greedy: bool,
    in_step: bool,
) -> tuple[Slots, Int[Array, "1 5"]]:
    """Run `max_steps` steps, or fewer when nothing is left to sample and not `in_step`.

    Args:
        params: unstacked (transformer.unstack).
        store, slots: as `start` returned them, or a later call.
        temperature: positive; no effect under `greedy`.
        max_steps: so few that no sample outgrows the ring: the caller sees to it.
        config: of the model.
        prompt_width: P.
        eos_ids: tokens that end an output.
        greedy: take the most probable token.
        in_step: run the same number of steps on all shards. The devices of a shard exchange parts
            of activations, and an exchange may be one that all devices of the mesh take part in.

    Returns: the slots, and (working slots, tokens of the longest sample at work, samples in the
        queue, samples that have ended, steps since the start).
    """
    limit = slots.outputs.tokens.shape[1]
    first = slots.step[0]
    table = transformer.rotation_table(config, prompt_width + limit)

    def running(slots: Slots) -> Bool[Array, ""]:
        more = slots.step[0] - first < max_steps
        left = jnp.any(slots.samples >= 0) | (slots.head[0] < slots.outputs.lengths.shape[0])
        return more if in_step else more & left

    def advance(slots: Slots) -> Slots:
        slots = _refill(store, slots) if store.caches else slots
        new = _draw(params, store, slots, temperature, config=config, greedy=greedy)
        return _advance(
            params, store, slots, new, table, config=config, width=prompt_width, eos_ids=eos_ids
        )

    slots = jax.lax.while_loop(running, advance, slots)
    at_work = slots.samples >= 0
    waiting = slots.outputs.lengths.shape[0] - slots.head[0]
    longest = jnp.max(jnp.where(at_work, slots.ages, 0))
    ended = jnp.sum(slots.outputs.ended & (slots.outputs.lengths > 0))
    summary = jnp.stack([jnp.sum(at_work), longest, waiting, ended, slots.step[0]])
    return slots, summary[None].astype(jnp.int32)


def _draw(
    params: Params,
    store: Store,
    slots: Slots,
    temperature: Float[Array, ""],
    *,
    config: ModelConfig,
    greedy: bool,
) -> sampling_logits.Draw:
    """The next token of every slot."""
    scores = transformer.logits(params, slots.hidden.T, config=config)
    if greedy:
        return sampling_logits.greedy(scores)
    keys = token_keys(store.keys.reshape(-1)[jnp.maximum(slots.samples, 0)], slots.ages)
    return sampling_logits.draw(scores, keys, temperature)


def _advance(
    params: Params,
    store: Store,
    slots: Slots,
    new: sampling_logits.Draw,
    table: transformer.Rotations,
    *,
    config: ModelConfig,
    width: int,
    eos_ids: tuple[int, ...],
) -> Slots:
    """Keep the drawn tokens, free the slots whose samples end, run the model on the others."""
    samples_per_question = store.limits.shape[1]
    at_work, sample = slots.samples >= 0, jnp.maximum(slots.samples, 0)
    limits = store.limits.reshape(-1)[sample]
    ended = at_work & (is_one_of(new.tokens, eos_ids) | (slots.ages + 1 >= limits))
    # A slot must see something, an idle one too: what it writes to the ring must be finite.
    lengths = jnp.maximum(store.prompt_lengths[sample // samples_per_question], 1)
    ages = jnp.where(at_work, slots.ages + 1, 0)

    columns = slots.cache.own[0].keys.shape[-1]
    in_front = 0 if slots.cache.prompts else width
    ring = columns - in_front
    column = slots.step[0] % ring
    positions = lengths + jnp.maximum(ages - 1, 0)

    def visible(window: int) -> transformer.Visible:
        """Everything that came before, or, with a window, the newest positions of it."""
        ago = ((column - jnp.arange(ring)) % ring)[None]
        on_own, on_prompt = ago < ages[:, None], jnp.arange(width)[None] < lengths[:, None]
        if window:
            on_own = on_own & (ago < window)
            on_prompt = on_prompt & (positions[:, None] - jnp.arange(width)[None] < window)
        if in_front:
            return transformer.Visible(None, jnp.concatenate([on_prompt, on_own], axis=1))
        entries = range(slots.questions.shape[1])
        prompts_seen = [on_prompt & (slots.entries == entry)[:, None] for entry in entries]
        return transformer.Visible(jnp.concatenate(prompts_seen, axis=1), on_own)

    everything = visible(0)
    hidden, cache = transformer.decode(
        params,
        new.tokens,
        positions,
        slots.cache,
        in_front + column,
        everything,
        visible(config.sliding_window) if config.sliding_window else everything,
        table,
        config=config,
    )
    return slots._replace(
        step=slots.step + 1,
        samples=jnp.where(ended, -1, slots.samples),
        ages=ages,
        hidden=hidden.T,
        cache=cache,
        outputs=_record(slots, new, ended, eos_ids),
    )


def is_one_of(tokens: Int[Array, "S"], ids: tuple[int, ...]) -> Bool[Array, "S"]:
    """Which tokens are among the ids, of which there is at least one."""
    return functools.reduce(jnp.logical_or, [tokens == token for token in ids])


def _record(
    slots: Slots, new: sampling_logits.Draw, ended: Bool[Array, "S"], eos_ids: tuple[int, ...]
) -> Outputs:
    """The outputs with the drawn tokens."""
    at, old = slots.ages, slots.outputs
    # Beyond the end for a slot without a sample: dropped.
    sample = jnp.where(slots.samples >= 0, slots.samples, old.lengths.shape[0])
    log_probs, entropies = (x.astype(jnp.float32) for x in (new.log_probs, new.entropies))
    return Outputs(
        tokens=old.tokens.at[sample, at].set(new.tokens, mode="drop"),
        log_probs=old.log_probs.at[sample, at].set(log_probs, mode="drop"),
        entropies=old.entropies.at[sample, at].set(entropies, mode="drop"),
        lengths=old.lengths.at[sample].set(at + 1, mode="drop"),
        finished=old.finished.at[sample].set(is_one_of(new.tokens, eos_ids), mode="drop"),
        ended=old.ended.at[sample].set(ended, mode="drop"),
    )


def _refill(store: Store, slots: Slots) -> Slots:
    """Give the queue's next samples to idle slots whose row holds their prompt, or has room."""
    total, samples_per_question = slots.outputs.lengths.shape[0], store.limits.shape[1]
    rows, entries = slots.questions.shape
    lanes = slots.samples.shape[0] // rows

    def places(slots: Slots) -> Int[Array, "S W"]:
        """2 where the next sample finds its prompt, 1 where its prompt can be put, else 0."""
        question = slots.head[0] // samples_per_question
        at_work = slots.samples >= 0
        reads_entry = (slots.entries[:, None] == jnp.arange(entries)[None]) & at_work[:, None]
        in_use = jnp.any(reads_entry.reshape(rows, lanes, entries), axis=1)
        value = jnp.where(slots.questions == question, 2, jnp.where(in_use, 0, 1))
        return jnp.where(at_work[:, None], 0, jnp.repeat(value, lanes, axis=0))

    def wanted(slots: Slots) -> Bool[Array, ""]:
        return (slots.head[0] < total) & jnp.any(places(slots) > 0)

    def admit(slots: Slots) -> Slots:
        best = jnp.argmax(places(slots).reshape(-1))
        slot, entry = best // entries, best % entries
        row, sample = slot // lanes, slots.head[0]
        question = sample // samples_per_question
        # A prompt that is there is written again: that costs less than a branch over the cache.
        prompts = tuple(
            _put(prompt, source, row, entry, question)
            for prompt, source in zip(slots.cache.prompts, store.caches, strict=True)
        )
        has_tokens = store.limits.reshape(-1)[sample] > 0
        return slots._replace(
            head=slots.head + 1,
            samples=slots.samples.at[slot].set(jnp.where(has_tokens, sample, -1)),
            ages=slots.ages.at[slot].set(0),
            entries=slots.entries.at[slot].set(entry),
            questions=slots.questions.at[row, entry].set(question),
            hidden=slots.hidden.at[slot].set(store.hidden[question]),
            cache=slots.cache._replace(prompts=prompts),
        )

    return jax.lax.while_loop(wanted, admit, slots)


def _put(
    prompts: KeyValues,
    source: KeyValues,
    row: Int[Array, ""],
    entry: Int[Array, ""],
    question: Int[Array, ""],
) -> KeyValues:
    width = source.keys.shape[-1]
    keys = jax.lax.dynamic_index_in_dim(source.keys, question)
    values = jax.lax.dynamic_index_in_dim(source.values, question)
    zero = jnp.zeros((), row.dtype)
    at = entry * width
    return KeyValues(
        jax.lax.dynamic_update_slice(prompts.keys, keys, (row, zero, zero, at)),
        jax.lax.dynamic_update_slice(prompts.values, values, (row, zero, at, zero)),
    )
