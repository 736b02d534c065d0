"""How much of the machine a step uses: the work it needs, over what the devices do in that time.

Counted is work that no implementation can avoid, for the lengths that a step has. Padding, what is
recomputed, norms, softmax, rotations and the optimizer count as nothing, so that a share below 1
shows them all.

**update_mfu**, model FLOPs utilization (PaLM, arXiv 2204.02311, appendix B): products of the
forward pass and of the backward pass, twice as many, over seconds/updating x devices x the peak
rate of the compute type. Stricter than PaLM's in two ways: a token's attention counts for the
positions that it sees, not for all of its row, and logits count for output tokens alone, as the
objective has no others. With adapters the backward pass makes gradients of activations, and of
weights for the adapters alone; a KL term adds the forward pass of the reference.

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
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from rft_jax.config import Config, ModelConfig
from rft_jax.observe import hardware as chips
from rft_jax.observe.flops import (
    Cost,
    attention_flops,
    body_weights,
    head_weights,
    kv_numbers,
    weights,
)
from rft_jax.planning.step_costs import Shape
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


class Policy(NamedTuple):
    """A model by what counts of it. vocab: rows of the embedding."""

    config: ModelConfig
    vocab: int

    @property
    def shape(self) -> Shape:
        """In the letters of rft_jax/observe/flops.py."""
        m = self.config
        return Shape(
            m.num_layers, m.d_model, m.num_heads, m.num_kv_heads, m.head_dim, m.mlp_dim, self.vocab
        )

    @property
    def adapters(self) -> int:
        """Weights in the adapters of all blocks."""
        m = self.config
        heads, kv_heads = m.num_heads * m.head_dim, m.num_kv_heads * m.head_dim
        out = {"query": heads, "key": kv_heads, "value": kv_heads, "output": heads}
        widths = [m.d_model + out.get(target, m.mlp_dim) for target in m.lora_targets]
        return m.num_layers * m.lora_rank * sum(widths)


class Meter(NamedTuple):
    """What measures the steps of a run. with_reference: whether its objective has a KL term."""

    policy: Policy
    on: Machine
    with_reference: bool


def meter(config: Config, vocab: int, *, device_kind: str, count: int) -> Meter:
    """The meter of a run on `count` devices of one kind. vocab: rows of the embedding."""
    return Meter(
        Policy(config.model, vocab),
        machine(device_kind, count, config.model.compute_dtype),
        config.objective.kl_coefficient > 0,
    )


def update_flops(
    policy: Policy, sequences: Sequence[TrainingSequence], *, with_reference: bool
) -> float:
    """Products of one update. with_reference: whether the objective has a KL term."""
    shape, size = policy.shape, len(sequences)
    outputs = np.fromiter((len(one.completion) for one in sequences), np.int64, size)
    # The last token of a sequence is only a target.
    inputs = np.fromiter((len(one.prompt) for one in sequences), np.int64, size) + outputs - 1
    tokens, targets = int(inputs.sum()), int(outputs.sum())
    attention = attention_flops(shape, float(_seen(policy.config, inputs).sum()))
    adapters = 2.0 * policy.adapters * tokens
    frozen = 2.0 * (body_weights(shape) * tokens + head_weights(shape) * targets)
    backward = 1 if policy.config.lora_rank else 2
    forward = frozen + adapters + attention
    return forward + backward * frozen + 2 * (adapters + attention) + with_reference * forward


def sampling_cost(policy: Policy, decoded: Decoded) -> Cost:
    """Products of prefill and decoding, and bytes of decoding alone. Adapters count as merged."""
    shape, config = policy.shape, policy.config
    prompts = np.asarray(decoded.prompts, np.int64)
    outputs = np.asarray(decoded.outputs, np.int64).reshape(len(prompts), -1)
    # The first token comes from the prefill, the last one is not run through the model.
    steps = np.maximum(outputs - 1, 0)
    wholes = prompts[:, None] + steps
    total = int(steps.sum())
    seen = _seen(config, prompts).sum() + _decoded_sees(config, prompts[:, None], wholes).sum()
    flops = 2.0 * body_weights(shape) * int(prompts.sum()) + 2.0 * head_weights(shape) * len(
        prompts
    )
    flops += 2.0 * weights(shape) * total + attention_flops(shape, float(seen))

    own = _seen(config, steps).sum() + total
    most = steps.max(axis=1, initial=0)
    shared = _decoded_sees(config, prompts, prompts + most) - _seen(config, most)
    numbers = kv_numbers(shape) * float(own + shared.sum()) + weights(shape) * decoded.steps
    return Cost(flops, numbers * jnp.dtype(config.compute_dtype).itemsize)


def _seen(config: ModelConfig, lengths: Int[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Positions that the tokens of a sequence see together, each itself and those before it, or as
    far as the window reaches; the mean over layers."""
    whole = lengths * (lengths + 1) / 2
    inside = np.minimum(lengths, config.sliding_window)
    nearby = inside * (inside + 1) / 2 + (lengths - inside) * config.sliding_window
    share = np.mean([config.sees_all(layer) for layer in range(config.num_layers)])
    return np.asarray(share * whole + (1 - share) * nearby)


def _decoded_sees(
    config: ModelConfig, prompts: Int[np.ndarray, "..."], wholes: Int[np.ndarray, "..."]
) -> Float[np.ndarray, "..."]:
    """The same of the tokens after the prompt."""
    return _seen(config, wholes) - _seen(config, prompts)


def update_metrics(meter: Meter, sequences: Sequence[TrainingSequence], seconds: float) -> Metrics:
    """Of one update, on no sequences where it was skipped. seconds: seconds/updating."""
    flops = update_flops(meter.policy, sequences, with_reference=meter.with_reference)
    return {
        "utilization/update_flops": flops,
        "utilization/update_mfu": _share(flops, seconds, meter.on.flops),
    }


def sampling_metrics(meter: Meter, decoded: Sequence[Decoded], seconds: float) -> Metrics:
    """Of all calls of the sampler in a step. seconds: seconds/sampling."""
    costs = [sampling_cost(meter.policy, one) for one in decoded]
    flops, moved = sum(cost.flops for cost in costs), sum(cost.bytes for cost in costs)
    return {
        "utilization/sampling_flops": flops,
        "utilization/sampling_mfu": _share(flops, seconds, meter.on.flops),
        "utilization/decode_bytes": moved,
        "utilization/decode_bandwidth": _share(moved, seconds, meter.on.bandwidth),
    }


def _share(work: float, seconds: float, rate: float | None) -> float | None:
    return work / (seconds * rate) if rate and work and seconds > 0 else None
