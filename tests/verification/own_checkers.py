"""Checkers as a user writes them, for test_functions.py."""

from __future__ import annotations

from typing import Any

from rft_jax.types import Judgement, Verdict

examples = [
    {"question": "2 + 2?", "reference": [4, "four"], "output": "so it is 4", "expected": "correct"},
    {"reference": [4], "output": "so it is 5", "expected": "incorrect"},
]
"""Of one_of."""


def one_of(question: str, reference: list[Any], output: str, **fields: Any) -> tuple[bool, str]:
    """The last word is one of the references."""
    word = output.split()[-1]
    return word in [str(one) for one in reference], word


def tests_passed(output: str, tests: list[str], question: str, reference: object) -> float:
    """The share of a column's texts that the output holds."""
    return sum(test in output for test in tests) / len(tests)


def everything(question: str, reference: object, output: str, **fields: object) -> float:
    """Shows all that it is given."""
    raise ValueError(f"{question}|{reference}|{output}|{sorted(fields.items())}")


def number(question: str, reference: str, output: str) -> tuple[bool, str | None]:
    """Numbers are equal by their value; what is none is no answer."""
    word = output.split()[-1]
    try:
        return float(word) == float(reference), word
    except ValueError:
        return False, None


def short(question: str, reference: object, output: str) -> float:
    """Half a reward for a long output."""
    return 1.0 if len(output) < 10 else 0.5


def unsure(question: str, reference: object, output: str) -> Verdict:
    """Never knows."""
    return Verdict.UNDECIDED


def reasoned(question: str, reference: str, output: str) -> Judgement:
    """Says why."""
    verdict = Verdict.CORRECT if output == reference else Verdict.INCORRECT
    return Judgement(verdict, "failed to say so", answer=output, reward=0.25)


def every_character(question: str, reference: int, output: str) -> Judgement:
    """Each of its characters is a step."""
    steps = [(end, end / 8 - 3) for end in range(1, len(output) + 1)]
    return Judgement(Verdict.CORRECT, "each", answer="a", reward=0.5, steps=steps)


def stepped(question: str, reference: Any, output: str) -> Any:
    """The reference's steps, as they stand there."""
    judgement = Judgement(Verdict.CORRECT, "so")
    object.__setattr__(judgement, "steps", reference)
    return judgement
