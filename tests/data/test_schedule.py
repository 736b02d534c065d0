"""Which questions a step asks under a schedule and a curriculum: pure functions."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from rft_jax.config import Config, CurriculumConfig, RolloutConfig, ScheduleConfig
from rft_jax.data import curriculum, schedule, stream
from rft_jax.data.curriculum import History, Last
from rft_jax.data.stream import Position
from rft_jax.errors import CheckpointError, DataError
from rft_jax.types import Question, Sample, Verdict


def questions(*sizes: int) -> list[Question]:
    """Of so many rows in each source."""
    made = ([Question(row, f"{row}?", "1") for row in range(size)] for size in sizes)
    return [one for number, rows in enumerate(made) for one in schedule.numbered(rows, number, "s")]


def config(per_step: int, *weights: str, seed: int = 0, steps: int = 1000, **more: Any) -> Config:
    """weights: of a schedule with as many sources; none for no schedule."""
    count = weights[0].count(",") if weights else 0
    names = tuple(f"s{number}=jsonl:s" for number in range(1, 1 + count))
    return tiny.online_rft(
        seed=seed,
        steps=steps,
        rollout=RolloutConfig(questions_per_step=per_step, samples_per_question=2),
        schedule=ScheduleConfig(sources=names, weights=weights, change="linear" if len(weights) > 1
                                else "step") if weights else None,
        **more,
    )  # fmt: skip


NONE: History = MappingProxyType({})


def take(
    asked_of: list[Question], settings: Config, position: Position, step: int,
    history: History = NONE, asked: Any = (),
) -> tuple[list[int], Position]:  # fmt: skip
    sizes = schedule.sizes(asked_of, settings)
    return schedule.take(asked_of, sizes, settings, position, asked, step, history)


def walk(
    asked_of: list[Question], settings: Config, steps: range, position: Position
) -> tuple[list[list[int]], Position]:
    """The rows of several steps, one round each."""
    rounds = []
    for step in steps:
        rows, position = take(asked_of, settings, position, step)
        rounds.append(rows)
    return rounds, position


@given(
    st.lists(st.integers(0, 9), min_size=2, max_size=4).filter(any),
    st.integers(1, 40),
    st.integers(0, 2**31 - 1),
    st.integers(0, 10**6),
)
def test_counts_lie_within_one_of_the_shares(
    weights: list[int], per_step: int, seed: int, step: int
) -> None:
    # One more source of weight 1 in another point, so that no weight is 0 everywhere.
    ones, zeros = ", ".join(["1"] * len(weights)), ", ".join(map(str, weights))
    settings = config(per_step, f"0: {zeros}", f"999999: {ones}", seed=seed, steps=2 * 10**6)
    assert settings.schedule is not None
    shares = settings.schedule.shares(step)
    counts = schedule.counts(settings, step)
    assert sum(counts) == per_step
    for share, count in zip(shares, counts, strict=True):
        assert abs(count - per_step * share) < 1 + 1e-9
        assert share > 0 or count == 0


def test_shares_are_met_in_the_mean() -> None:
    settings = config(3, "0: 5, 3, 2", steps=5000)
    total = np.sum([schedule.counts(settings, step) for step in range(5000)], axis=0)
    np.testing.assert_allclose(total / 15000, (0.5, 0.3, 0.2), atol=0.006)
    assert schedule.counts(settings, 7) == schedule.counts(settings, 7)


@given(st.integers(0, 5), st.integers(0, 29))
def test_any_split_gives_the_same_stream(seed: int, cut: int) -> None:
    asked_of = questions(16, 9, 12)
    settings = config(6, "0: 1, 0, 0", "10: 1, 2, 1", "20: 0, 0, 1", seed=seed, steps=30)
    whole, end = walk(asked_of, settings, range(30), Position())
    first, middle = walk(asked_of, settings, range(cut), Position())
    saved = Position.from_json(json.loads(json.dumps(middle.to_json())))
    second, again = walk(asked_of, settings, range(cut, 30), saved)
    assert first + second == whole
    assert again == end


def test_each_source_gives_its_own_stream() -> None:
    """In the order of its epochs; data.train's is that of a run without a schedule."""
    asked_of = questions(40, 24)
    settings = config(8, "0: 1, 1", seed=3)
    rounds, end = walk(asked_of, settings, range(10), Position())
    drawn = [row for rows in rounds for row in rows]
    first = [row for row in drawn if row < 40]
    assert 36 <= len(first) <= 44
    # A round is mixed: within one the order differs, between two it does not.
    known, _ = stream.take(40, 3, Position(), len(first))
    assert Counter(first) == Counter(known.tolist())
    assert end.further[0] != Position()
    assert any(rows != sorted(rows, key=lambda row: row >= 40) for rows in rounds)
    assert len({tuple(stream.epoch_order(24, 3 + k * 2**32, 0)) for k in range(3)}) == 3


