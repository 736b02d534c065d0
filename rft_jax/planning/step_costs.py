"""What a step of a run costs one device: products, traffic and exchange, counted from its settings.

Counted is what the programs do, not the least that anybody could: the ring of keys and values is
read at its full length, a row of slots reads both of its prompts, and what is recomputed counts.
Every count is for given lengths, as a text decides them, not a setting.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

from rft_jax.config import Config
from rft_jax.observe.flops import BYTES, attention_flops, body_weights, head_weights, weights
from rft_jax.planning import memory
from rft_jax.planning.memory import FLOAT32, Sampled, Shards
from rft_jax.rollout import sampler

LOGIT_PASSES = 6
"""How often decoding and the update read or write each float32 logit."""
PACKED = 0.85
"""Share of the slots of packed rows that is filled (update/padding_efficiency)."""


class Lengths(NamedTuple):
    """Mean tokens of prompts and outputs, and the share of outputs that is accepted."""

    prompt: float
    output: float
    pass_rate: float


class Speeds(NamedTuple):
    """Of one device. flops: FLOP/s of products in the compute type; bandwidth: bytes/s of its
    memory; links: bytes/s that reach it from the devices that share its batch's parameters; tensor:
    the same from those that share its products; round: seconds that an exchange of these takes at
    least."""

    flops: float
    bandwidth: float
    links: float = math.inf
    tensor: float = math.inf
    round: float = 0.0


class Cost(NamedTuple):
    """Of one device: flops of matrix products; bytes of its memory; links: bytes from other devices
    that can come beside both; tensor: bytes of exchanges that the next product waits for, and
    rounds: how many these are."""

    flops: float
    bytes: float
    links: float = 0.0
    tensor: float = 0.0
    rounds: float = 0.0

    def times(self, count: float) -> Cost:
        """So many of it."""
        return Cost(*(count * part for part in self))

    def plus(self, other: Cost) -> Cost:
        """Both, one after the other."""
        return Cost(*map(sum, zip(self, other, strict=True)))

    def by_part(self, at: Speeds) -> dict[str, float]:
        """Seconds of each by itself; exchanges that are waited for come last."""
        return {
            "products": self.flops / at.flops,
            "memory": self.bytes / at.bandwidth,
            "links": self.links / at.links,
            "tensor exchange": self.tensor / at.tensor + self.rounds * at.round,
        }

    def seconds(self, at: Speeds) -> float:
        """The least time, when products, memory and links are at work together."""
        *together, waited = self.by_part(at).values()
        return max(together) + waited

    def bound(self, at: Speeds) -> str:
        """Which part takes longest."""
        parts = self.by_part(at)
        return max(parts, key=lambda name: parts[name])


class Shape(NamedTuple):
    """A model's, in the letters of floors.py."""

    layers: int
    d_model: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocab: int


def shape_of(config: Config) -> Shape:
    """The model as floors.py knows it. An embedding that is not tied is looked up, not read."""
    m = config.model
    return Shape(
        m.num_layers, m.d_model, m.num_heads, m.num_kv_heads, m.head_dim, m.mlp_dim,
        memory.vocabulary(config),
    )  # fmt: skip


def laying_out(config: Config, of: Shards) -> Cost:
    """The policy in its rollout's type and layout, and layer by layer."""
    whole, held = memory.rollout_weights(config, of), memory.held(config, of)
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
    exchanged = _exchange(config, of, questions * padded, 2)
    return Cost(flops, memory.rollout_weights(config, of) + 2 * written).plus(exchanged)


def _exchange(config: Config, of: Shards, tokens: float, a_layer: int) -> Cost:
    """Sums over the devices that share products: so many in every layer, of the activations."""
    if of.tensor == 1:
        return Cost(0.0, 0.0)
    model, count = config.model, a_layer * config.model.num_layers
    each = 2 * (1 - 1 / of.tensor) * BYTES[model.compute_dtype] * tokens * model.d_model
    return Cost(0.0, 0.0, 0.0, count * each, count)


class Stretch(NamedTuple):
    """Decode steps alike. slots: of one device; ring: columns of each; prompts: copies of prompts
    that are read; seen: of them, by one slot."""

    steps: float
    slots: int
    ring: int
    prompts: int
    seen: int


