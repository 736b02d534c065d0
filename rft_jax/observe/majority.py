"""maj@k of fewer outputs than were sampled: the exact mean over all choices of k. No jax."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import Float


def expected_majority(
    answers: Sequence[Hashable | None], correct: Sequence[bool | None], k: int
) -> float | None:
    """maj@k of one question: the mean of statistics.majority_at_k over the subsets of k of its
    decided outputs (over all of them where they are fewer). Exact, not estimated: see `_by_votes`.

    Args:
        answers: of every output, as majority_at_k takes them.
        correct: the verdict of every output.
        k: the size of a subset.

    Returns:
        None when nothing is decided.
    """
    decided = [(a, c) for a, c in zip(answers, correct, strict=True) if c is not None]
    if not decided:
        return None
    votes = Counter(answer for answer, _ in decided if answer is not None)
    right = Counter(answer for answer, is_right in decided if is_right and answer is not None)
    groups = tuple(sorted((count, right[answer]) for answer, count in votes.items()))
    total = len(decided)
    if k >= total:
        return _by_all(groups)
    return _by_votes(groups, total, k)


Groups = tuple[tuple[int, int], ...]
"""(outputs, correct ones among them) of each answer."""


def _by_all(groups: Groups) -> float:
    most = max((count for count, _ in groups), default=0)
    shares = [right / count for count, right in groups if count == most]
    return sum(shares) / len(shares) if shares else 0.0


# Many questions have the same few counts.
@functools.lru_cache(maxsize=4096)
def _by_votes(groups: Groups, total: int, k: int) -> float:
    """The mean over subsets of k of `total` outputs, of which some may have no answer.

    It is the sum over the winner's votes m of the chance that an answer has m, that no other has
    more and t others have as many, times 1/(t + 1). Generating functions count subsets: a power of
    x for each output, one of y for each tie, and 1/(t + 1) is the integral of y^t over [0, 1], for
    which Gauss's rule of enough nodes is exact. Outputs enter by binomial chances, which for a
    given k are in proportion to numbers of subsets and, unlike these, never overflow.
    """
    from scipy.stats import binom

    def chances(size: int) -> Float[np.ndarray, "K"]:
        return np.asarray(binom.pmf(np.arange(k + 1), size, k / total))

    by_count = {count: chances(count) for count in {count for count, _ in groups}}
    expected = 0.0
    for m in range(1, min(k, max(by_count, default=0)) + 1):
        tall = [(count, right) for count, right in groups if count >= m]
        ties = min(k // m, len(tall)) - 1
        nodes, weights = np.polynomial.legendre.leggauss(ties // 2 + 1)
        y, weights = (nodes[:, None] + 1) / 2, weights / 2
        # Answers with fewer outputs than m, and outputs without one, may be chosen at will.
        rest = total - sum(count for count, _ in tall)
        no_winner = np.tile(chances(rest), (len(nodes), 1))
        won = np.zeros_like(no_winner)
        for count, right in tall:
            fewer, as_many = by_count[count][:m], by_count[count][m]
            wins = right / count * as_many * _shifted(no_winner, m)
            won = _times(won, fewer) + y * as_many * _shifted(won, m) + wins
            no_winner = _times(no_winner, fewer) + y * as_many * _shifted(no_winner, m)
        expected += float(weights @ won[:, k])
    # Rounding would have certain outcomes look uncertain.
    return round(expected / float(chances(total)[k]), 12)


def _shifted(polynomials: Float[np.ndarray, "Y K"], by: int) -> Float[np.ndarray, "Y K"]:
    """Times x^by, without powers above k."""
    return np.pad(polynomials, ((0, 0), (by, 0)))[:, : polynomials.shape[1]]


def _times(polynomials: Float[np.ndarray, "Y K"], by: Float[np.ndarray, "M"]) -> np.ndarray:
    """Times another polynomial, without powers above k."""
    return np.array([np.convolve(row, by)[: len(row)] for row in polynomials])
