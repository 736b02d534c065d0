"""The question stream: permutations without end, a position that is a value."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rft_jax.data.stream import Position, epoch_order, take
from rft_jax.errors import CheckpointError

SEEDS = st.integers(0, 2**31 - 1)
SIZES = st.integers(1, 40)


@given(SIZES, SEEDS, st.lists(st.integers(0, 90), max_size=6))
def test_any_split_of_the_takes_gives_the_same_stream(size, seed, counts):
    position, pieces = Position(), []
    for count in counts:
        rows, position = take(size, seed, position, count)
        assert rows.shape == (count,)
        pieces.extend(rows.tolist())
    at_once, end = take(size, seed, Position(), sum(counts))
    assert pieces == at_once.tolist()
    assert position == end


@given(SIZES, SEEDS, st.integers(0, 2**40))
def test_each_epoch_is_a_permutation(size, seed, epoch):
    rows, end = take(size, seed, Position(epoch, 0), size)
    assert sorted(rows.tolist()) == list(range(size))
    assert end == Position(epoch + 1, 0)
    assert rows.tolist() == epoch_order(size, seed, epoch).tolist()


@given(SIZES, SEEDS, st.integers(0, 100), st.integers(0, 100))
def test_a_saved_position_continues_the_stream(size, seed, before, after):
    _, position = take(size, seed, Position(), before)
    restored = Position(**json.loads(json.dumps(asdict(position))))
    whole, _ = take(size, seed, Position(), before + after)
    assert take(size, seed, restored, after)[0].tolist() == whole[before:].tolist()


def test_epochs_and_seeds_differ():
    orders = {tuple(epoch_order(50, seed, epoch)) for seed in range(10) for epoch in range(10)}
    assert len(orders) == 100


def test_the_order_is_fair():
    firsts = np.bincount([epoch_order(5, 7, epoch)[0] for epoch in range(2000)], minlength=5)
    assert firsts.sum() == 2000
    assert (abs(firsts - 400) < 5 * np.sqrt(2000 * 0.2 * 0.8)).all()


def test_the_stream_never_changes():
    """Golden rows, made by this function: a checkpoint must continue under later versions."""
    assert take(8, 3, Position(), 12)[0].tolist() == GOLDEN


@pytest.mark.parametrize("position", [Position(0, 5), Position(2, 9), Position(-1, 0)])
def test_a_position_outside_the_source_is_an_error(position):
    with pytest.raises(
        CheckpointError,
        match=f"question stream: epoch {position.epoch}, index {position.index} does not exist "
        "among 5 questions: the source has changed",
    ):
        take(5, 0, position, 1)


def test_a_negative_count_is_an_error():
    with pytest.raises(CheckpointError, match="a take of -1 questions was asked for: it must be 0"):
        take(5, 0, Position(), -1)


GOLDEN = [6, 1, 5, 2, 7, 4, 3, 0, 7, 3, 5, 6]
