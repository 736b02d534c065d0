"""Which rows a step asks, of sources whose shares change with the step and of questions that a
curriculum sets aside: a pure function of (config, position, step, history)."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import replace

import numpy as np

from rft_jax.config import Config
from rft_jax.data import stream
from rft_jax.data.curriculum import History
from rft_jax.data.stream import Position
from rft_jax.errors import DataError
from rft_jax.types import Question

IDS = 10_000_000
"""A schedule's source N has the question ids from N times this on."""
_DRAWS = 2**63
"""Keeps the draws of a step from the orders of epochs, whose keys are (seed, epoch)."""


def numbered(questions: Sequence[Question], number: int, source: str) -> tuple[Question, ...]:
    """The questions of a schedule's source with ids that no other source's have.

    Args:
        questions: as they were loaded: their ids are row numbers.
        number: of the source; 0, data.train, keeps its ids.
        source: as errors name it.

    Raises DataError where a row number leaves the source's range.
    """
    if questions and questions[-1].id >= IDS:
        raise DataError(
            f"source {source!r} has a row {questions[-1].id:,}: under a schedule question ids hold "
            f"{IDS:,} rows of each source; take rows below."
        )
    return tuple(replace(one, id=one.id + number * IDS) for one in questions)


def is_plain(config: Config) -> bool:
    """Whether all questions are asked alike."""
    return config.schedule is None and config.curriculum is None


def sizes(questions: Sequence[Question], config: Config) -> tuple[int, ...]:
    """How many of the questions each source has; they stand one source after the other."""
    if config.schedule is None:
        return (len(questions),)
    count = Counter(question.id // IDS for question in questions)
    return tuple(count[number] for number in range(len(config.schedule.names)))


def counts(config: Config, step: int) -> list[int]:
    """How many questions of a round each source gives: within one of its share, and its share in
    the mean over steps (systematic sampling)."""
    assert config.rollout is not None
    asked = config.rollout.questions_per_step
    if config.schedule is None:
        return [asked]
    ends = [*itertools.accumulate(config.schedule.shares(step), initial=0.0)]
    point, _ = _draws(config, step)
    # Over the last end: a share of 0 stays 0 whatever the sum rounds to.
    marks = [min(int(asked * (end / ends[-1]) + point), asked) for end in ends]
    return [last - first for first, last in itertools.pairwise(marks)]


def _draws(config: Config, step: int) -> tuple[float, np.ndarray]:
    """A number in [0, 1) for the counts of a step, and a word for each place of a round."""
    assert config.rollout is not None
    key = np.array([_DRAWS + config.seed, step], dtype=np.uint64)
    words = np.random.Philox(key=key).random_raw(1 + config.rollout.questions_per_step)
    return int(words[0] >> np.uint64(11)) / 2**53, words[1:]


def take(
    questions: Sequence[Question],
    sizes: Sequence[int],
    config: Config,
    position: Position,
    asked: Container[int],
    step: int,
    history: History,
) -> tuple[list[int], Position]:
    """The rows of a round, none of those asked, and the position after them.

    Each source has a stream of its own. Of its questions of the round, curriculum.review_share are
    those set aside that were asked longest ago; the stream gives the others, and passes over what
    is set aside; where a whole epoch has too few, more of those set aside fill up.

    Args:
        questions: one source's after the other's.
        sizes: how many each source has.
        config: its seed, rollout, schedule and curriculum count.
        position: of data.train's stream, with those of the further ones.
        asked: rows that this step has asked.
        step: of the run.
        history: of the questions that earlier steps asked.
    """
    (point, words), curriculum = _draws(config, step), config.curriculum
    places = [position, *position.further]
    rows: list[int] = []
    begin = 0
    for number, (size, count) in enumerate(zip(sizes, counts(config, step), strict=True)):
        # A checkpoint of before the first step, or none, has no further positions.
        place = places[number] if number < len(places) else Position()
        aside = [] if curriculum is None else sorted(
            (last.step, row)
            for row in range(begin, begin + size)
            if (last := history.get(questions[row].id))
            and curriculum.sets_aside(last.pass_rate)
            and row not in asked
        )  # fmt: skip
        waiting = [row for _, row in aside]
        reviews = 0 if curriculum is None else int(curriculum.review_share * count + point)
        passed, chosen = {*waiting}, waiting[:reviews]
        for row, after in stream.ahead(size, config.seed + number * 2**32, place):
            if len(chosen) >= count:
                break
            place = after
            if (row := begin + row) not in asked and row not in passed:
                passed.add(row)
                chosen.append(row)
        rows += chosen + waiting[reviews : reviews + count - len(chosen)]
        places[number : number + 1] = [place]
        begin += size
    # Batch filling cuts the end of a round: no source may always stand there.
    order = np.argsort(words[: len(rows)], kind="stable")
    first, *further = places
    return [rows[at] for at in order], replace(first, further=tuple(further))


def metrics(config: Config, asked: Sequence[Question], history: History) -> dict[str, float]:
    """Of the questions asked the share of each source, and what the curriculum made of them.

    history: before the step.
    """
    told: dict[str, float] = {}
    if config.schedule is not None:
        number = Counter(question.id // IDS for question in asked)
        told |= {
            f"schedule/share_{name}": number[place] / len(asked)
            for place, name in enumerate(config.schedule.names)
        }
    if config.curriculum is not None:
        sets_aside = config.curriculum.sets_aside
        aside = {one for one, last in history.items() if sets_aside(last.pass_rate)}
        told["curriculum/set_aside"] = len(aside)
        told["curriculum/reviewed"] = sum(question.id in aside for question in asked)
    return told
