"""When a checkpoint is due, and which stay."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rft_jax.checkpoint.clock import SaveClock, kept
from rft_jax.config import CheckpointConfig

STEPS = st.lists(st.integers(1, 50), min_size=1, unique=True)


def saved_at(config: CheckpointConfig, seconds_a_step: list[float]) -> list[int]:
    """Steps after which a run whose steps take so long saves."""
    now = 1000.0
    clock = SaveClock(config, len(seconds_a_step), now)
    found = []
    for step, seconds in enumerate(seconds_a_step, start=1):
        now += seconds
        if clock.due(step, now):
            clock = clock.saved(now)
            found.append(step)
    return found


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (CheckpointConfig(every_steps=3), [3, 6, 9, 10]),
        (CheckpointConfig(every_steps=100), [10]),
        (CheckpointConfig(every_steps=100, every_minutes=1), [3, 6, 9, 10]),
        (CheckpointConfig(every_steps=100, every_minutes=1.5), [4, 8, 10]),
        (CheckpointConfig(every_steps=100, every_minutes=0.1), [*range(1, 11)]),
        # Time counts from the last save, whatever it was for.
        (CheckpointConfig(every_steps=4, every_minutes=1), [3, 4, 7, 8, 10]),
        (CheckpointConfig(every_steps=5, every_minutes=2), [5, 10]),
    ],
)
def test_when_it_is_due(config: CheckpointConfig, expected: list[int]) -> None:
    assert saved_at(config, [25.0] * 10) == expected


def test_a_slow_step_is_saved_at_once() -> None:
    config = CheckpointConfig(every_steps=100, every_minutes=1)
    assert saved_at(config, [1, 1, 600, 1, 1, 1]) == [3, 6]


@pytest.mark.parametrize(
    ("keep", "best", "expected"),
    [(1, 0, {9}), (2, 0, {7, 9}), (1, 1, {5, 9}), (2, 2, {3, 5, 7, 9}), (9, 0, {1, 3, 5, 7, 9})],
)
def test_which_are_kept(keep: int, best: int, expected: set[int]) -> None:
    accuracies = {3: 0.5, 1: 0.25, 5: 0.5}
    config = CheckpointConfig(keep=keep, keep_best=best)
    assert kept([9, 1, 3, 5, 7], accuracies, config) == expected


@given(STEPS, st.dictionaries(st.integers(1, 50), st.sampled_from([0.0, 0.5, 1.0])),
       st.integers(1, 4), st.integers(0, 4))  # fmt: skip
def test_the_newest_and_the_best_always_stay(
    steps: list[int], accuracies: dict[int, float], keep: int, best: int
) -> None:
    found = kept(steps, accuracies, CheckpointConfig(keep=keep, keep_best=best))
    assert found <= set(steps)
    assert set(sorted(steps)[-keep:]) <= found
    judged = {step: accuracies[step] for step in steps if step in accuracies}
    # Nothing that was dropped is better than what was kept as one of the best.
    chosen = sorted((judged[step] for step in found & set(judged)), reverse=True)[:best]
    assert len(chosen) == min(best, len(judged))
    assert all(judged[step] <= min(chosen) for step in set(judged) - found if chosen)
    assert len(found) <= keep + best
