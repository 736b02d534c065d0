"""maj@k of fewer outputs than there are: the mean over all choices of them."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rft_jax.observe.majority import expected_majority
from rft_jax.observe.statistics import majority_at_k

OUTPUTS = st.lists(
    st.tuples(st.sampled_from([None, "a", "b", "c", "d"]), st.sampled_from([True, False, None])),
    min_size=1,
    max_size=8,
)


@given(OUTPUTS, st.integers(1, 9))
def test_it_is_the_mean_over_all_subsets(
    outputs: list[tuple[str | None, bool | None]], k: int
) -> None:
    decided = [output for output in outputs if output[1] is not None]
    found = expected_majority([a for a, _ in outputs], [c for _, c in outputs], k)
    if not decided:
        assert found is None
        return
    subsets = list(itertools.combinations(decided, min(k, len(decided))))
    each = [majority_at_k([a for a, _ in one], [c for _, c in one]) for one in subsets]
    assert found == pytest.approx(sum(one or 0.0 for one in each) / len(subsets), abs=1e-12)


@pytest.mark.parametrize(
    ("right", "wrong", "k"), [(3, 2, 2), (40, 38, 7), (300, 700, 64), (900, 800, 33)]
)
def test_two_answers_follow_the_hypergeometric_law(right: int, wrong: int, k: int) -> None:
    """Also of more outputs than a float has room to count the subsets of."""
    total = right + wrong
    answers = ["right"] * right + ["wrong"] * wrong
    ways = math.comb(total, k)
    expected = 0.0
    for votes in range(max(0, k - wrong), min(right, k) + 1):
        chance = math.comb(right, votes) * math.comb(wrong, k - votes) / ways
        expected += chance * (1.0 if 2 * votes > k else 0.5 if 2 * votes == k else 0.0)
    found = expected_majority(answers, [answer == "right" for answer in answers], k)
    assert found == pytest.approx(expected, abs=1e-9)


def test_a_single_output_is_its_own_majority() -> None:
    answers = ["1", None, "2", "1"]
    assert expected_majority(answers, [True, True, False, False], 1) == pytest.approx(0.25)


def test_what_is_certain_is_exact() -> None:
    assert expected_majority(["1"] * 9, [True] * 9, 4) == 1.0
    assert expected_majority(["1"] * 9, [False] * 9, 4) == 0.0
