"""Which accepted outputs are trained on: dedupe, cap per question. Host side, no device work."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence

from rft_jax.config import SelectionConfig
from rft_jax.types import Sample

_DIGITS = frozenset("0123456789")
_LEFT_SIDE = "".join(sorted(_DIGITS)) + "-+*/(). \t"
"""Characters of an equation's left side; it lies on one line."""
_RIGHT_SIDE = re.compile(r"=[ \t]*-?[0-9.,]*[0-9]")


def text_key(text: str) -> str:
    """Outputs that differ in white space alone are equal."""
    return " ".join(text.split())


def equations(text: str) -> list[str]:
    """Arithmetic that ends in `= NUMBER`, in order, spaces removed.

    Linear in the text's length: one pattern for both sides would be cubic on long runs of digits.
    """
    found: list[str] = []
    end = 0
    for right in _RIGHT_SIDE.finditer(text):
        before = text[end : right.start()]
        left = before[len(before.rstrip(_LEFT_SIDE)) :]
        if not _DIGITS.isdisjoint(left):
            found.append("".join((left + right[0]).split()))
            end = right.end()
    return found


def equations_key(text: str) -> str:
    """The output's equations in order (Yuan et al., arXiv 2308.01825, section 3.3).

    An output without equations is told apart by its text, not thrown together with all others.
    """
    found = equations(text)
    return "equations:" + "|".join(found) if found else "text:" + text_key(text)


KEYS: dict[str, Callable[[str], str]] = {"text": text_key, "equations": equations_key}


def distinct(samples: Sequence[Sample], dedupe: str) -> list[Sample]:
    """The first of each question's samples with equal keys, in order; all of them under "none"."""
    if dedupe == "none":
        return list(samples)
    key = KEYS[dedupe]
    first: dict[tuple[int, str], Sample] = {}
    for sample in samples:
        first.setdefault((sample.question_id, key(sample.text)), sample)
    return list(first.values())


def capped(samples: Sequence[Sample], max_per_question: int) -> list[Sample]:
    """The first `max_per_question` samples of each question, in order; 0 keeps all.

    Samples of a question are exchangeable, so taking the first is a fair choice.
    """
    if not max_per_question:
        return list(samples)
    kept: list[Sample] = []
    counts: dict[int, int] = defaultdict(int)
    for sample in samples:
        counts[sample.question_id] += 1
        if counts[sample.question_id] <= max_per_question:
            kept.append(sample)
    return kept


def select(accepted: Sequence[Sample], config: SelectionConfig) -> tuple[list[Sample], int]:
    """The outputs to train on, and how many were distinct before the cap."""
    unique = distinct(accepted, config.dedupe)
    return capped(unique, config.max_per_question), len(unique)
