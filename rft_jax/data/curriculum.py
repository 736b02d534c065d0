"""The pass rate that each question had when it was last asked, and which are set aside for it
(config section `curriculum`). All of it is a function of what a checkpoint holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rft_jax.config import CurriculumConfig
from rft_jax.types import Sample, Verdict


class Last(NamedTuple):
    """When a question was last asked, and its pass rate then."""

    step: int
    pass_rate: float


History = Mapping[int, Last]
"""By question id; without what was never decided."""


def recorded(
    history: History, samples: Iterable[Sample], step: int, curriculum: CurriculumConfig | None
) -> History:
    """The history after a step with these samples; empty without a curriculum.

    A question with no decided output keeps its pass rate.
    """
    if curriculum is None:
        return history
    decided: dict[int, list[bool]] = {}
    for sample in samples:
        known = decided.setdefault(sample.question_id, [])
        if sample.verdict is not Verdict.UNDECIDED:
            known.append(sample.accepted)
    rates = {
        question: sum(known) / len(known) if known else history[question].pass_rate
        for question, known in decided.items()
        if known or question in history
    }
    return {**history, **{question: Last(step, rate) for question, rate in rates.items()}}


def to_json(history: History) -> list[list[float]]:
    """The history as a checkpoint holds it."""
    return [[question, *last] for question, last in history.items()]


def from_json(values: Iterable[Sequence[Any]]) -> History:
    """The inverse of `to_json`."""
    return {question: Last(step, rate) for question, step, rate in values}
