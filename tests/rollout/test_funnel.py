"""The acceptance funnel of a rollout."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rft_jax.config import SelectionConfig
from rft_jax.rollout.funnel import funnel, pass_rates
from rft_jax.training.selection import reduced
from rft_jax.types import Sample, Verdict

OUTCOMES = {
    "right": (True, Verdict.CORRECT, "equal"),
    "wrong": (True, Verdict.INCORRECT, "not equal"),
    "unparsed": (True, Verdict.INCORRECT, "no answer"),
    "cut": (False, Verdict.INCORRECT, "truncated"),
    "timeout": (True, Verdict.UNDECIDED, "timeout"),
}


def sample(question: int, outcome: str, length: int = 1, text: str = "") -> Sample:
    finished, verdict, reason = OUTCOMES[outcome]
    return Sample(question, 0, 0, text, (1,) * length, (0.0,) * length, finished, verdict, reason)


ROLLOUT = [
    sample(0, "right", 4),
    sample(0, "right", 2),
    sample(0, "wrong", 5),
    sample(0, "timeout", 9),
    sample(1, "unparsed", 3),
    sample(1, "cut", 10),
    sample(2, "right", 6),
    sample(3, "timeout", 1),
]


def test_every_metric_of_a_rollout() -> None:
    found = funnel(ROLLOUT, num_distinct=2, num_kept=1)
    assert found == {
        "funnel/sampled": 8,
        "funnel/finished": 7,
        "funnel/parsed": 4,
        "funnel/correct": 3,
        "funnel/distinct": 2,
        "funnel/kept": 1,
        "funnel/undecided": 2,
        "pass_rate": 0.5,
        # Questions 1, 0 and 2; question 3 has no decided output.
        "questions/pass_rate_histogram": [1, 0, 0, 1, 1],
        "questions/all_correct": pytest.approx(1 / 3),
        "questions/none_correct": pytest.approx(1 / 3),
        # Of questions 0 (rewards 1, 1, 0) and 1 (0, 0); question 2 has one decided output.
        "questions/reward_deviation": pytest.approx(np.std([1, 1, 0]) / 2),
        "policy/log_prob_correct": 0.0,
        "policy/log_prob_incorrect": 0.0,
        "lengths/correct": 4.0,
        "lengths/incorrect": 6.0,
        "lengths/truncated": 10.0,
        "cost/sampled_per_accepted_token": 40 / 12,
    }


def test_pass_rates_leave_undecided_outputs_out() -> None:
    assert pass_rates(ROLLOUT) == {0: pytest.approx(2 / 3), 1: 0.0, 2: 1.0}
    assert pass_rates([]) == {}


@pytest.mark.parametrize(
    ("samples", "numbers"),
    [
        ([], {"funnel/sampled": 0}),
        ([sample(0, "timeout")], {"funnel/sampled": 1, "funnel/undecided": 1}),
    ],
)
def test_what_has_nothing_to_average_is_none(
    samples: list[Sample], numbers: dict[str, int]
) -> None:
    found = funnel(samples, num_distinct=0, num_kept=0)
    assert {name: found[name] for name in numbers} == numbers
    nothing = {name for name, value in found.items() if value is None}
    assert nothing == {
        "pass_rate",
        "questions/all_correct",
        "questions/none_correct",
        "questions/reward_deviation",
        "policy/log_prob_correct",
        "policy/log_prob_incorrect",
        "lengths/correct",
        "lengths/incorrect",
        "lengths/truncated",
        "cost/sampled_per_accepted_token",
    }
    assert found["questions/pass_rate_histogram"] == [0] * (1 + len(samples))


@pytest.mark.parametrize("group", range(1, 17))
def test_each_number_of_correct_outputs_has_its_bin(group: int) -> None:
    samples = [
        sample(question, "right" if index < question else "wrong")
        for question in range(group + 1)
        for index in range(group)
    ]
    found = funnel(samples, num_distinct=0, num_kept=0)
    assert found["questions/pass_rate_histogram"] == [1] * (group + 1)


def test_many_samples_share_bins() -> None:
    samples = [
        sample(question, "right" if index < question else "wrong")
        for question in range(65)
        for index in range(64)
    ]
    counts = funnel(samples, num_distinct=0, num_kept=0)["questions/pass_rate_histogram"]
    assert isinstance(counts, list)
    assert (len(counts), set(counts)) == (10, {6, 7})


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from(sorted(OUTCOMES)), st.sampled_from("ab")),
        max_size=20,
    ),
    st.integers(0, 2),
)
def test_the_funnel_narrows(specs: list[tuple[int, str, str]], most: int) -> None:
    samples = [sample(question, outcome, 1, text) for question, outcome, text in specs]
    accepted = [one for one in samples if one.accepted]
    unique, kept = reduced(accepted, SelectionConfig(dedupe="text", max_per_question=most))
    found = funnel(samples, num_distinct=len(unique), num_kept=len(kept))
    names = ("sampled", "finished", "parsed", "correct", "distinct", "kept")
    counts = [found[f"funnel/{name}"] for name in names]
    assert counts == sorted(counts, reverse=True)
    histogram = found["questions/pass_rate_histogram"]
    assert sum(histogram) == len(pass_rates(samples))
    rate = found["pass_rate"]
    assert rate is None or np.isclose(rate * (len(samples) - found["funnel/undecided"]), counts[3])
