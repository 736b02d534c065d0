"""What a worker tells: every judgement comes back, and whatever else stands there is harmless."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rft_jax.types import Judgement, Verdict
from rft_jax.verification.board import CRASHED, MAX_STEPS, Board, new_file

SAID = Judgement(Verdict.CORRECT, "so", answer="7", reward=0.25)


@contextlib.contextmanager
def opened() -> Iterator[tuple[Board, Board]]:
    """The worker's side, and the pool's."""
    descriptor = new_file()
    worker, pool = Board(descriptor), Board(descriptor)
    try:
        yield worker, pool
    finally:
        worker.close()
        pool.close()
        os.close(descriptor)


texts = st.text(st.characters(codec="utf-8"), max_size=20)
steps = st.tuples(st.integers(0, 2**32 - 1), st.floats(allow_nan=False, allow_infinity=False))
parts = st.tuples(
    st.sampled_from(Verdict), texts, st.just(False), st.none() | texts, st.none() | st.floats(0, 1),
    st.lists(steps, max_size=9).map(tuple),
)  # fmt: skip


@given(st.lists(parts, min_size=1, max_size=8))
def test_every_judgement_comes_back(of_each: list[Any]) -> None:
    said = [Judgement(*one) for one in of_each]
    with opened() as (worker, pool):
        for number, one in enumerate(said):
            worker.put(number, one, slow=False)
        assert pool.judgements(len(said)) == said


def test_the_most_steps_fit_beside_the_longest_texts() -> None:
    steps = tuple((end, 0.5) for end in range(1, MAX_STEPS + 1))
    said = Judgement(Verdict.INCORRECT, "r" * 496, answer="a" * 496, steps=steps)
    with opened() as (worker, pool):
        worker.put(255, said, slow=False)
        worker.put(254, replace(said, reward=0.5), slow=False)
        assert pool.judgements(256)[254:] == [replace(said, reward=0.5), said]


@pytest.mark.parametrize("reward", [math.nan, math.inf, -math.inf])
def test_a_reward_of_a_step_that_is_no_number_is_of_a_crashed_worker(reward: float) -> None:
    with opened() as (worker, pool):
        worker.put(0, replace(SAID, steps=((1, reward),)), slow=False)
        assert pool.judgements(1) == [CRASHED]


@given(st.binary(min_size=40, max_size=400))
def test_whatever_stands_there_is_read(record: bytes) -> None:
    with opened() as (worker, pool):
        worker.put(0, SAID, slow=False)
        worker._memory[24 : 24 + len(record)] = record
        (found,) = pool.judgements(1)
        assert isinstance(found, Judgement)
