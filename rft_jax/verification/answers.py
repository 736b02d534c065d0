"""Which answer an output states: the `hash` rule of GSM8K.

The answer is stated once, in its form, at the end: the last `####` is followed on its line by one
number, and after that line comes nothing but white space. There is no fallback to the last number
in the text, which a policy learns to exploit. A `####` before the last that states another number
makes two answers; one that states no number is a heading and does not count.
"""

from __future__ import annotations

import itertools
import re
from typing import NamedTuple

from rft_jax.verification.compare import MAX_CHARACTERS, parse_number

NO_ANSWER = "no answer"
TWO_ANSWERS = "two answers"
NOT_A_NUMBER = "not a number"
TEXT_AFTER_ANSWER = "text after answer"

# Runs of four or more, so that a run of five is seen whole and is not taken for a marker.
_HASHES = re.compile(r"####+")
_BETWEEN_ANSWERS = re.compile(r"[\s,;]+")


class AnswerError(ValueError):
    """A reference states no answer."""


class Answer(NamedTuple):
    """What an output states: `text` is a number that `parse_number` reads, or None for `reason`."""

    text: str | None
    reason: str


def hash_answer(text: str) -> Answer:
    """The number after the last `####`, or why there is none (see the module's text)."""
    markers = [match.span() for match in _HASHES.finditer(text)]
    markers = [(start, end) for start, end in markers if end - start == 4]
    if not markers:
        return Answer(None, NO_ANSWER)
    line, _, rest = text[markers[-1][1] :].partition("\n")
    line = line.strip()
    if not line:
        return Answer(None, NO_ANSWER)
    number = parse_number(line)
    if number is None:
        words = _BETWEEN_ANSWERS.split(line)
        several = sum(parse_number(word) is not None for word in words) > 1
        return Answer(None, TWO_ANSWERS if several else NOT_A_NUMBER)
    for (_, start), (end, _) in itertools.pairwise(markers):
        earlier = parse_number(text[start:end].partition("\n")[0])
        if earlier is not None and earlier != number:
            return Answer(None, TWO_ANSWERS)
    if rest and not rest.isspace():
        return Answer(None, TEXT_AFTER_ANSWER)
    return Answer(line, "")


def reference_answer(solution_or_bare: str) -> str:
    """The number a reference states: a bare answer (`18`), or a solution that ends in `#### 18`.

    Raises AnswerError when it states none.
    """
    if "####" in solution_or_bare:
        answer, reason = hash_answer(solution_or_bare)
    else:
        answer = solution_or_bare.strip()
        reason = "" if parse_number(answer) else NOT_A_NUMBER
    if answer is None or reason:
        shown = solution_or_bare[-MAX_CHARACTERS:]
        raise AnswerError(
            f"reference {shown!r} states no answer ({reason}): give a number, or a solution whose "
            "last line is `#### NUMBER`."
        )
    return answer
