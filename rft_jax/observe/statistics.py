"""Estimates over questions and their uncertainty: pass@k, maj@k, intervals. Imports no jax.

A value that is None or NaN stands for an undecided question and is left out. scipy.stats takes a
second to import: the functions that need it import it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rft_jax.errors import UserError

Values = Sequence[float | int | None] | np.ndarray
"""One value a question, such as 0/1 correctness or a pass rate; None or NaN where undecided."""

Counts = int | Sequence[int] | np.ndarray
"""Numbers of outputs: one for each question, or one for all."""

RESAMPLES = 10_000
"""Draws from the confidence distribution of `paired_interval`, at least."""

_DRAWS_AT_ONCE = 2**21
"""Differences chosen from at a time; bounds the memory at about 20 MB."""


class PairedDifference(NamedTuple):
    """mean(b) - mean(a) over the `pairs` questions that both decided, with its interval."""

    difference: float
    low: float
    high: float
    pairs: int

    @property
    def excludes_zero(self) -> bool:
        """True when the whole interval lies on one side of zero."""
        return self.low > 0 or self.high < 0


def pass_ks(num_samples: int) -> tuple[int, ...]:
    """The k of a pass@k curve: 1, 2, 4, ... below num_samples, and num_samples; none for 0."""
    powers = [2**i for i in range(num_samples.bit_length()) if 2**i < num_samples]
    return (*powers, num_samples) if num_samples > 0 else ()


def pass_at_k(num_samples: Counts, num_correct: Counts, k: int) -> NDArray[np.float64]:
    """Unbiased pass@k of each question: 1 - C(n - c, k) / C(n, k) (Chen et al. 2021, eq. 1).

    The probability that k of a question's n outputs, drawn without replacement, hold a correct one:
    exactly 0 for c = 0 and 1 for n - c < k.

    Args:
        num_samples: n, integers.
        num_correct: c, integers whose shape broadcasts with that of n.
        k: how many outputs are drawn.

    Returns:
        Probabilities of the broadcast shape.

    Raises:
        UserError: k is not within 1..n, or c not within 0..n.
    """
    n, c = np.broadcast_arrays(np.asarray(num_samples), np.asarray(num_correct))
    if n.size and (k < 1 or k > n.min()):
        raise UserError(
            f"pass@{k} of {int(n.min())} outputs is not defined: choose k between 1 and the "
            "smallest number of decided outputs of a question."
        )
    if np.any((c < 0) | (c > n)):
        at = int(np.flatnonzero((c < 0) | (c > n))[0])
        raise UserError(
            f"question at position {at} has {c.flat[at]} correct of {n.flat[at]} outputs: the "
            "number correct must lie between 0 and the number of outputs."
        )
    # The next draw is wrong, given that the ones before were; 0 once the wrong ones are gone. A
    # product of factors in [0, 1] does not overflow, and rounds less than scipy's hypergeom does.
    drawn = np.arange(k).reshape(-1, *[1] * n.ndim)
    return np.asarray(1.0 - (np.maximum(n - c - drawn, 0) / (n - drawn)).prod(axis=0))


def majority_at_k(
    answers: Sequence[Hashable | None], correct: Sequence[bool | None]
) -> float | None:
    """maj@k of one question from its k outputs: the chance that the majority answer is correct.

    Every decided output with an answer gives that answer one vote. Among the answers with the most
    votes one is drawn at random, and then one of its outputs: the result is the expected
    correctness, 0 or 1 unless there is a tie (or a verifier that looks beyond the answer).

    Args:
        answers: each output's extracted answer, None where it has none.
        correct: each output's verdict, None where undecided.

    Returns:
        0 when decided outputs hold no answer at all, None when nothing is decided.
    """
    if len(answers) != len(correct):
        raise UserError(
            f"maj@k got {len(answers)} answers and {len(correct)} verdicts: give one verdict for "
            "each answer."
        )
    decided = [(a, c) for a, c in zip(answers, correct, strict=True) if c is not None]
    if not decided:
        return None
    votes = Counter(answer for answer, _ in decided if answer is not None)
    if not votes:
        return 0.0
    right = Counter(answer for answer, is_correct in decided if is_correct)
    most = max(votes.values())
    tied = [answer for answer, count in votes.items() if count == most]
    return sum(right[answer] / most for answer in tied) / len(tied)


def decided_values(values: Values) -> NDArray[np.float64]:
    """The values that are neither None nor NaN, as a float64 vector."""
    vector = np.asarray(values, np.float64)
    return vector[~np.isnan(vector)]


def standard_error(values: Values) -> float:
    """Standard error of the mean over questions: the sample deviation (n - 1) over sqrt(n).

    Outputs of one question are not independent draws, so the question is the unit (Miller 2024,
    section 2). NaN for fewer than two decided questions, where no spread can be seen.
    """
    vector = decided_values(values)
    if vector.size < 2:
        return math.nan
    return float(vector.std(ddof=1) / math.sqrt(vector.size))


def wilson_interval(successes: int, total: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval (low, high) of a proportion; sound for few questions and near 0 and 1.

    Raises UserError unless 0 <= successes <= total, total >= 1 and 0 < confidence < 1.
    """
    from scipy.stats import binomtest

    _check_confidence(confidence)
    if total < 1 or not 0 <= successes <= total:
        raise UserError(
            f"{successes} successes of {total} have no interval: at least one trial and no more "
            "successes than trials are needed."
        )
    interval = binomtest(successes, total).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def paired_interval(
    a: Values, b: Values, *, confidence: float = 0.95, seed: int
) -> PairedDifference:
    """mean(b) - mean(a) with its interval over questions, sound where few questions differ.

    The mean is the share of questions that differ times the mean of their differences. An exact
    confidence distribution of the one times that of the other gives the interval (Fay and Lumbard
    2021, Statistics in Medicine 40, 1147), so it excludes zero just where the sign-flip test of the
    differences does; for 0 and 1 that is McNemar's exact test. It covers the choice of questions,
    not the spread between training seeds.

    Args:
        a: values in [0, 1] of one run; a pair with None or NaN on either side is dropped.
        b: values of another run on the same questions in the same order.
        confidence: of the interval, in (0, 1).
        seed: of the draws.

    Raises:
        UserError: unequal lengths, no decided pair, or a confidence outside (0, 1).
    """
    _check_confidence(confidence)
    if len(a) != len(b):
        raise UserError(
            f"a paired interval got {len(a)} and {len(b)} values: give both runs' values of the "
            "same questions in the same order."
        )
    differences = decided_values(np.asarray(b, np.float64) - np.asarray(a, np.float64))
    pairs = differences.size
    if pairs == 0:
        raise UserError(
            f"none of {len(a)} questions is decided in both runs: a paired interval needs at "
            "least one."
        )
    low, minus_high = (
        _lower_limit(signed, (1 - confidence) / 2, np.random.default_rng(seed))
        for signed in (differences, -differences)
    )
    return PairedDifference(float(differences.mean()), low, -minus_high, pairs)


