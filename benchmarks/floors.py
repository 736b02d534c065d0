"""The least work of the contest's jobs (rft_jax/observe/flops.py), and its time at given rates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.work import SHAPES, Work
from rft_jax.config import ModelConfig
from rft_jax.observe import flops
from rft_jax.observe.flops import Cost, Model


@dataclass(frozen=True)
class Rates:
    """Of a machine. flops: matrix products, FLOP/s; bytes: to and from memory, bytes/s."""

    flops: float
    bytes: float

    def seconds(self, cost: Cost) -> float:
        """The least time for `cost` when products and traffic overlap entirely."""
        return max(cost.flops / self.flops, cost.bytes / self.bytes)

    def bound(self, cost: Cost) -> str:
        """Which of the two that is: `matrix` or `bandwidth`."""
        return "matrix" if cost.flops / self.flops >= cost.bytes / self.bytes else "bandwidth"


def model(size: str, dtype: Any = "float32") -> Model:
    """The model of that size (a key of SHAPES) with a tied embedding, computed in `dtype`."""
    shape = SHAPES[size]
    config = ModelConfig(
        num_layers=shape.layers,
        d_model=shape.d_model,
        num_heads=shape.heads,
        num_kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        mlp_dim=shape.mlp,
        tie_embeddings=True,
        compute_dtype=dtype,
    )
    return Model(config, shape.vocab)


def _prompts(work: Work) -> npt.NDArray[np.int64]:
    return np.full(work.prompts, work.prompt_len)


def prefill(work: Work) -> Cost:
    """All prompts, once each; logits after the last token only."""
    return flops.prefill(model(work.size, work.dtype), _prompts(work))


def decode(work: Work, lengths: npt.NDArray[np.int32]) -> Cost:
    """Outputs of `lengths` [prompts, samples]. The weights are read as often as the longest output
    has steps, which holds for every schedule."""
    outputs = lengths.astype(np.int64)
    steps = max(0, int(outputs.max()) - 1)
    return flops.decode(model(work.size, work.dtype), _prompts(work), outputs, steps)


def update(work: Work) -> Cost:
    """Forward, backward and AdamW on `sequences` of `sequence_len` tokens, each token of them a
    target but the first."""
    inputs = np.full(work.sequences, work.sequence_len - 1)
    return flops.update(model(work.size, work.dtype), inputs, inputs)


def phases(work: Work, job: str) -> dict[str, Cost]:
    """The costs of one call of a job, phase by phase."""
    if job == "update":
        return {"update": update(work)}
    return {"prefill": prefill(work), "decode": decode(work, work.lengths(job))}


def seconds(costs: dict[str, Cost], rates: Rates) -> float:
    """The floor of a call: its phases one after the other."""
    return sum(rates.seconds(cost) for cost in costs.values())


def per_token(size: str, dtype: str, *, slots: int, samples: int, prompt: int, own: int) -> Cost:
    """One decoded token with `slots` slots full, `own` tokens each so far."""
    counted = model(size, dtype)
    numbers = counted.weights / slots + counted.kv_numbers * (1 + own + prompt / samples)
    return Cost(counted.token(prompt + own), counted.width * numbers)
