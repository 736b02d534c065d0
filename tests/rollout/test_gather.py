"""What processes tell each other of verified outputs, with each of them played in turn."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import pytest
from enumeration import EOS, sampling
from hypothesis import given, settings
from hypothesis import strategies as st

from rft_jax.rollout import gather as exchange
from rft_jax.types import Question, Remote, Sample, Verdict

STEP, GROUP, WIDTH, ROWS = 5, 2, 6, 8
QUESTIONS = [Question(10 + row, f"{row}", f"{row}") for row in range(5)]
OWNED = [np.array([1, 2, 6]), np.array([0, 5]), np.array([3, 4, 7])]
"""Rows of each process; 5 to 7 are of no question."""
TOTAL = len(QUESTIONS) * GROUP


def output(number: int, rng: np.random.Generator, **changes: Any) -> Sample:
    finished = bool(rng.random() < 0.7)
    count = int(rng.integers(WIDTH)) if finished else WIDTH
    digits = tuple(rng.integers(1, 3, count).tolist())
    tokens = (*digits, EOS) if finished else digits
    facts: dict[str, Any] = {
        "question_id": QUESTIONS[number // GROUP].id,
        "sample_index": number % GROUP,
        "step": STEP,
        "text": "".join(map(str, digits)),
        "tokens": tokens,
        "log_probs": tuple(rng.normal(size=len(tokens)).astype(np.float32).tolist()),
        "finished": finished,
        "verdict": list(Verdict)[number % 3],
        "reason": f"reason {number}",
        "reward": None if number % 3 else float(rng.random()),
        "steps": tuple((place, float(rng.normal())) for place in range(number % (len(tokens) + 1))),
    }
    return Sample(**facts | changes)


def outputs(**changes: Any) -> list[Sample]:
    rng = np.random.default_rng(3)
    return [output(number, rng, **changes) for number in range(TOTAL)]


def entropies() -> list[float]:
    return np.random.default_rng(4).random(TOTAL).tolist()


class Said(BaseException):
    """A process has said its part, and the others' are wanted."""


def exchanged(
    samples: list[Sample],
    shares: Callable[[Sample], bool] | None = None,
    numbers: Mapping[int, float] | None = None,
) -> list[tuple[list[Sample], np.ndarray]]:
    """What each process has in the end."""
    of_all = numbers or dict(enumerate(entropies()))
    said: list[list[np.ndarray]] = []  # by turn and process

    def of(process: int) -> Any:
        turns = iter(said)

        def say(values: np.ndarray) -> np.ndarray:
            if (turn := next(turns, None)) is None:
                now.append(values)
                raise Said
            return np.stack(turn)

        patch.setattr(exchange, "gather", say)
        own = {
            number: samples[number]
            for number in range(TOTAL)
            if number // GROUP in OWNED[process].tolist()
        }
        return exchange.gather_samples(
            own,
            {number: of_all[number] for number in own},
            QUESTIONS,
            step=STEP,
            num_samples=GROUP,
            rows=ROWS,
            mesh=sampling().mesh,
            width=WIDTH,
            shares=shares,
            tokenizer=sampling().tokenizer,
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "process_count", lambda: len(OWNED))
        patch.setattr(exchange, "rows_by_process", lambda mesh, rows: OWNED)
        while True:
            now: list[np.ndarray] = []
            found = []
            for process in range(len(OWNED)):
                with contextlib.suppress(Said):
                    found.append(of(process))
            if not now:
                return found
            assert not found  # all wait for each other as often
            said.append(now)


def facts(sample: Sample) -> tuple[Any, ...]:
    """What every process knows of an output."""
    address = (sample.question_id, sample.sample_index, sample.step)
    return (*address, sample.finished, sample.verdict, sample.reason, sample.num_tokens)


def test_all_have_the_facts_of_all_in_order() -> None:
    samples = outputs()
    for found, of_all in exchanged(samples):
        assert [facts(one) for one in found] == [facts(one) for one in samples]
        assert of_all.tolist() == entropies()  # to the last bit


def test_what_is_not_shared_stays_where_it_is() -> None:
    samples = outputs()
    for process, (found, _) in enumerate(exchanged(samples)):
        for number, one in enumerate(found):
            if number // GROUP in OWNED[process]:
                assert one is samples[number]
            else:
                assert isinstance(one, Remote)
                assert (one.text, one.tokens, one.log_probs) == ("", (), ())
                assert one.num_tokens == samples[number].num_tokens


def test_what_is_trained_on_is_the_same_in_all() -> None:
    samples = outputs()
    for process, (found, _) in enumerate(exchanged(samples, lambda sample: sample.accepted)):
        for number, one in enumerate(found):
            here = number // GROUP in OWNED[process]
            if here or samples[number].accepted:
                assert one == samples[number]  # tokens, text and float32 log-probs exactly
                assert type(one) is Sample
            else:
                assert isinstance(one, Remote)


def test_steps_cost_nothing_where_no_checker_says_any() -> None:
    samples = outputs(steps=())
    for found, _ in exchanged(samples, lambda _: True):
        assert found == samples


def test_where_all_is_shared_all_is_equal() -> None:
    samples = outputs()
    for found, _ in exchanged(samples, lambda _: True):
        assert found == samples


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        ("x" * 64, "x" * 64),
        ("x" * 65, "x" * 64),
        ("x" * 63 + "é", "x" * 63),  # whole characters
        ("中" * 40, "中" * 21),
        ("", ""),
    ],
)
def test_a_reason_is_told_as_far_as_it_fits(reason: str, told: str) -> None:
    for process, (found, _) in enumerate(exchanged(outputs(reason=reason))):
        for number, one in enumerate(found):
            assert one.reason == (reason if number // GROUP in OWNED[process] else told)


@settings(max_examples=30)
@given(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=80),
    st.lists(st.floats(allow_nan=False), min_size=TOTAL, max_size=TOTAL),
)
def test_any_reason_and_any_entropy(reason: str, numbers: list[float]) -> None:
    results = exchanged(outputs(reason=reason), numbers=dict(enumerate(numbers)))
    for process, (found, of_all) in enumerate(results):
        assert of_all.tolist() == numbers
        for number, one in enumerate(found):
            if number // GROUP not in OWNED[process]:
                assert reason.startswith(one.reason)
                assert len(reason.encode()) - len(one.reason.encode()) in range(
                    max(0, len(reason.encode()) - 64), max(4, len(reason.encode()) - 60)
                )


def test_alone_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(values: np.ndarray) -> np.ndarray:
        raise AssertionError("there is nobody to tell")

    monkeypatch.setattr(exchange, "gather", fail)
    samples = outputs()
    found, of_all = exchange.gather_samples(
        dict(enumerate(samples)),
        dict(enumerate(entropies())),
        QUESTIONS,
        step=STEP,
        num_samples=GROUP,
        rows=ROWS,
        mesh=sampling().mesh,
        width=WIDTH,
        shares=None,
        tokenizer=sampling().tokenizer,
    )
    assert found == samples
    assert of_all.tolist() == entropies()
