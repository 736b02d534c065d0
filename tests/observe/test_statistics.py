"""Estimates against enumeration, closed forms and simulation."""

from __future__ import annotations

import itertools
import math
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from rft_jax.errors import UserError
from rft_jax.observe.statistics import (
    crossed_interval,
    majority_at_k,
    paired_interval,
    pass_at_k,
    pass_ks,
    standard_error,
    wilson_interval,
)

values = st.lists(st.floats(0, 1), min_size=2, max_size=50)


@pytest.mark.parametrize(
    ("samples", "ks"),
    [(0, ()), (1, (1,)), (2, (1, 2)), (8, (1, 2, 4, 8)), (12, (1, 2, 4, 8, 12))],
)
def test_pass_ks(samples: int, ks: tuple[int, ...]) -> None:
    assert pass_ks(samples) == ks


@given(st.integers(1, 8).flatmap(lambda n: st.tuples(*map(st.just, [n]), *[st.integers(0, n)] * 2)))
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_output(case: tuple[int, ...]) -> None:
    n, c, k = case[0], case[1], max(case[2], 1)
    subsets = list(itertools.combinations(range(n), k))
    exact = sum(min(subset) < c for subset in subsets) / len(subsets)
    assert pass_at_k(n, c, k) == pytest.approx(exact, abs=1e-12)


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.just(n), *[st.integers(1, n)] * 2)))
def test_pass_at_k_is_the_binomial_formula_for_many_samples(case: tuple[int, int, int]) -> None:
    n, c, k = case
    exact = 1 - math.comb(n - c, k) / math.comb(n, k)
    assert pass_at_k(n, c, k) == pytest.approx(exact, abs=1e-9)


def test_pass_at_k_is_exact_at_its_ends_and_vectorised() -> None:
    result = pass_at_k(np.array([4, 4, 4, 6]), np.array([0, 1, 4, 3]), 4)
    assert result.tolist() == [0.0, 1.0, 1.0, 1.0]
    assert pass_at_k([8, 8], [2, 4], 1).tolist() == [0.25, 0.5]
    assert pass_at_k(8, np.array([[1], [2]]), 2).shape == (2, 1)
    assert pass_at_k([], [], 4).size == 0


def test_pass_at_k_is_unbiased() -> None:
    correct = np.random.default_rng(0).binomial(8, 0.3, 200_000)
    assert pass_at_k(8, correct, 4).mean() == pytest.approx(1 - 0.7**4, abs=2e-3)


@pytest.mark.parametrize(
    ("n", "c", "k", "text"),
    [
        ([8, 4], [1, 1], 5, "pass@5 of 4 outputs is not defined: choose k between 1 and"),
        ([8], [1], 0, "pass@0 of 8 outputs is not defined"),
        ([8, 8], [1, 9], 2, "question at position 1 has 9 correct of 8 outputs: the number"),
        ([8], [-1], 2, "question at position 0 has -1 correct of 8 outputs"),
    ],
)
def test_pass_at_k_refuses(n: list[int], c: list[int], k: int, text: str) -> None:
    with pytest.raises(UserError, match=text):
        pass_at_k(n, c, k)


@pytest.mark.parametrize(
    ("answers", "correct", "expected"),
    [
        (["7", "7", "8"], [True, True, False], 1.0),
        (["7", "8", "8"], [True, False, False], 0.0),
        (["7", "8"], [True, False], 0.5),
        (["7", "8", "9"], [True, False, False], 1 / 3),
        ([None, None, "7"], [False, False, True], 1.0),
        ([None, None], [False, False], 0.0),
        (["8", "8", "7"], [None, None, True], 1.0),
        (["8"], [None], None),
        ([], [], None),
        (["7", "7", "8"], [True, False, False], 0.5),
    ],
)
def test_majority(
    answers: list[str | None], correct: list[bool | None], expected: float | None
) -> None:
    assert majority_at_k(answers, correct) == (
        None if expected is None else pytest.approx(expected)
    )


@given(st.lists(st.sampled_from(["1", "2", "3", None]), min_size=1, max_size=9), st.randoms())
def test_majority_is_the_mean_over_random_tie_breaks(
    answers: list[str | None], random: Random
) -> None:
    correct = [answer == "1" for answer in answers]
    voters = [answer for answer in answers if answer]
    most = max((voters.count(answer) for answer in voters), default=0)
    winners = sorted({answer for answer in voters if voters.count(answer) == most})
    expected = winners.count("1") / len(winners) if winners else 0.0
    assert majority_at_k(answers, correct) == pytest.approx(expected)
    pairs = list(zip(answers, correct, strict=True))
    random.shuffle(pairs)
    assert majority_at_k(*map(list, zip(*pairs, strict=True))) == pytest.approx(expected)


