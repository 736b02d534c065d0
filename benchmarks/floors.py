"""The least work of sampling and of an update, counted, and the time it takes at given rates.

Only what no implementation can avoid is counted: floating-point operations of matrix products,
and bytes of weights, of keys and values, and of optimizer state. A prompt is prefilled once, and
its keys and values are read once per step for all samples of the question. The letters are those
of README.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.work import SHAPES, Shape, Work

BYTES = {"float32": 4, "bfloat16": 2}
"""Of one weight or activation, by its type."""


class Cost(NamedTuple):
    """flops: floating-point operations of matrix products; bytes: moved to and from memory."""

    flops: float
    bytes: float

    def __add__(self, other: object) -> Cost:
        """Both, one after the other."""
        assert isinstance(other, Cost)
        return Cost(self.flops + other.flops, self.bytes + other.bytes)


@dataclass(frozen=True)
class Rates:
    """Of a machine: flops: matrix products, FLOP/s; bytes: to and from memory, bytes/s."""

    flops: float
    bytes: float

    def seconds(self, cost: Cost) -> float:
        """The least time for `cost` when products and traffic overlap entirely."""
        return max(cost.flops / self.flops, cost.bytes / self.bytes)

    def bound(self, cost: Cost) -> str:
        """Which of the two that is: `matrix` or `bandwidth`."""
        return "matrix" if cost.flops / self.flops >= cost.bytes / self.bytes else "bandwidth"


def body_weights(shape: Shape) -> int:
    """Weights in the matrices of all blocks: L (2 D N H + 2 D K H + 3 D F)."""
    attention = 2 * shape.d_model * (shape.heads + shape.kv_heads) * shape.head_dim
    return shape.layers * (attention + 3 * shape.d_model * shape.mlp)


def head_weights(shape: Shape) -> int:
    """Weights of the tied embedding: D V."""
    return shape.d_model * shape.vocab


def weights(shape: Shape) -> int:
    """All matrices, each once."""
    return body_weights(shape) + head_weights(shape)


def kv_numbers(shape: Shape) -> int:
    """Numbers that the cache holds of one token: 2 L K H."""
    return 2 * shape.layers * shape.kv_heads * shape.head_dim


def attention_flops(shape: Shape, positions: float) -> float:
    """Products of queries with keys and of weights with values, summed over `positions` seen."""
    return 4.0 * shape.layers * shape.heads * shape.head_dim * positions


def token_flops(shape: Shape, seen: float, *, head: bool = True) -> float:
    """One token's forward pass that sees `seen` positions, itself included."""
    matrices = body_weights(shape) + (head_weights(shape) if head else 0)
    return 2.0 * matrices + attention_flops(shape, seen)


def _triangle(n: npt.NDArray[np.int64] | int) -> npt.NDArray[np.int64] | int:
    """1 + 2 + ... + n."""
    return n * (n + 1) // 2


def prefill(work: Work) -> Cost:
    """All prompts, once each; logits after the last token only."""
    shape, size = work.shape, BYTES[work.dtype]
    tokens = work.prompts * work.prompt_len
    flops = 2.0 * body_weights(shape) * tokens + 2.0 * head_weights(shape) * work.prompts
    flops += attention_flops(shape, work.prompts * int(_triangle(work.prompt_len)))
    return Cost(flops, float(size) * (weights(shape) + tokens * kv_numbers(shape)))


def decode(work: Work, lengths: npt.NDArray[np.int32]) -> Cost:
    """Outputs of `lengths` [prompts, samples]: the first token comes from the prefill, the last one
    is not run through the model.

    The weights are read as often as the longest output has steps, which holds for every schedule.
    """
    shape, size = work.shape, BYTES[work.dtype]
    steps = np.maximum(lengths.astype(np.int64) - 1, 0)
    total = int(steps.sum())
    own = int(np.sum(_triangle(steps)))
    flops = 2.0 * weights(shape) * total
    flops += attention_flops(shape, total * work.prompt_len + own)
    # Own keys and values: all earlier ones read and the new ones written; the prompt's: once a
    # step for all samples of its question.
    numbers = own + total + work.prompt_len * int(steps.max(axis=1).sum())
    moved = kv_numbers(shape) * numbers + weights(shape) * int(steps.max())
    return Cost(flops, float(size) * moved)


def sampling(work: Work, job: str) -> tuple[Cost, Cost]:
    """(prefill, decode) of the job `sample` or `ragged`."""
    return prefill(work), decode(work, work.lengths(job))


def update(work: Work) -> Cost:
    """Forward, backward (twice the products) and AdamW on `sequences` of `sequence_len` tokens.

    The last token of a sequence is only a target. Bytes: weights for the forward and for the
    backward pass, the gradient written and read, and parameters and two moments read and written,
    these in float32. Activations are not counted: they may stay in the cache.
    """
    shape, size = work.shape, BYTES[work.dtype]
    inputs = work.sequence_len - 1
    forward = 2.0 * weights(shape) * inputs + attention_flops(shape, int(_triangle(inputs)))
    moved = weights(shape) * (2.0 * size + 4 * (2 + 6))
    return Cost(3.0 * work.sequences * forward, moved)


def phases(work: Work, job: str) -> dict[str, Cost]:
    """The costs of one call of a job, phase by phase."""
    if job == "update":
        return {"update": update(work)}
    first, second = sampling(work, job)
    return {"prefill": first, "decode": second}


def seconds(costs: dict[str, Cost], rates: Rates) -> float:
    """The floor of a call: its phases one after the other."""
    return sum(rates.seconds(cost) for cost in costs.values())


def per_token(size: str, dtype: str, *, slots: int, samples: int, prompt: int, own: int) -> Cost:
    """One decoded token with `slots` slots full, `own` tokens each so far."""
    shape, width = SHAPES[size], BYTES[dtype]
    numbers = weights(shape) / slots + kv_numbers(shape) * (1 + own + prompt / samples)
    return Cost(token_flops(shape, prompt + own), width * numbers)
