"""What batch filling biases, as training/batch_filling.py states it, and what counters it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from refilling import NO, YES, group, settings

from rft_jax.config import Config, SelectionConfig
from rft_jax.training.batch_filling import fill, is_full
from rft_jax.training.selection import Kept, select
from rft_jax.types import Sample


def simulated(
    refilled: Config, pass_rate: Callable[[int], float], steps: int
) -> Iterator[tuple[Kept, int]]:
    """Steps on ever new questions, without a log: what each trains on, and its rounds."""
    assert refilled.rollout is not None
    shape = (refilled.rollout.questions_per_step, refilled.rollout.samples_per_question)
    rng, question = np.random.default_rng(0), 0
    for step in range(steps):
        samples: list[Sample] = []
        rounds, full = 0, False
        while not full:
            rounds += 1
            for row in rng.random(shape):
                rate, question = pass_rate(question), question + 1
                samples += group(question, *(YES if x < rate else NO for x in row), step=step)
            kept = select(samples, refilled)
            full = is_full(kept, (), refilled, num_unasked=1)
        yield fill(kept, (), refilled, step=step, num_rounds=rounds)[0], rounds


def share_of_easy(refilled: Config) -> tuple[float, float]:
    """Share of easy questions among what 100 steps train on, and the rounds of a step."""
    easy, rounds = [], []
    for filled, count in simulated(refilled, lambda question: 0.9 if question % 2 else 0.1, 100):
        # A question's number is one more than the one that its pass rate is of.
        easy += [sample.question_id % 2 == 0 for sample in filled.samples]
        rounds.append(count)
    return float(np.mean(easy)), float(np.mean(rounds))


@pytest.mark.slow
def test_easy_questions_fill_the_batch_and_the_cap_counters_it() -> None:
    """Half of the questions pass at 0.9, half at 0.1."""
    shape: dict[str, Any] = {"rounds": 16, "questions": 4, "samples": 8}
    open_share, open_rounds = share_of_easy(settings(accepted=32, **shape))
    assert open_share == pytest.approx(0.9, abs=0.03)  # 0.9 / (0.9 + 0.1)
    cap = SelectionConfig(max_per_question=1)
    capped_share, capped_rounds = share_of_easy(settings(accepted=32, selection=cap, **shape))
    any_of_8 = 1 - 0.9**8  # a hard question has a correct output at all
    assert capped_share == pytest.approx(1 / (1 + any_of_8), abs=0.03)  # 0.64
    assert capped_rounds > 4 * open_rounds  # the price


def mean_weight(refilled: Config, p: float, steps: int) -> float:
    """Mean over steps of the sum of a batch's weights under `sampled`."""
    filled = [one for one, _ in simulated(refilled, lambda question: p, steps)]
    return float(np.mean([len(one.samples) / one.num_sampled for one in filled]))


@pytest.mark.slow
def test_the_stopping_rule_overrates_acceptance_as_stated() -> None:
    """One output a round: N / D, D being negative binomial, is more than p on average."""
    p = 0.3

    def expected(n: int) -> float:
        of = {d: math.comb(d - 1, n - 1) * p**n * (1 - p) ** (d - n) for d in range(n, 100)}
        return sum(n / d * probability for d, probability in of.items())

    assert expected(1) == pytest.approx(-p * math.log(p) / (1 - p))  # 0.52
    assert expected(20) == pytest.approx(p * (1 + (1 - p) / 20), rel=0.01)  # 1 + O(1 / N)
    for n, steps in ((1, 2000), (5, 300)):
        one_by_one = settings(accepted=n, rounds=100, questions=1, samples=1)
        assert mean_weight(one_by_one, p, steps) == pytest.approx(expected(n), abs=0.025)
    # Surplus that is dropped biases nothing where the number of rounds is fixed.
    one_round = settings(accepted=2, questions=8, samples=4)
    assert mean_weight(one_round, p, 1000) == pytest.approx(p, abs=0.01)
