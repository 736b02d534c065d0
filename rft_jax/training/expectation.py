"""What a method gives a correct and a wrong output in expectation, from the row's own code."""

from __future__ import annotations

import functools
import math

import numpy as np

from rft_jax.config import Denominator, Method
from rft_jax.training.objective import output_weights
from rft_jax.training.selection import coefficients
from rft_jax.types import Facts

_LIMIT = 1000
"""Tokens an output may have here; each has one, so that no length plays a part."""


def expected_coefficients(
    method: Method, denominator: Denominator, pass_rate: float, group: int
) -> tuple[float, float]:
    """E[GC x G / denominator] of a correct and of a wrong output of a question.

    The others of its group are correct with the question's pass rate, each for itself. Without
    1/|o| the expected gradient is the difference of the two times the gradient of the pass rate
    (grad log pi has mean 0). A value function is taken to know the pass rate, and pi_theta to be
    pi_ref.

    Args:
        method: the row.
        denominator: of the objective.
        pass_rate: of the question, in [0, 1].
        group: outputs of the question, G.
    """
    chances = [
        math.comb(group - 1, k) * pass_rate**k * (1 - pass_rate) ** (group - 1 - k)
        for k in range(group)
    ]

    def of_group(correct: int) -> np.ndarray:
        known = pass_rate if method.values else 0.0  # else nothing depends on it
        return _of_group(method, denominator, known, correct, group)

    correct = sum(p * of_group(k + 1)[0] for k, p in enumerate(chances))
    wrong = sum(p * of_group(k)[-1] for k, p in enumerate(chances))
    return float(correct), float(wrong)


@functools.cache
def _of_group(
    method: Method, denominator: Denominator, pass_rate: float, correct: int, size: int
) -> np.ndarray:
    """GC x G / denominator of each output of a group, correct ones first."""
    is_correct = np.arange(size) < correct
    facts = Facts(
        question_ids=np.zeros(size, np.int64),
        correct=is_correct,
        rewards=is_correct.astype(np.float32),
        lengths=np.ones(size, np.int64),
        finished=np.ones(size, bool),
        log_probs=np.full(size, -1.0),
        limit=_LIMIT,
        log_ratios=np.zeros(size),
        advantages=(is_correct - pass_rate)[:, None],
        step_rewards=is_correct.astype(np.float32)[:, None] if method.steps else None,
    )
    found = coefficients(method, facts)
    found = found if found.ndim == 1 else found[:, 0]
    kept = np.flatnonzero(found)
    weights = np.zeros(size)
    weights[kept] = found[kept] * output_weights(
        facts.question_ids[kept],
        facts.lengths[kept],
        denominator=denominator,
        num_sampled=size,
        num_questions=1,
        num_tokens=size,
        constant_length=1,
    )
    return weights * size
