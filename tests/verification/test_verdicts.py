"""Outputs and the verdict that each deserves, by what they are about."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from rft_jax.types import Judgement, Verdict
from rft_jax.verification import symbolic
from rft_jax.verification.rules import Comparison, VerifierSpec, load_verifier

ROWS = defaultdict[str, list[dict[str, Any]]](list)
for line in Path(__file__).with_name("verdicts.jsonl").read_text(encoding="utf-8").splitlines():
    row = json.loads(line)
    ROWS[row["about"]].append(row)


def disagreements(rows: list[dict[str, Any]], comparison: Comparison) -> list[object]:
    """Rows whose output is judged otherwise: correct where it is not, or not where it is."""
    rules = {
        name: load_verifier(VerifierSpec(name, comparison)) for name in {r["rule"] for r in rows}
    }
    found = []
    for row in rows:
        judged = rules[row["rule"]](row["reference"], row["output"])
        assert isinstance(judged, Judgement)
        if (judged.verdict is Verdict.CORRECT) is not row["correct"]:
            found.append((row, judged))
    return found


def test_there_are_enough() -> None:
    rows = [row for rows in ROWS.values() for row in rows]
    assert len(rows) > 900
    assert sum(row["correct"] for row in rows) > 400


@pytest.mark.parametrize("about", ROWS)
def test_verdicts(about: str) -> None:
    assert disagreements(ROWS[about], "exact") == []


@pytest.mark.slow
@pytest.mark.skipif(not symbolic.available(), reason="math-verify is not installed")
def test_math_verify_beneath_changes_none() -> None:
    assert disagreements([row for rows in ROWS.values() for row in rows], "math") == []
