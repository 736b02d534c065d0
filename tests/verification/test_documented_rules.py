"""Every row of the tables in docs/verification.md."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path

import pytest

from rft_jax.types import Judgement, Verdict
from rft_jax.verification.compare import compare
from rft_jax.verification.rules import VerifierSpec, load_verifier

DOCUMENT = Path(__file__).parents[2] / "docs" / "verification.md"
_ROW = re.compile(
    r"\| (?:(?P<rule>[a-z_]+) \| )?`(?P<reference>[^`]*)` \| `(?P<text>[^`]*)` "
    r"\| (?P<verdict>correct|incorrect|undecided) \| (?P<reason>[^|]+) \|"
)
ROWS = [
    {name: (text or "").replace(" ⏎ ", "\n") for name, text in match.groupdict().items()}
    for match in _ROW.finditer(DOCUMENT.read_text(encoding="utf-8"))
]


def test_the_tables_are_read() -> None:
    assert sum(bool(row["rule"]) for row in ROWS) > 25
    assert sum(not row["rule"] for row in ROWS) > 40


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['reference']!r}-{row['text']!r}")
def test_a_row(row: dict[str, str]) -> None:
    if row["rule"]:
        found = load_verifier(VerifierSpec(row["rule"]))(row["reference"], row["text"])
    else:
        found = compare(row["text"], row["reference"], math=False, tolerance=Fraction(0))
    assert found == Judgement(Verdict(row["verdict"]), row["reason"])