class CrossedMean(NamedTuple):
    """A mean over training seeds and questions, its interval over both, and each seed's mean."""

    mean: float
    low: float
    high: float
    by_seed: list[float]


def crossed_interval(values: Sequence[Values], *, seed: int) -> CrossedMean | None:
    """The mean of values [training seed][question] with its 95 % interval over both.

    Seeds and questions are drawn with replacement, each for itself, as every seed has the same
    questions (the pigeonhole bootstrap: Owen 2007, Annals of Applied Statistics 1, 386). A question
    that some seed has not decided is left out. Few seeds understate their own spread; with one the
    interval is over questions only.

    Args:
        values: of the same questions in the same order for each seed; for a difference of two arms
            that of the seed's two runs, question by question.
        seed: of the draws.

    Returns:
        None where no question is decided.
    """
    matrix = np.asarray(values, np.float64)
    matrix = matrix[:, ~np.isnan(matrix).any(axis=0)]
    if not matrix.size:
        return None
    generator, (seeds, questions) = np.random.default_rng(seed), matrix.shape
    at_once = max(1, _DRAWS_AT_ONCE // questions)
    means = []
    for at in range(0, RESAMPLES, at_once):
        draws = min(at_once, RESAMPLES - at)
        by_seed, by_question = (_drawn(draws, size, generator) for size in (seeds, questions))
        means.append(((by_question @ matrix.T) * by_seed).sum(axis=1))
    low, high = np.quantile(np.concatenate(means), (0.025, 0.975))
    return CrossedMean(float(matrix.mean()), float(low), float(high), matrix.mean(axis=1).tolist())


def _drawn(draws: int, size: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """The share of each of `size` things in draws of that many of them, with replacement."""
    rows = np.arange(draws)[:, None] * size
    drawn = (generator.integers(0, size, (draws, size)) + rows).ravel()
    return np.bincount(drawn, minlength=draws * size).reshape(draws, size) / size


def _lower_limit(
    differences: NDArray[np.float64], tail: float, generator: np.random.Generator
) -> float:
    """The quantile `tail` of the lower confidence distribution of the mean difference."""
    unequal = differences[differences != 0]
    count, equal = unequal.size, differences.size - unequal.size
    if np.isin(unequal, (-1, 1)).all():
        gained = int((unequal > 0).sum())
        means = 2 * _beta(RESAMPLES, gained, count - gained + 1) - 1
    else:
        means = _typical_means(unequal, generator)
    fewer = generator.permutation(_beta(means.size, count, equal + 1))
    more = generator.permutation(_beta(means.size, count + 1, equal))
    limits = means * np.where(means > 0, fewer, more)
    return float(np.quantile(limits, tail, method="inverted_cdf"))


def _beta(size: int, a: int, b: int) -> NDArray[np.float64]:
    """Evenly spaced quantiles of a beta distribution: all 0 for a = 0, all 1 for b = 0."""
    from scipy.special import betaincinv

    if a == 0 or b == 0:
        return np.full(size, float(b == 0))
    return np.asarray(betaincinv(a, b, (np.arange(size) + 0.5) / size))


def _typical_means(
    values: NDArray[np.float64], generator: np.random.Generator
) -> NDArray[np.float64]:
    """Means of random subsets, each value in with a chance of one half; -1 for an empty one.

    The centre of what the values are drawn from lies below a share of them as large as the
    sign-flip test's p-value (Hartigan 1969). Few values: every subset, as often as any other.
    """
    count = values.size
    if 2**count <= RESAMPLES:
        size = -(-RESAMPLES // 2**count) * 2**count
        return _means((np.arange(size)[:, None] >> np.arange(count)) & 1, values)
    at_once = max(1, _DRAWS_AT_ONCE // count)
    sizes = [min(at_once, RESAMPLES - at) for at in range(0, RESAMPLES, at_once)]
    drawn = (generator.integers(0, 2, (size, count), np.int8) for size in sizes)
    return np.concatenate([_means(chosen, values) for chosen in drawn])


def _means(chosen: NDArray[np.integer], values: NDArray[np.float64]) -> NDArray[np.float64]:
    number = chosen.sum(axis=1)
    sums = chosen.astype(np.float64) @ values
    return np.where(number > 0, sums / np.maximum(number, 1), -1.0)


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise UserError(f"confidence is {confidence}: it must lie between 0 and 1, such as 0.95.")
