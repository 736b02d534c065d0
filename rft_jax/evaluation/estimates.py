"""Rates of an evaluation with their 95 % intervals over questions."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from rft_jax.evaluation.evaluate import Outputs
from rft_jax.evaluation.voting import Votes, correct
from rft_jax.observe.majority import expected_majority
from rft_jax.observe.statistics import (
    Values,
    decided_values,
    pass_at_k,
    pass_ks,
    standard_error,
    wilson_interval,
)

NORMAL_95 = NormalDist().inv_cdf(0.975)
"""A normal variable is within this many standard deviations with a chance of 95 %."""


class Estimate(NamedTuple):
    """A mean over `questions` questions, those that could be decided, and its interval; None where
    there is none (no interval either for a single question that is neither 0 nor 1)."""

    value: float | None
    low: float | None
    high: float | None
    questions: int


def estimates(outputs: Outputs, votes: Sequence[Votes] | None) -> dict[str, Estimate]:
    """Greedy accuracy and, from the sampled outputs, pass@k and maj@k for k = 1, 2, 4, ..., G.

    Where every question has 0 or 1, as under greedy accuracy, the interval is Wilson's, which is
    sound at 0 and 1 too; elsewhere it is the normal approximation from the standard error over
    questions, cut at 0 and 1. pass@k is over questions with at least k decided outputs; maj@k is
    the exact mean over the subsets of k of a question's decided outputs (observe/majority.py).
    Intervals cover the choice of questions and of their outputs.

    Args:
        outputs: of all questions.
        votes: of the sampled outputs of each question; None for no maj@k.

    Returns:
        Estimates by name, such as `pass_at/4`.
    """
    rates = {"greedy/accuracy": _estimate([correct(sample) for sample in outputs.greedy.samples])}
    groups = [[correct(sample) for sample in group] for group in outputs.groups]
    if not groups:
        return rates
    ks = pass_ks(len(groups[0]))
    decided = np.array([sum(verdict is not None for verdict in verdicts) for verdicts in groups])
    right = np.array([sum(verdict is True for verdict in verdicts) for verdicts in groups])
    for k in ks:
        enough = decided >= k
        rates[f"pass_at/{k}"] = _estimate(pass_at_k(decided[enough], right[enough], k))
    if votes is None:
        return rates
    for k in ks:
        won = [expected_majority(one.answers, one.correct, k) for one in votes]
        rates[f"maj_at/{k}"] = _estimate(won)
    return rates


def _estimate(values: Values) -> Estimate:
    known = decided_values(values)
    if not known.size:
        return Estimate(None, None, None, 0)
    value = float(known.mean())
    if np.isin(known, (0, 1)).all():
        return Estimate(value, *wilson_interval(int(known.sum()), known.size), known.size)
    if known.size < 2:
        return Estimate(value, None, None, known.size)
    half = NORMAL_95 * standard_error(known)
    return Estimate(value, max(value - half, 0.0), min(value + half, 1.0), known.size)