def test_majority_refuses_unequal_lengths() -> None:
    with pytest.raises(UserError, match="got 2 answers and 1 verdicts: give one verdict"):
        majority_at_k(["1", "2"], [True])


def test_standard_error_of_correctness_is_the_binomial_one() -> None:
    correct = [True] * 30 + [False] * 70 + [None] * 5
    assert standard_error(correct) == pytest.approx(math.sqrt(0.3 * 0.7 / 99))


@given(values)
def test_standard_error_is_the_deviation_over_the_root(numbers: list[float]) -> None:
    n, mean = len(numbers), sum(numbers) / len(numbers)
    exact = math.sqrt(sum((x - mean) ** 2 for x in numbers) / (n - 1) / n)
    assert standard_error(numbers) == pytest.approx(exact, abs=1e-9)
    assert standard_error([*numbers, math.nan, None]) == standard_error(np.array(numbers))


@pytest.mark.parametrize("few", [[], [1.0], [1.0, None]])
def test_standard_error_of_fewer_than_two_is_unknown(few: list[float | None]) -> None:
    assert math.isnan(standard_error(few))


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))))
def test_wilson_interval_solves_its_equation(case: tuple[int, int]) -> None:
    total, successes = case
    low, high = wilson_interval(successes, total)
    share = successes / total
    assert 0 <= low <= share <= high <= 1
    for bound in (low, high):
        # Each bound is a proportion whose score test just rejects, at 1.96 standard errors.
        z = 1.959963984540054
        gap = (share - bound) ** 2 - z**2 * bound * (1 - bound) / total
        assert gap == pytest.approx(0, abs=1e-9)


def test_wilson_interval_widens_with_confidence() -> None:
    narrow, wide = (wilson_interval(3, 10, confidence=c) for c in (0.5, 0.99))
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


@pytest.mark.parametrize(("successes", "total"), [(0, 0), (3, 2), (-1, 2)])
def test_wilson_interval_refuses_impossible_counts(successes: int, total: int) -> None:
    with pytest.raises(UserError, match=f"{successes} successes of {total} have no interval"):
        wilson_interval(successes, total)


def test_paired_interval_is_reproducible_and_drops_undecided_pairs() -> None:
    a = [True, False, None, True, False, False]
    b = [True, True, True, math.nan, True, False]
    result = paired_interval(a, b, seed=3)
    assert result == paired_interval([1, 0, 0, 0], [1, 1, 1, 0], seed=3)
    assert result.difference == 0.5
    assert result.pairs == 4
    assert result.low <= 0.5 <= result.high


@pytest.mark.parametrize("pairs", [12, 200])
@pytest.mark.parametrize(
    ("gained", "lost"), [(1, 0), (4, 0), (5, 0), (6, 0), (0, 6), (7, 1), (8, 1), (2, 9), (1, 9)]
)
def test_an_interval_of_zeros_and_ones_agrees_with_mcnemars_exact_test(
    gained: int, lost: int, pairs: int
) -> None:
    a = np.array([0] * gained + [1] * lost + [0] * (pairs - gained - lost))
    b = np.array([1] * gained + [0] * (pairs - gained))
    result = paired_interval(a, b, seed=0)
    assert result.excludes_zero == (binomtest(gained, gained + lost).pvalue < 0.05)
    assert -1 <= result.low < result.difference < result.high <= 1


def test_an_interval_of_rates_agrees_with_the_sign_flip_test() -> None:
    generator = np.random.default_rng(0)
    for _ in range(10):
        differences = generator.choice([-0.5, 0.25, 0.5, 0.75], size=8)
        flipped = [np.dot(signs, differences) for signs in itertools.product((-1, 1), repeat=8)]
        p = np.mean(np.abs(flipped) >= abs(differences.sum()) - 1e-9)
        a, b = np.full(20, 0.5), np.full(20, 0.5)
        a[:8], b[:8] = np.maximum(-differences, 0), np.maximum(differences, 0)
        assert paired_interval(a, b, seed=0).excludes_zero == (p < 0.05)


def test_a_single_question_says_next_to_nothing() -> None:
    for a, b in ((0, 1), (0.25, 0.75)):
        result = paired_interval([a], [b], seed=0)
        assert not result.excludes_zero
        assert result.low < -0.9
        assert result.high == 1


