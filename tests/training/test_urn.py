"""An urn: one question, ten correct and ten incorrect answers, a softmax policy over them.

The exact gradient of the pass rate keeps all correct answers. A policy that is trained on groups of
eight of its own samples loses some by chance: what positive-only training loses, and what the rows
and settings that help keep, through the rows' own coefficients, selection and weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from enumeration import config

from rft_jax.config import Config, SelectionConfig
from rft_jax.training.methods import METHODS
from rft_jax.training.selection import select, weigh
from rft_jax.types import Sample, Verdict

ANSWERS, CORRECT, GROUP, RUNS = 20, 10, 8, 30
RATE, SOLVED, MOST_STEPS = 0.5, 0.95, 600


def output(question: int, answer: int, index: int) -> Sample:
    """An answer as an output of one token."""
    return Sample(
        question_id=question,
        sample_index=index,
        step=0,
        text=str(answer),
        tokens=(answer,),
        log_probs=(-1.0,),
        finished=True,
        verdict=Verdict.CORRECT if answer < CORRECT else Verdict.INCORRECT,
        reason="",
    )


def settings(method: str, selection: SelectionConfig | None = None) -> Config:
    base = config("online_rft", "sampled", selection=selection)
    assert base.rollout is not None
    rollout = replace(base.rollout, samples_per_question=GROUP)
    return replace(base, method=METHODS[method], rollout=rollout)


def softmax(scores: np.ndarray) -> np.ndarray:
    chances = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return chances / chances.sum(axis=-1, keepdims=True)


def modes(chances: np.ndarray) -> float:
    """The effective number of correct answers, exp of their entropy."""
    of_correct = chances[:CORRECT] / chances[:CORRECT].sum()
    return float(np.exp(-(of_correct * np.log(of_correct)).sum()))


def left(run: Config, *, rate: float = RATE) -> float:
    """Modes left when the question is solved, the mean over runs, each a question of one step."""
    rng, scores = np.random.default_rng(0), np.zeros((RUNS, ANSWERS))
    for _ in range(MOST_STEPS):
        chances = softmax(scores)
        going = np.flatnonzero(chances[:, :CORRECT].sum(axis=1) < SOLVED)
        if not going.size:
            break
        drawn = [rng.choice(ANSWERS, size=GROUP, p=chances[one]) for one in going]
        samples = [
            output(int(question), int(answer), n)
            for question, answers in zip(going, drawn, strict=True)
            for n, answer in enumerate(answers)
        ]
        kept = select(samples, run)
        for one, weight in zip(kept.samples, weigh(kept, run), strict=True):
            score = np.eye(ANSWERS)[one.tokens[0]] - chances[one.question_id]
            scores[one.question_id] += rate * going.size * float(weight) * score
    return float(np.mean([modes(one) for one in softmax(scores)]))


@pytest.fixture(scope="module")
def plain() -> float:
    """Of Online RFT as it is."""
    return left(settings("online_rft"))


@pytest.mark.slow
def test_positives_only_lose_half_of_the_correct_answers(plain: float) -> None:
    assert 4 < plain < 6.3


REMEDIES: dict[str, tuple[Callable[[], float], float]] = {
    "a baseline": (lambda: left(settings("rloo")), 8.3),
    "negatives only": (lambda: left(settings("nsr")), 9.8),
    "little weight on positives": (lambda: left(settings("w_reinforce")), 9.5),
    "equal outputs dropped": (
        lambda: left(settings("online_rft", SelectionConfig(dedupe="text"))),
        9.0,
    ),
    "a lower rate": (lambda: left(settings("online_rft"), rate=RATE / 4), 7.0),
}


@pytest.mark.slow
@pytest.mark.parametrize("remedy", REMEDIES)
def test_a_remedy_keeps_more_of_them(remedy: str, plain: float) -> None:
    """Without it the number is that of `plain`: each has a bound of its own well above."""
    carried_out, least = REMEDIES[remedy]
    assert least > plain + 1
    assert carried_out() > least
