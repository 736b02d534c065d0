"""Pairs of answers labelled by hand from the definitions of the notations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rft_jax.verification.exact.expressions import parse_expression, same

PAIRS = [
    json.loads(line)
    for line in Path(__file__).with_name("labelled.jsonl").read_text(encoding="utf-8").splitlines()
]


def decide(answer: str, reference: str) -> bool | None:
    """The verdict of the exact layer."""
    found, expected = parse_expression(answer), parse_expression(reference)
    return None if found is None or expected is None else same(found, expected)


def test_there_are_enough() -> None:
    assert len(PAIRS) >= 250
    assert sum(pair["equal"] for pair in PAIRS) >= 100
    assert sum(not pair["equal"] for pair in PAIRS) >= 75


@pytest.mark.parametrize(
    ("reference", "answer", "equal", "about"),
    [tuple(pair.values()) for pair in PAIRS],
    ids=[f"{pair['about']}: {pair['reference']} ~ {pair['answer']}" for pair in PAIRS],
)
def test_verdict(reference: str, answer: str, equal: bool, about: str) -> None:
    verdict = decide(answer, reference)
    # What is malformed may be left undecided, which counts as unequal; the rest is decided.
    assert verdict is equal or (verdict is None and about.startswith("malformed"))
    assert decide(reference, answer) is verdict