@pytest.mark.slow
@pytest.mark.parametrize("binary", [True, False])
def test_intervals_hold_the_difference_as_often_as_they_say(binary: bool) -> None:
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(100):
        if binary:
            a, b = np.zeros(40), generator.choice([1, -1, 0], p=[0.15, 0.05, 0.8], size=40)
        else:
            a, b = generator.binomial(4, [[0.3], [0.4]], (2, 40)) / 4
        result = paired_interval(a, b, seed=0)
        held += result.low <= 0.1 <= result.high
    assert held >= 93


def test_paired_interval_has_the_width_of_the_normal_one_in_large_samples() -> None:
    generator = np.random.default_rng(1)
    a = generator.random(3000)
    b = a + 0.1 + 0.05 * generator.standard_normal(3000)
    result = paired_interval(a, b, seed=0)
    half = 1.96 * standard_error(b - a)
    assert result.high - result.low == pytest.approx(2 * half, rel=0.05)
    assert result.excludes_zero
    # Pairing is what makes it narrow.
    assert half < 0.3 * math.hypot(standard_error(a), standard_error(b))


@given(values, st.integers(0, 5))
def test_no_difference_is_an_interval_around_zero(numbers: list[float], seed: int) -> None:
    result = paired_interval(numbers, numbers, seed=seed)
    # Of a share of questions that differ, none of n being seen.
    share = 1 - 0.025 ** (1 / len(numbers))
    assert result[:3] == (0, pytest.approx(-share, rel=0.01), pytest.approx(share, rel=0.01))
    assert not result.excludes_zero


def test_swapping_the_runs_mirrors_the_interval() -> None:
    a, b = np.random.default_rng(2).random((2, 40))
    forth, back = paired_interval(a, b, seed=0), paired_interval(b, a, seed=0)
    assert forth[:3] == pytest.approx((-back.difference, -back.high, -back.low))


@pytest.mark.parametrize(
    ("a", "b", "confidence", "text"),
    [
        ([1.0], [1.0, 0.0], 0.95, "got 1 and 2 values: give both runs' values of the same"),
        ([None, 1.0], [1.0, None], 0.95, "none of 2 questions is decided in both runs"),
        ([], [], 0.95, "none of 0 questions"),
        ([1.0], [1.0], 1.0, r"confidence is 1\.0: it must lie between 0 and 1, such as 0\.95"),
    ],
)
def test_paired_interval_refuses(a: list, b: list, confidence: float, text: str) -> None:
    with pytest.raises(UserError, match=text):
        paired_interval(a, b, confidence=confidence, seed=0)


def test_crossed_interval_is_that_of_all_equally_likely_draws() -> None:
    """Two seeds and three questions have 4 x 27 draws: their quantiles, and by hand the means."""
    table = np.array([[0.0, 1.0, 0.5], [0.5, 1.0, 0.0]])
    draws = [
        table[np.ix_(seeds, questions)].mean()
        for seeds in itertools.product(range(2), repeat=2)
        for questions in itertools.product(range(3), repeat=3)
    ]
    found = crossed_interval(list(table), seed=0)
    assert found is not None
    assert found.mean == 0.5
    assert found.by_seed == [0.5, 0.5]
    expected = np.quantile(draws, (0.025, 0.975), method="inverted_cdf")
    assert [found.low, found.high] == pytest.approx(expected, abs=1e-12)


def test_crossed_interval_covers_seeds_and_questions() -> None:
    random = np.random.default_rng(0)
    questions, seeds = random.normal(0, 1, 200), random.normal(0, 1, (5, 1))
    alike = crossed_interval([questions] * 5, seed=0)
    apart = crossed_interval(list(questions + seeds), seed=0)
    assert alike is not None
    assert apart is not None
    # Seeds that agree leave the questions' own error, of a single seed too.
    assert alike.high - alike.low == pytest.approx(4 * standard_error(questions), rel=0.1)
    assert apart.high - apart.low > 3 * (alike.high - alike.low)
    assert crossed_interval([questions] * 5, seed=0) == alike


def test_crossed_interval_leaves_out_what_a_seed_has_not_decided() -> None:
    found = crossed_interval([[0.0, 1.0, math.nan], [0.0, 1.0, 0.0]], seed=0)
    assert found is not None
    assert found.mean == 0.5
    assert crossed_interval([[math.nan], [1.0]], seed=0) is None
