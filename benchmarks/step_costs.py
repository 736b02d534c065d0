"""What a step of a run costs one device: products, traffic and exchange, counted from its settings.

Counted is what the programs do, not the least that anybody could: the ring of keys and values is
read at its full length, a row of slots reads both of its prompts, and what is recomputed counts.
Every count is for given lengths, as a text decides them, not a setting.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from benchmarks import memory
from benchmarks.devices import Device
from benchmarks.floors import (
    BYTES,
    attention_flops,
    body_weights,
    head_weights,
    weights,
)
from benchmarks.memory import FLOAT32, Sampled, Shards
from benchmarks.work import Shape
from rft_jax.config import Config
from rft_jax.sampling import sampler

LOGIT_PASSES = 6
"""How often decoding and the update read or write each float32 logit."""
PACKED = 0.85
"""Share of the slots of packed rows that is filled (update/padding_efficiency)."""


class Lengths(NamedTuple):
    """Mean tokens of prompts and outputs, and the share of outputs that is accepted."""

    prompt: float
    output: float
    pass_rate: float


class Cost(NamedTuple):
    """Of one device: flops of matrix products, bytes of its memory, bytes from other devices."""

    flops: float
    bytes: float
    links: float = 0.0

    def times(self, count: float) -> Cost:
        """So many of it."""
        return Cost(*(count * part for part in self))

    def plus(self, other: Cost) -> Cost:
        """Both, one after the other."""
        return Cost(*map(sum, zip(self, other, strict=True)))

    def seconds(self, device: Device, dtype: str) -> float:
        """The least time, when products, memory and links are at work together."""
        exchange = self.links / device.links if device.links else 0.0
        return max(self.flops / device.flops[dtype], self.bytes / device.bandwidth, exchange)


def shape_of(config: Config) -> Shape:
    """The model as floors.py knows it. An embedding that is not tied is looked up, not read."""
    m = config.model
    return Shape(
        m.num_layers, m.d_model, m.num_heads, m.num_kv_heads, m.head_dim, m.mlp_dim,
        memory.vocabulary(config),
    )  # fmt: skip


def _whole_weights(config: Config, of: Shards) -> float:
    """Bytes of the rollout's weights on a device, each once."""
    return memory.rollout_weights(config, of)["the same by layer"]


def laying_out(config: Config, of: Shards) -> Cost:
    """The policy in its rollout's type and layout, and layer by layer."""
    whole, held = _whole_weights(config, of), memory.held(config, of)
    read = held["masters"] + held.get("frozen base", 0.0)
    from_others = whole * (1 - 1 / of.fsdp)
    return Cost(0.0, read + 3 * whole, from_others)


def prefill(config: Config, of: Shards, work: Sampled) -> Cost:
    """All prompts, padded to the longest that is allowed; logits after the last token only."""
    shape, padded = shape_of(config), config.data.max_prompt_tokens
    questions = work.questions / of.batch
    seen = padded * (padded + 1) / 2
    flops = 2.0 * (body_weights(shape) * padded + head_weights(shape))
    flops = questions * (flops + attention_flops(shape, seen)) / of.tensor
    written = questions * padded * memory.kv_bytes(config.model, of)
    return Cost(flops, _whole_weights(config, of) + 2 * written)


def decode(config: Config, of: Shards, work: Sampled, lengths: Lengths) -> Cost:
    """All outputs: with every slot full for as long as the queue lasts, then with a quarter of them
    until the longest output ends."""
    longest, questions = config.data.max_completion_tokens, work.questions // of.batch
    rows, lanes = sampler.slots_shape(questions, work.samples, -(-work.slots // of.batch))
    outputs, slots = questions * work.samples, rows * lanes
    entries = 1 if slots == outputs else 2
    full = lengths.output * max(1.0, outputs / slots)
    fewer = max(1, slots // sampler.SHRINK_ELSEWHERE)
    first = _step(config, of, slots, rows * entries, entries)
    last = _step(config, of, fewer, fewer, 1)
    return first.times(full).plus(last.times(max(longest - lengths.output, 0.0)))


def _step(config: Config, of: Shards, slots: int, prompts: int, seen: int) -> Cost:
    """One decode step. prompts: copies of prompts that are read; seen: of them, by one slot."""
    shape, data = shape_of(config), config.data
    columns = data.max_completion_tokens + seen * data.max_prompt_tokens
    flops = slots * (2.0 * weights(shape) + attention_flops(shape, columns)) / of.tensor
    cached = slots * data.max_completion_tokens + prompts * data.max_prompt_tokens
    read = _read_weights(config, of) + cached * memory.kv_bytes(config.model, of)
    return Cost(flops, read + LOGIT_PASSES * memory.logits_bytes(config, of, slots))


def _read_weights(config: Config, of: Shards) -> float:
    """Bytes of the weights that products read."""
    return BYTES[config.model.compute_dtype] * weights(shape_of(config)) / of.tensor


def update(config: Config, of: Shards, outputs: float, lengths: Lengths) -> Cost:
    """One update on so many outputs, over all devices."""
    model, rows = config.model, config.update
    shape = shape_of(config)
    tokens = outputs * (lengths.prompt + lengths.output) / PACKED
    micro = max(1, math.ceil(tokens / (rows.row_length * rows.rows_per_microbatch)))
    tokens = micro * rows.row_length * rows.rows_per_microbatch / of.batch
    body = 2.0 * body_weights(shape) + attention_flops(shape, rows.row_length / 2)
    head = 2.0 * head_weights(shape)
    # Backwards: gradients of activations and, but for adapters, of weights; logits are made anew.
    back = 1 if model.lora_rank else 2
    flops = tokens * (body * (1 + back + (model.remat == "full")) + head * (2 + back)) / of.tensor
    trained = memory.tree_bytes(memory.policy(config).trained, of, memory.as_masters, fsdp=True)
    passes = 2 + (model.remat == "full")
    kept = BYTES[model.compute_dtype] * model.num_layers * memory.kept_numbers(model, of)
    logits = 2 * LOGIT_PASSES * memory.logits_bytes(config, of, tokens)
    moved = micro * (passes * _read_weights(config, of) + 3 * trained)
    # Once: the gradient, and parameters and two moments read and written.
    moved += 7 * trained + tokens * 2 * kept + logits
    exchanged = 0.0
    if of.fsdp > 1:
        # Weights for the forward pass and for the backward pass; gradients, in the compute type.
        gradients = of.fsdp * trained * BYTES[model.compute_dtype] / FLOAT32
        each = 2 * (_read_weights(config, of) + gradients)
        exchanged = micro * each * (1 - 1 / of.fsdp)
    elif of.data > 1:
        exchanged = 2 * trained * (1 - 1 / of.data)
    return Cost(flops, moved, exchanged)
