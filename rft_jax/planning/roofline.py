"""Seconds of a run by count: products, traffic and exchanges of a device at published rates.

The least that anybody must do is counted in rft_jax/observe/flops.py. Added here is what the
programs do on top: prompts are padded, the ring of keys and values is read at its full length, a
row of slots reads both of its prompts, logits are passed over several times, what is recomputed
counts, and devices exchange. Every count is for given lengths, as a text decides them, not a
setting. Compiling, checkpoints, verification that sampling does not hide, and the host's own work
are not in it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from rft_jax.config import Config
from rft_jax.observe import flops as counts
from rft_jax.observe.flops import Cost, Model, Speeds
from rft_jax.planning import memory
from rft_jax.planning.memory import FLOAT32, Sampled, Shards
from rft_jax.rollout import sampler

SHARES = {"weights": 0.5, "prefill": 0.4, "decode": 0.5, "update": 0.4}
"""Assumed: of the published rates, what each phase reaches."""
LOGIT_PASSES = 6
"""How often decoding and the update read or write each float32 logit."""
PACKED = 0.85
"""Share of the slots of packed rows that is filled (update/padding_efficiency)."""


class Supposed(NamedTuple):
    """What a plan takes for granted: mean tokens of prompts and outputs, the share of outputs that
    is accepted, and questions of an evaluation on the validation set and on the test set."""

    prompt: float
    output: float
    pass_rate: float
    validation: int
    test: int


def _model(config: Config) -> Model:
    """Without windows: programs compute what a window masks."""
    whole = replace(
        config.model, sliding_window=0, global_every=0, layer_types="", local_rope_theta=0.0
    )
    return memory.model_of(config)._replace(config=whole)


def _read_weights(config: Config, of: Shards) -> float:
    """Bytes of the weights that products read."""
    model = _model(config)
    return model.width * model.weights / of.tensor


def _exchange(config: Config, of: Shards, tokens: float, a_layer: int) -> Cost:
    """Sums of activations over the devices that share products, `a_layer` in every layer."""
    if of.tensor == 1:
        return Cost(0.0, 0.0)
    model, count = _model(config), a_layer * config.model.num_layers
    each = 2 * (1 - 1 / of.tensor) * model.width * tokens * config.model.d_model
    return Cost(0.0, 0.0, 0.0, count * each, count)


def laying_out(config: Config, of: Shards) -> Cost:
    """The policy in its rollout's type and layout, and layer by layer."""
    whole, held = memory.rollout_weights(config, of), memory.held(config, of)
    read = held["masters"] + held.get("frozen base", 0.0)
    return Cost(0.0, read + 3 * whole, whole * (1 - 1 / of.fsdp))


def prefill(config: Config, of: Shards, work: Sampled) -> Cost:
    """All prompts, padded to the longest that is allowed; logits after the last token only."""
    padded, questions = config.data.max_prompt_tokens, work.questions // of.batch
    flops = counts.prefill(_model(config), np.full(questions, padded)).flops / of.tensor
    written = questions * padded * memory.kv_bytes(_model(config), of)
    exchanged = _exchange(config, of, questions * padded, 2)
    return Cost(flops, memory.rollout_weights(config, of) + 2 * written) + exchanged


class Stretch(NamedTuple):
    """Decode steps alike. slots: of one device; ring: columns of each; prompts: copies of prompts
    that are read; seen: of them, by one slot."""

    steps: float
    slots: int
    ring: int
    prompts: int
    seen: int


def full_step(config: Config, of: Shards, work: Sampled) -> Stretch:
    """One step with every slot full and the ring at its full length."""
    questions, rows, lanes = work.grid(of)
    seen = 1 if rows * lanes == questions * work.samples else 2
    return Stretch(1, rows * lanes, config.data.max_completion_tokens, rows * seen, seen)


