"""Rates with their intervals, from known outputs."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest

from rft_jax.evaluation.estimates import Estimate, estimates
from rft_jax.evaluation.evaluate import Outputs, measure, own_votes
from rft_jax.observe.statistics import standard_error, wilson_interval
from rft_jax.rollout.engine import Rollout
from rft_jax.types import Question, Sample, Verdict
from rft_jax.verification.pool import VerifierPool
from rft_jax.verification.rules import VerifierSpec

RIGHT, WRONG, UNKNOWN = Verdict.CORRECT, Verdict.INCORRECT, Verdict.UNDECIDED


def rollout(groups: list[list[tuple[Verdict, str]]]) -> Rollout:
    samples = [
        Sample(question, index, 0, f"#### {answer}", (1,), (-1.0,), True, verdict, "")
        for question, group in enumerate(groups)
        for index, (verdict, answer) in enumerate(group)
    ]
    return Rollout(samples, samples, np.zeros(len(samples)), 0.0, 0.0, 0.0, ())


GREEDY = rollout([[(RIGHT, "1")], [(WRONG, "1")], [(RIGHT, "1")], [(UNKNOWN, "1")]])
SAMPLED = rollout(
    [
        [(RIGHT, "5"), (RIGHT, "5"), (WRONG, "6"), (WRONG, "7")],
        [(WRONG, "1"), (WRONG, "1"), (WRONG, "1"), (RIGHT, "2")],
        [(RIGHT, "3"), (WRONG, "4"), (UNKNOWN, "4"), (UNKNOWN, "4")],
        [(UNKNOWN, "9")] * 4,
    ]
)
"""Questions with 4, 4, 2 and no decided outputs."""


HASH = VerifierPool.__new__(VerifierPool)
HASH.name, HASH.spec = (
    "hash",
    VerifierSpec("hash"),
)  # all that is asked of it where outputs state plain numbers


def estimated(outputs: Outputs) -> dict[str, Estimate]:
    return estimates(outputs, own_votes([], outputs, HASH))


def test_where_all_is_right_or_wrong_the_interval_is_wilsons() -> None:
    low, high = wilson_interval(2, 3)
    assert estimated(Outputs(GREEDY, None)) == {"greedy/accuracy": Estimate(2 / 3, low, high, 3)}


def test_elsewhere_it_comes_from_the_standard_error() -> None:
    found = estimated(Outputs(GREEDY, SAMPLED))
    assert list(found) == ["greedy/accuracy"] + [
        f"{name}/{k}" for name in ("pass_at", "maj_at") for k in (1, 2, 4)
    ]
    expected = {
        "pass_at/1": [1 / 2, 1 / 4, 1 / 2],
        "pass_at/2": [5 / 6, 1 / 2, 1],
        "pass_at/4": [1, 1],  # the normal approximation would be certain
        "maj_at/1": [1 / 2, 1 / 4, 1 / 2],
        # Both 5: 1; one of them: a tie, 4 of 6 pairs; none: 0. One of three and one: a tie.
        "maj_at/2": [(1 + 4 / 2) / 6, (3 / 2) / 6, 1 / 2],
        "maj_at/4": [1, 0, 1 / 2],
    }
    z = NormalDist().inv_cdf(0.975)
    for name, values in expected.items():
        value, low, high, questions = found[name]
        assert questions == len(values)
        mean, error = np.mean(values), standard_error(values)
        assert value == pytest.approx(mean)
        interval = max(mean - z * error, 0), min(mean + z * error, 1)
        if set(values) <= {0, 1}:
            interval = wilson_interval(sum(values), len(values))
        assert (low, high) == pytest.approx(interval)


def test_they_are_what_an_evaluation_logs() -> None:
    outputs = Outputs(GREEDY, SAMPLED)
    questions = [Question(i, "?", "1") for i in range(4)]
    metrics, _ = measure(questions, outputs, own_votes([], outputs, HASH))
    found = estimated(Outputs(GREEDY, SAMPLED))
    for name in set(metrics) & set(found):
        assert metrics[name] == pytest.approx(found[name].value), name
    assert {"greedy/accuracy", "pass_at/1", "pass_at/2", "pass_at/4", "maj_at/4"} <= set(metrics)


def test_nothing_is_decided_and_a_single_question_is() -> None:
    unknown = [[(UNKNOWN, "1"), (UNKNOWN, "1")]]
    nothing = estimated(Outputs(rollout([[(UNKNOWN, "1")]]), rollout(unknown)))
    assert set(nothing.values()) == {Estimate(None, None, None, 0)}
    pair = [[(RIGHT, "1"), (WRONG, "2")]]
    one = estimated(Outputs(rollout([[(RIGHT, "1")]]), rollout(pair)))
    assert one["pass_at/1"] == Estimate(0.5, None, None, 1)
    assert one["greedy/accuracy"] == Estimate(1.0, *wilson_interval(1, 1), 1)