def test_a_step_passes_over_what_it_asked() -> None:
    asked_of = questions(4, 4)
    settings = config(4, "0: 1, 1")
    rows, position = take(asked_of, settings, Position(), 0)
    more, _ = take(asked_of, settings, position, 0, asked=set(rows))
    assert sorted(rows + more) == list(range(8))
    assert take(asked_of, settings, position, 0, asked=set(range(8)))[0] == []


def test_ids_do_not_collide() -> None:
    asked_of = questions(3, 3, 2)
    assert [one.id for one in asked_of] == [
        0, 1, 2, 10_000_000, 10_000_001, 10_000_002, 20_000_000, 20_000_001
    ]  # fmt: skip
    with pytest.raises(DataError, match=r"^source 's' has a row 10,000,000: under a schedule"):
        schedule.numbered([Question(schedule.IDS, "a", "b")], 0, "s")


def test_a_position_of_other_data_is_refused() -> None:
    with pytest.raises(CheckpointError, match="epoch 0, index 9 does not exist among 4 questions"):
        take(questions(8, 4), config(4, "0: 1, 1"), Position(0, 0, (Position(0, 9),)), 0)


BAND = CurriculumConfig(retire_above=0.8, drop_below=0.2, review_share=0.25)


def test_a_curriculum_asks_within_the_band_and_reviews() -> None:
    asked_of, settings = questions(32), config(8, curriculum=BAND)
    history = {row: Last(step=100 - row, pass_rate=row % 2 * 0.5) for row in range(32)}
    reviewed = []
    for step in range(200, 240):
        rows, position = take(asked_of, settings, Position(0, 5), step, history)
        aside = [row for row in rows if row % 2 == 0]
        assert len(rows) == len(set(rows)) == 8
        assert len(aside) == 2  # 0.25 x 8
        assert set(aside) == {28, 30}  # asked longest ago
        reviewed += aside
        assert position != Position(0, 5)
    nine = config(9, curriculum=BAND)
    counts = [
        sum(row % 2 == 0 for row in take(asked_of, nine, Position(), step, history)[0])
        for step in range(400)
    ]
    assert set(counts) == {2, 3}
    assert np.mean(counts) == pytest.approx(9 * 0.25, abs=0.1)


def test_an_empty_band_is_filled_with_what_was_asked_longest_ago() -> None:
    asked_of, settings = questions(12), config(6, curriculum=BAND)
    history = {row: Last(row, 1.0 if row < 10 else 0.5) for row in range(12)}
    rows, _ = take(asked_of, settings, Position(), 50, history)
    assert sorted(rows) == [0, 1, 2, 3, 10, 11]
    rows, _ = take(asked_of, settings, Position(), 50, history, asked={10, 11, 0})
    assert sorted(rows) == [1, 2, 3, 4, 5, 6]


def test_nothing_is_reviewed_before_anything_is_set_aside() -> None:
    asked_of, settings = questions(12), config(6, curriculum=BAND)
    rows, position = take(asked_of, settings, Position(), 0)
    assert Counter(rows) == Counter(stream.take(12, 0, Position(), 6)[0].tolist())
    assert position == Position(0, 6)


def sample(question: int, verdict: Verdict) -> Sample:
    return Sample(question, 0, 0, "", (1,), (0.0,), True, verdict, "")


def test_the_history_keeps_the_last_pass_rate() -> None:
    yes, no, none = Verdict.CORRECT, Verdict.INCORRECT, Verdict.UNDECIDED
    first = curriculum.recorded(
        {}, [sample(1, yes), sample(1, no), sample(1, none), sample(2, none)], 4, BAND
    )
    assert first == {1: Last(4, 0.5)}
    second = curriculum.recorded(first, [sample(1, none), sample(3, yes)], 5, BAND)
    assert second == {1: Last(5, 0.5), 3: Last(5, 1.0)}
    assert curriculum.recorded({}, [sample(1, yes)], 4, None) == {}
    third = {7: Last(1, 1 / 3)}
    assert curriculum.from_json(json.loads(json.dumps(curriculum.to_json(third)))) == third


def test_what_a_step_says_of_its_questions() -> None:
    asked_of = questions(4, 4)
    settings = replace(config(4, "0: 1, 1"), curriculum=BAND)
    history = {0: Last(0, 1.0), 1: Last(0, 0.5), 10_000_000: Last(0, 0.0)}
    asked = [asked_of[row] for row in (0, 1, 2, 4)]
    assert schedule.metrics(settings, asked, history) == {
        "schedule/share_train": 0.75, "schedule/share_s1": 0.25,
        "curriculum/set_aside": 2, "curriculum/reviewed": 2,
    }  # fmt: skip
    assert schedule.metrics(config(4), asked_of, {}) == {}