def stretches(config: Config, of: Shards, work: Sampled, output: float) -> list[Stretch]:
    """All outputs, `output` tokens on average: with every slot full for as long as the queue lasts,
    the ring growing with the longest output at work; then with a quarter of the slots until the
    longest output ends."""
    longest, rings = config.data.max_completion_tokens, memory.rings(config)
    like = full_step(config, of, work)
    outputs = work.questions // of.batch * work.samples
    full, found, done = output * max(1.0, outputs / like.slots), list[Stretch](), 0.0
    for ring in rings:
        until = full if ring == longest else min(full, float(ring))
        if until > done:
            found.append(like._replace(steps=until - done, ring=ring))
            done = until
    fewer = max(1, like.slots // sampler.SHRINK_ELSEWHERE)
    for ring in rings if done < longest else rings[-1:]:
        # Where all began together, the ring may still have to grow.
        steps = min(longest, ring) - max(output, 0.0 if ring == rings[0] else ring / 2)
        if steps > 0:
            found.append(Stretch(steps, fewer, ring, fewer, 1))
    return found


def step(config: Config, of: Shards, like: Stretch) -> Cost:
    """One decode step."""
    model, width = _model(config), config.data.max_prompt_tokens
    flops = like.slots * model.token(like.ring + like.seen * width) / of.tensor
    cached = like.slots * like.ring + like.prompts * width
    read = _read_weights(config, of) + cached * memory.kv_bytes(model, of)
    logits = LOGIT_PASSES * memory.logits_bytes(model, of, like.slots)
    return Cost(flops, read + logits) + _exchange(config, of, like.slots, 2)


def decode(config: Config, of: Shards, work: Sampled, output: float) -> Cost:
    """All steps of `stretches`."""
    costs = [step(config, of, s).times(s.steps) for s in stretches(config, of, work, output)]
    return functools.reduce(Cost.__add__, costs)


def decode_floor(config: Config, of: Shards, work: Sampled) -> Cost:
    """What one step with every slot full cannot do without: its products, the weights that they
    read, all tokens of the ring, and the prompt of each row once."""
    like = full_step(config, of, work)
    read = step(config, of, like._replace(prompts=like.prompts // like.seen, seen=1))
    logits = LOGIT_PASSES * memory.logits_bytes(_model(config), of, like.slots)
    return Cost(read.flops, read.bytes - logits)


def microbatches(config: Config, supposed: Supposed) -> int:
    """Of an update on what is trained on of a step's outputs, over all devices: accepted ones, or
    at most all."""
    outputs = float(config.update.sequences_per_step)
    if config.rollout is not None and not outputs:
        work = config.rollout
        share = supposed.pass_rate if config.row.trains_on == "accepted" else 1.0
        outputs = share * work.questions_per_step * work.samples_per_question
    tokens = outputs * (supposed.prompt + supposed.output) / PACKED
    shapes = config.update
    return max(1, math.ceil(tokens / (shapes.row_length * shapes.rows_per_microbatch)))


def update_floor(config: Config, of: Shards, micro: int) -> Cost:
    """The products of a forward and of a backward pass, each row a sequence of its own, nothing
    recomputed; and the gradient, parameters and moments, once."""
    rows = np.full(micro * config.update.rows_per_microbatch, config.update.row_length)
    products = counts.update(_model(config), rows, rows).flops / of.batch / of.tensor
    return Cost(products, 8 * memory.masters(config, of))


def update(config: Config, of: Shards, micro: int) -> Cost:
    """One update of `micro` micro-batches."""
    model, rows = _model(config), config.update
    tokens = micro * rows.row_length * rows.rows_per_microbatch / of.batch
    full, back = config.model.remat == "full", 1 if config.model.lora_rank else 2
    # Logits are recomputed, and under model.remat=full all blocks.
    again = 2.0 * (model.head + full * (model.body + model.adapters))
    again += full * model.attention((rows.row_length + 1) / 2)
    flops = update_floor(config, of, micro).flops + tokens * again / of.tensor
    trained, read = memory.masters(config, of), _read_weights(config, of)
    kept = model.width * config.model.num_layers * memory.kept_numbers(config.model, of)
    moved = micro * ((2 + full) * read + 3 * trained)
    # The output projection for each part of the logits: three times read, its gradient added to.
    rows_here = rows.rows_per_microbatch // of.batch
    parts = micro * (rows.row_length * rows_here / memory.tokens_at_once(config, of) - 1)
    moved += parts * model.width * model.head / of.tensor * (3 + 2 * back)
    # Once: the gradient, and parameters and two moments read and written.
    moved += 7 * trained + tokens * 2 * kept
    moved += 2 * LOGIT_PASSES * memory.logits_bytes(model, of, tokens)
    exchanged = 0.0
    if of.fsdp > 1:
        # Weights for the forward pass and for the backward pass; gradients, in the compute type.
        gradients = of.fsdp * trained * model.width / FLOAT32
        exchanged = micro * 2 * (read + gradients) * (1 - 1 / of.fsdp)
        exchanged += micro * 2 * trained * (1 - 1 / of.data)
    elif of.data > 1:
        # On a mesh of data only once, after the last micro-batch (training/update.py).
        times = 1 if of.tensor == 1 else micro
        exchanged = times * 2 * trained * (1 - 1 / of.data)
    sums = _exchange(config, of, tokens, 4 + 2 * full)
    return Cost(flops, moved, exchanged) + sums._replace(rounds=sums.rounds * micro)


def costs_of(config: Config, of: Shards, supposed: Supposed) -> dict[str, Cost]:
    """By phase, of one rollout and one update."""
    costs: dict[str, Cost] = {}
    if config.rollout is not None:
        work = memory.rollout(config, of)
        costs = {
            "weights": laying_out(config, of),
            "prefill": prefill(config, of, work),
            "decode": decode(config, of, work, supposed.output),
        }
    return costs | {"update": update(config, of, microbatches(config, supposed))}


def seconds_of(costs: Mapping[str, Cost], at: Speeds | None) -> dict[str, float]:
    """By phase, at SHARES of the rates; nothing where these are not known."""
    return {name: cost.seconds(at) / SHARES[name] for name, cost in costs.items()} if at else {}


def evaluating(config: Config, of: Shards, at: Speeds, supposed: Supposed) -> float:
    """Seconds of all evaluations of a run."""
    settings, every = config.evaluation, config.evaluation.every_steps
    validations, total = (1 + config.steps // every if every else 0), 0.0
    for questions, count, times in (
        (supposed.validation, settings.samples_per_question, validations),
        (supposed.test, settings.test_samples_per_question, int(bool(config.data.test))),
    ):
        for samples in {1, count} - {0}:
            work = memory.evaluation(config, of, samples)
            cost = {
                "prefill": prefill(config, of, work),
                "decode": decode(config, of, work, supposed.output),
            }
            total += times * questions / work.questions * sum(seconds_of(cost, at).values())
    return total


def hours(config: Config, seconds: Mapping[str, float], evaluating: float) -> dict[str, float]:
    """Of the whole run, by what it does.

    Args:
        seconds: of each phase of a step.
        evaluating: seconds of all evaluations.
    """
    sampling = sum(each for phase, each in seconds.items() if phase != "update")
    pool = config.pool
    rollouts = pool.rollout_steps * config.num_pools if pool else config.steps
    return {
        "sampling": sampling * rollouts / 3600,
        "updating": seconds["update"] * config.steps / 3600,
        "evaluating": evaluating / 3600,
    }
