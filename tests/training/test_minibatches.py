"""Several updates of a rollout: each part's expectation is the whole's, and parts survive JSON."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from rft_jax.config import Config
from rft_jax.errors import CheckpointError
from rft_jax.training.minibatches import from_json, split, to_json
from rft_jax.training.packing import OutputFacts, TrainingSequence


def settings(minibatches: int, epochs: int) -> Config:
    base = tiny.online_rft(steps=100)
    return replace(base, update=replace(base.update, minibatches=minibatches, epochs=epochs))


def sequences(size: int) -> list[TrainingSequence]:
    return [
        TrainingSequence((1, 2), (n + 3, 0), 0.5 + n, 0.25, (-0.1 * n, -1.0)) for n in range(size)
    ]


@given(st.integers(0, 20), st.integers(1, 5), st.integers(1, 3), st.integers(0, 50))
def test_each_epoch_trains_on_every_output_once(
    size: int, minibatches: int, epochs: int, step: int
) -> None:
    whole = sequences(size)
    parts = split(whole, settings(minibatches, epochs), step)
    per_epoch = min(minibatches, size)
    assert len(parts) == per_epoch * epochs
    for epoch in range(epochs):
        of_epoch = parts[epoch * per_epoch : (epoch + 1) * per_epoch]
        numbers = [one.completion[0] - 3 for part in of_epoch for one in part]
        assert sorted(numbers) == list(range(size))
        assert max(map(len, of_epoch), default=0) - min(map(len, of_epoch), default=0) <= 1
        for part in of_epoch:
            order = [one.completion[0] for one in part]
            assert order == sorted(order)
            for one in part:
                before = whole[one.completion[0] - 3]
                factor = size / len(part)
                assert one.weight == pytest.approx(before.weight * factor)
                assert one.kl_weight == pytest.approx(before.kl_weight * factor)
                assert one.log_probs == before.log_probs


def test_one_update_is_the_rollout_as_it_is() -> None:
    whole = sequences(5)
    assert split(whole, settings(1, 1), 3) == (tuple(whole),)
    assert split([], settings(1, 1), 3) == split([], settings(4, 2), 3) == ()


def test_the_parts_differ_from_rollout_to_rollout_and_from_pass_to_pass() -> None:
    found = [split(sequences(16), settings(2, 2), step) for step in (0, 4)]
    firsts = [tuple(one.completion for one in parts[n]) for parts in found for n in (0, 2)]
    assert len(set(firsts)) == 4
    assert split(sequences(16), settings(2, 2), 4) == found[1]


def test_outputs_of_a_question_stay_together_where_their_coefficients_are_not_known_yet() -> None:
    whole = [
        one._replace(facts=OutputFacts(n // 3, n % 2 == 0, 0.5, True, -1.5 - n, 0.1 * n))
        for n, one in enumerate(sequences(12))
    ]
    parts = split(whole, settings(2, 2), 1)
    assert [len(part) for part in parts] == [6] * 4
    for part in parts:
        groups = Counter(one.facts.question_id for one in part if one.facts)
        assert [*groups.values()] == [3, 3]
        for one in part:
            before = whole[one.completion[0] - 3].facts
            assert before is not None
            assert one.facts == before._replace(share=before.share * 2)
    assert from_json(json.loads(json.dumps(to_json(parts))), source="here") == parts


def test_minibatches_go_through_json_exactly() -> None:
    whole = sequences(7)
    whole[2] = whole[2]._replace(weight=np.array([0.1, -1 / 3]))
    parts = split(whole, settings(3, 2), 1)
    restored = from_json(json.loads(json.dumps(to_json(parts))), source="here")
    assert str(restored) == str(tuple(tuple(one._replace() for one in part) for part in parts))
    assert from_json(None, source="here") == ()


ONE = to_json(split(sequences(1), settings(1, 1), 0))[0][0]


@pytest.mark.parametrize(
    "changes",
    [
        {"completion": []},
        {"completion": [1.5, 0]},
        {"log_probs": [-1.0]},
        {"log_probs": [-1.0, float("nan")]},
        {"weight": float("inf")},
        {"weight": [1.0]},
        {"weight": "1"},
        {"prompt": None},
        {"facts": [0, True, 1.0, True, -1.0]},
        {"facts": [0, True, 1.0, True, float("nan"), 1.0]},
    ],
)
def test_what_is_no_minibatch_is_refused(changes: dict[str, Any]) -> None:
    values = json.loads(json.dumps([[ONE | changes]]))
    with pytest.raises(CheckpointError, match="here: its minibatches are not sequences"):
        from_json(values, source="here")
    for other in (7, [[{"prompt": []}]], {"a": 1}, [[None]]):
        with pytest.raises(CheckpointError, match="here: its minibatches"):
            from_json(other, source="here")
