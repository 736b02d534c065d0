"""The plainest way: log-probs and gradients without packing, chunks or batches; AdamW in numpy."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from enumeration import LIMIT, OUTPUTS, PROMPTS, QUESTIONS, VOCABULARY

from rft_jax.config import ModelConfig, OptimizerConfig
from rft_jax.models import transformer
from rft_jax.types import Params

WIDTH = max(map(len, PROMPTS.values())) + LIMIT - 1
"""Slots that hold any prompt and output."""

CASES = [(question.id, output) for question in QUESTIONS for output in OUTPUTS]
"""Every output of every question."""


def params64(config: ModelConfig, seed: int, vocab_size: int = VOCABULARY) -> Params:
    """Random parameters in float64, norms' scales too, so that nothing is 1 by chance."""
    shapes = transformer.abstract_params(config=config, vocab_size=vocab_size)
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.4), shapes)


def _log_probs(
    params: Params, tokens: jax.Array, first: jax.Array, temperature: jax.Array, config: ModelConfig
) -> jax.Array:
    """log pi of the LIMIT tokens from slot `first` on, for one sequence of WIDTH + 1 tokens."""
    slots = jnp.arange(WIDTH)[None]
    ones = jnp.ones((1, WIDTH), jnp.int32)
    hidden = transformer.hidden_states(params, tokens[None, :-1], slots, ones, config=config)
    scores = transformer.logits(params, hidden, config=config)[:, 0] / temperature
    chosen = jnp.take_along_axis(jax.nn.log_softmax(scores, axis=0), tokens[None, 1:], axis=0)[0]
    return jax.lax.dynamic_slice_in_dim(chosen, first, LIMIT)


@functools.partial(jax.jit, static_argnames="config")
def _values_and_scores(
    params: Params, tokens: jax.Array, first: jax.Array, temperature: jax.Array, config: ModelConfig
) -> tuple[jax.Array, Params]:
    of_one = functools.partial(_log_probs, config=config)
    over = (None, 0, 0, None)
    values = jax.vmap(of_one, over)(params, tokens, first, temperature)
    return values, jax.vmap(jax.jacrev(of_one), over)(params, tokens, first, temperature)


def values_and_scores(
    params: Params, temperature: float, config: ModelConfig
) -> tuple[np.ndarray, Params]:
    """log pi [case, t] and its gradient, leaves [case, t, ...], of CASES; garbage past an end."""
    tokens = np.zeros((len(CASES), WIDTH + 1), np.int32)
    for row, (question, output) in enumerate(CASES):
        sequence = (*PROMPTS[question], *output.tokens)
        tokens[row, : len(sequence)] = sequence
    first = np.array([len(PROMPTS[question]) - 1 for question, _ in CASES], np.int32)
    values, scores = _values_and_scores(
        params, jnp.asarray(tokens), jnp.asarray(first), jnp.asarray(temperature), config
    )
    return np.asarray(values), scores


def weighted(scores: Params, coefficients: np.ndarray) -> Params:
    """sum over cases and tokens of coefficient[case, t] * grad log pi."""
    return jax.tree.map(lambda leaf: np.tensordot(coefficients, leaf, 2), scores)


def lengths_mask() -> np.ndarray:
    """True at the tokens [case, t] that an output has."""
    return np.array([[t < len(output.tokens) for t in range(LIMIT)] for _, output in CASES])


def case_of(question: int, tokens: Sequence[int]) -> int:
    """The row of an output in CASES."""
    return next(
        row
        for row, (number, output) in enumerate(CASES)
        if number == question and output.tokens == tuple(tokens)
    )


def flat(tree: Any) -> np.ndarray:
    """All numbers of a tree as one vector."""
    return np.concatenate([np.asarray(leaf).reshape(-1) for leaf in jax.tree.leaves(tree)])


def learning_rate(config: OptimizerConfig, steps: int, update: int) -> float:
    """The rate of the update that follows `update` others."""
    peak, last = config.learning_rate, config.learning_rate * config.final_fraction
    if update < config.warmup_steps:
        return peak * (update + 1) / config.warmup_steps
    progress = min((update - config.warmup_steps) / max(steps - config.warmup_steps, 1), 1.0)
    share = {
        "constant": 1.0,
        "linear": 1.0 - progress,
        "cosine": (1.0 + math.cos(math.pi * progress)) / 2,
    }[config.schedule]
    return last + (peak - last) * share


class Moments(NamedTuple):
    """AdamW's memory, shaped like the parameters."""

    first: dict[str, np.ndarray]
    second: dict[str, np.ndarray]


def named(tree: Any) -> dict[str, np.ndarray]:
    """Leaves in numpy by their path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.array(leaf) for path, leaf in leaves}


def adamw(
    params: dict[str, np.ndarray],
    gradient: dict[str, np.ndarray],
    moments: Moments | None,
    update: int,
    config: OptimizerConfig,
    steps: int,
) -> tuple[dict[str, np.ndarray], Moments]:
    """One step down the gradient: clip, then AdamW (arXiv 1711.05101, algorithm 2)."""
    zeros = {name: np.zeros_like(leaf) for name, leaf in params.items()}
    first, second = moments or Moments(zeros, zeros)
    norm = math.sqrt(sum(float(np.sum(leaf**2)) for leaf in gradient.values()))
    factor = config.clip_norm / norm if config.clip_norm and norm > config.clip_norm else 1.0
    rate = learning_rate(config, steps, update)
    new: dict[str, np.ndarray] = {}
    firsts, seconds = {}, {}
    for name, value in params.items():
        slope = gradient[name] * factor
        firsts[name] = config.b1 * first[name] + (1 - config.b1) * slope
        seconds[name] = config.b2 * second[name] + (1 - config.b2) * slope**2
        mean = firsts[name] / (1 - config.b1 ** (update + 1))
        square = seconds[name] / (1 - config.b2 ** (update + 1))
        decay = 0.0 if "scale" in name else config.weight_decay
        new[name] = value - rate * (mean / (np.sqrt(square) + config.eps) + decay * value)
    return new, Moments(firsts, seconds)
