"""How much of the machine a step uses: the work it needs, over what the devices do in that time.

Counted is the work that no implementation can avoid, for the lengths that a step has
(rft_jax/observe/flops.py), so that a share below 1 shows padding, recomputation and all the rest.

**update_mfu**, model FLOPs utilization (PaLM, arXiv 2204.02311, appendix B): products of the
forward pass and of the backward pass, twice as many, over seconds/updating x devices x the peak
rate of the compute type. Stricter than PaLM's in two ways: a token's attention counts for the
positions that it sees, not for all of its row, and logits count for output tokens only, as the
objective has no others. With adapters the backward pass makes gradients of activations, and of
weights for the adapters only; a KL term adds the forward pass of the reference.

**sampling_mfu**: the same of sampling, over seconds/sampling. A prompt is prefilled once, with the
logits after its last token; each output runs all of its tokens but the last one through the model.

**decode_bandwidth**: bytes that decoding reads and writes in its memory, over seconds/sampling x
devices x published bandwidth. In the compute type: the weights, once per step that the decode loop
ran and shard of the batch; of each step the keys and values of an output's own tokens so far, and
the new ones written; those of a prompt once for all outputs of its question. A layer with a sliding
window reads no more than it sees. seconds/sampling is the whole phase, prefill and host included.

Devices that rft_jax/observe/hardware.py does not know, a CPU among them, have no rates: there the
shares are None, and the counts are what is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from rft_jax.config import Config
from rft_jax.observe import hardware as chips
from rft_jax.observe.flops import Cost, Model, decode, prefill, update
from rft_jax.rollout.engine import Rollout
from rft_jax.training.packing import TrainingSequence
from rft_jax.types import Decoded

Metrics = dict[str, float | None]


class Machine(NamedTuple):
    """All devices of a run together. flops: FLOP/s of products in the compute type; bandwidth:
    bytes/s of memory; None where they are not known."""

    flops: float | None
    bandwidth: float | None


def machine(device_kind: str, count: int, dtype: str) -> Machine:
    """`count` devices that jax calls `device_kind`, at the rates that their vendor publishes."""
    chip = chips.of_kind(device_kind)
    if chip is None:
        return Machine(None, None)
    peak = chip.flops.get(dtype)
    return Machine(None if peak is None else count * peak, count * chip.bandwidth)


class Meter(NamedTuple):
    """What measures the steps of a run. with_reference: whether its objective has a KL term."""

    model: Model
    on: Machine
    with_reference: bool


def meter(config: Config, vocab: int, *, device_kind: str, count: int) -> Meter:
    """The meter of a run on `count` devices of one kind. vocab: rows of the embedding."""
    return Meter(
        Model(config.model, vocab),
        machine(device_kind, count, config.model.compute_dtype),
        config.objective.kl_loss > 0,
    )


def update_flops(
    model: Model, sequences: Sequence[TrainingSequence], *, with_reference: bool
) -> float:
    """Products of one update. with_reference: whether the objective has a KL term."""
    size = len(sequences)
    outputs = np.fromiter((len(one.completion) for one in sequences), np.int64, size)
    # The last token of a sequence is only a target.
    inputs = np.fromiter((len(one.prompt) for one in sequences), np.int64, size) + outputs - 1
    return update(model, inputs, outputs, with_reference=with_reference).flops


def sampling_cost(model: Model, decoded: Decoded) -> Cost:
    """Products of prefill and decoding, and bytes of decoding. Adapters count as merged."""
    prompts = np.asarray(decoded.prompts, np.int64)
    outputs = np.asarray(decoded.outputs, np.int64).reshape(len(prompts), -1)
    decoding = decode(model, prompts, outputs, decoded.steps)
    return decoding._replace(flops=prefill(model, prompts).flops + decoding.flops)


def update_metrics(meter: Meter, sequences: Sequence[TrainingSequence], seconds: float) -> Metrics:
    """Of one update, on no sequences where it was skipped. seconds: seconds/updating."""
    flops = update_flops(meter.model, sequences, with_reference=meter.with_reference)
    return {
        "utilization/update_flops": flops,
        "utilization/update_mfu": _share(flops, seconds, meter.on.flops),
    }


def step_metrics(
    config: Config,
    meter: Meter,
    sequences: Sequence[TrainingSequence],
    replayed: Sequence[TrainingSequence],
    rounds: Sequence[Rollout],
    clock: Sequence[float],
) -> dict[str, Any]:
    """What a step trained on, and its rates.

    Args:
        config: of the run.
        meter: of the run.
        sequences: of its source.
        replayed: those beside them.
        rounds: that the step sampled.
        clock: the step's begin, the update's, its end.
    """
    began, updating, ended = clock
    together = [*sequences, *replayed]
    trained = sum(len(sequence.completion) for sequence in together)
    metrics = update_metrics(meter, together, ended - updating) | {
        "seconds/updating": ended - updating,
        "speed/tokens_per_second": (sum(d.num_tokens for d in rounds) or trained) / (ended - began),
    }
    if not together:
        return metrics
    metrics["update/sequences"] = len(sequences)
    if replayed:
        metrics["replay/sequences"] = len(replayed)
    # The sampler's log-probs are of an older policy where outputs are carried, or the rollout is
    # for several updates and this is a later one.
    of_now = rounds and sequences and all(len(sequence.log_probs) for sequence in sequences)
    if config.row.source == "policy" and not of_now:
        metrics |= {f"policy/log_prob_mismatch_{name}": None for name in ("max", "mean")}
    return metrics


def sampling_metrics(meter: Meter, decoded: Sequence[Decoded], seconds: float) -> Metrics:
    """Of all calls of the sampler in a step. seconds: seconds/sampling."""
    costs = [sampling_cost(meter.model, one) for one in decoded]
    flops, moved = sum(cost.flops for cost in costs), sum(cost.bytes for cost in costs)
    return {
        "utilization/sampling_flops": flops,
        "utilization/sampling_mfu": _share(flops, seconds, meter.on.flops),
        "utilization/decode_bytes": moved,
        "utilization/decode_bandwidth": _share(moved, seconds, meter.on.bandwidth),
    }


def _share(work: float, seconds: float, rate: float | None) -> float | None:
    return work / (seconds * rate) if rate and work and seconds > 0 else None
