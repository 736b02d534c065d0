"""The least work of the contest's jobs, counted, and the time it takes at given rates.

Only what no implementation can avoid is counted (rft_jax/observe/flops.py), and bytes of
optimizer state. A prompt is prefilled once, and its keys and values are read once per step for all
samples of the question.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from benchmarks.work import SHAPES, Work
from rft_jax.observe.flops import (
    BYTES,
    Cost,
    Rates,
    attention_flops,
    body_weights,
    head_weights,
    kv_numbers,
    token_flops,
    weights,
)


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