def stretches(config: Config, of: Shards, work: Sampled, lengths: Lengths) -> list[Stretch]:
    """All outputs: with every slot full for as long as the queue lasts, the ring growing with the
    longest output at work; then with a quarter of them until the longest output ends."""
    longest, questions = config.data.max_completion_tokens, work.questions // of.batch
    rows, lanes = sampler.slots_shape(questions, work.samples, -(-work.slots // of.batch))
    outputs, slots = questions * work.samples, rows * lanes
    entries = 1 if slots == outputs else 2
    rings = sorted({layout.ring for layout in sampler.layouts(1, longest, fewer=2)})
    full, found, done = lengths.output * max(1.0, outputs / slots), [], 0.0
    for ring in rings:
        until = full if ring == longest else min(full, float(ring))
        if until > done:
            found.append(Stretch(until - done, slots, ring, rows * entries, entries))
            done = until
    fewer = max(1, slots // sampler.SHRINK_ELSEWHERE)
    for ring in rings if done < longest else rings[-1:]:
        # Where all began together, the ring may still have to grow.
        first = max(lengths.output, 0.0 if ring == rings[0] else ring / 2)
        steps = min(longest, ring) - first
        if steps > 0:
            found.append(Stretch(steps, fewer, ring, fewer, 1))
    return found


def decode(config: Config, of: Shards, work: Sampled, lengths: Lengths) -> Cost:
    """All steps of `stretches`."""
    costs = [step(config, of, s).times(s.steps) for s in stretches(config, of, work, lengths)]
    return functools.reduce(Cost.plus, costs)


def full_step(config: Config, of: Shards, work: Sampled) -> Stretch:
    """One step with every slot full and the ring at its full length."""
    questions = work.questions // of.batch
    rows, lanes = sampler.slots_shape(questions, work.samples, -(-work.slots // of.batch))
    entries = 1 if rows * lanes == questions * work.samples else 2
    return Stretch(1, rows * lanes, config.data.max_completion_tokens, rows * entries, entries)


def step(config: Config, of: Shards, like: Stretch) -> Cost:
    """One decode step."""
    shape, width = shape_of(config), config.data.max_prompt_tokens
    columns = like.ring + like.seen * width
    flops = like.slots * (2.0 * weights(shape) + attention_flops(shape, columns)) / of.tensor
    cached = like.slots * like.ring + like.prompts * width
    read = _read_weights(config, of) + cached * memory.kv_bytes(config.model, of)
    logits = LOGIT_PASSES * memory.logits_bytes(config, of, like.slots)
    return Cost(flops, read + logits).plus(_exchange(config, of, like.slots, 2))


def decode_floor(config: Config, of: Shards, work: Sampled) -> Cost:
    """What one step with every slot full cannot do without: its products, the weights that they
    read, all tokens of the ring, and the prompt of each row once."""
    like = full_step(config, of, work)
    once = like._replace(prompts=like.prompts // like.seen, seen=1)
    read = step(config, of, once)
    logits = LOGIT_PASSES * memory.logits_bytes(config, of, like.slots)
    return Cost(read.flops, read.bytes - logits)


def update_floor(config: Config, of: Shards, microbatches: int) -> Cost:
    """The products of a forward and of a backward pass, each row a sequence of its own, nothing
    made anew; and the gradient, parameters and moments, once."""
    shape, rows = shape_of(config), config.update
    tokens = microbatches * rows.row_length * rows.rows_per_microbatch / of.batch / of.tensor
    frozen = 2.0 * weights(shape)
    attention = attention_flops(shape, (rows.row_length + 1) / 2)
    back = 1 if config.model.lora_rank else 2
    flops = tokens * ((1 + back) * frozen + 3 * attention)
    trained = memory.tree_bytes(memory.policy(config).trained, of, memory.as_masters, fsdp=True)
    return Cost(flops, 8 * trained)


def _read_weights(config: Config, of: Shards) -> float:
    """Bytes of the weights that products read."""
    return BYTES[config.model.compute_dtype] * weights(shape_of(config)) / of.tensor


def microbatches(config: Config, outputs: float, lengths: Lengths) -> int:
    """Of an update on so many outputs, over all devices."""
    tokens = outputs * (lengths.prompt + lengths.output) / PACKED
    return max(
        1, math.ceil(tokens / (config.update.row_length * config.update.rows_per_microbatch))
    )


def update(config: Config, of: Shards, micro: int) -> Cost:
    """One update of so many micro-batches."""
    model, rows = config.model, config.update
    shape = shape_of(config)
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
    # The output projection for each part of the logits: three times read, its gradient added to.
    rows_here = rows.rows_per_microbatch // of.batch
    parts = micro * (rows.row_length * rows_here / memory.tokens_at_once(config, of) - 1)
    table = BYTES[model.compute_dtype] * head_weights(shape) / of.tensor
    moved += parts * table * (3 + 2 * back)
    # Once: the gradient, and parameters and two moments read and written.
    moved += 7 * trained + tokens * 2 * kept + logits
    exchanged = 0.0
    if of.fsdp > 1:
        # Weights for the forward pass and for the backward pass; gradients, in the compute type.
        gradients = of.fsdp * trained * BYTES[model.compute_dtype] / FLOAT32
        each = 2 * (_read_weights(config, of) + gradients)
        exchanged = micro * each * (1 - 1 / of.fsdp)
        exchanged += micro * 2 * trained * (1 - 1 / of.data)
    elif of.data > 1:
        # On a mesh of data alone once, after the last micro-batch (training/update.py).
        times = 1 if of.tensor == 1 else micro
        exchanged = times * 2 * trained * (1 - 1 / of.data)
    sums = _exchange(config, of, tokens, 4 + 2 * (model.remat == "full"))
    return Cost(flops, moved, exchanged).plus(sums._replace(rounds=sums.rounds * micro))
