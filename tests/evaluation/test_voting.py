"""Votes: one for each answer, whatever its notation."""

from __future__ import annotations

import time
from fractions import Fraction

import pytest

from rft_jax.evaluation.voting import cast_votes
from rft_jax.observe.statistics import majority_at_k
from rft_jax.types import Sample, Verdict
from rft_jax.verification.pool import Item, VerifierPool
from rft_jax.verification.rules import Limits, VerifierSpec


def group(pool: VerifierPool, reference: str, texts: list[str]) -> list[Sample]:
    judged = pool.verify([Item(reference, text, True) for text in texts])
    return [
        Sample(0, index, 0, text, (1,), (-1.0,), True, one.verdict, one.reason)
        for index, (text, one) in enumerate(zip(texts, judged, strict=True))
    ]


def boxed(*answers: str) -> list[str]:
    return [rf"\boxed{{{answer}}}" for answer in answers]


def test_notations_of_one_answer_are_one_vote() -> None:
    halves = boxed(r"\frac{1}{2}", r"\dfrac{1}{2}", "1/2", r"\frac12")
    with VerifierPool(VerifierSpec("boxed"), Limits(1, 60.0)) as pool:
        right = group(pool, "1/2", [*halves, *boxed("3", "3")])
        wrong = group(pool, "3", [*halves, *boxed("3", "x+1", "1+x", "50%", "7"), "none"])
        votes = cast_votes([right, wrong, []], pool, [])
    assert votes is not None
    assert [majority_at_k(*one) for one in votes] == [1.0, 0.0, None]
    assert len(set(votes[0].answers)) == 2
    sizes = [votes[1].answers.count(answer) for answer in votes[1].answers]
    assert sizes[:4] == [sizes[0]] * 4
    assert sizes[0] >= 4
    assert (sizes[4:7], sizes[8]) == ([1, 2, 2], 1)
    assert votes[1].answers[-1] is None


@pytest.mark.parametrize("name", ["random", "tiny_experiment:even_length"])
def test_a_verifier_that_says_no_answer_has_no_votes(name: str) -> None:
    with VerifierPool(VerifierSpec(name), Limits(1, 60.0)) as pool:
        assert cast_votes([group(pool, "1", ["#### 1", "#### 2"])], pool, []) is None


@pytest.mark.slow
def test_many_different_numbers_cost_no_comparison() -> None:
    texts = [f"#### {Fraction(number, 7)}" for number in range(64)]
    groups = [
        [
            Sample(question, i, 0, text, (1,), (-1.0,), True, Verdict.INCORRECT, "not equal")
            for i, text in enumerate(texts)
        ]
        for question in range(200)
    ]
    with VerifierPool(VerifierSpec("hash"), Limits(1, 60.0)) as pool:
        began = time.perf_counter()
        votes = cast_votes(groups, pool, [])
        assert time.perf_counter() - began < 10
    assert votes is not None
    assert {len(set(one.answers)) for one in votes} == {64}
