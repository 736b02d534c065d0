"""Whether an answer equals a reference: numbers first, then expressions, then math-verify.

Each layer decides or passes on. The first two are exact and take microseconds; `comparison="math"`
adds the third (an optional extra), which is asked only where they cannot decide. The same text is
the same answer even where no layer reads it, unless it is known to state nothing.
"""

from __future__ import annotations

import re
from fractions import Fraction

from rft_jax.types import Judgement, Verdict
from rft_jax.verification import symbolic
from rft_jax.verification.exact.algebra import Expression, Value, integer
from rft_jax.verification.exact.expressions import (
    MAX_CHARACTERS,
    is_undefined,
    parse_expression,
)
from rft_jax.verification.exact.literals import Literal, measure_of
from rft_jax.verification.exact.notation import SPACE, spelled
from rft_jax.verification.exact.numbers import Number, equal, parse_number
from rft_jax.verification.exact.structures import same

NOT_A_NUMBER = "not a number"
BAD_REFERENCE = "reference not understood"
NOT_UNDERSTOOD = "answer not understood"
TWO_ANSWERS = "two answers"
TOO_LARGE = "too large to decide"

_EQUAL = Judgement(Verdict.CORRECT, "equal")
_UNEQUAL = Judgement(Verdict.INCORRECT, "not equal")
_SEPARATORS = re.compile(r"[\s,;]+|\bor\b|\band\b")
_LETTER = re.compile(r"[A-Za-z]")
_OPERATORS = frozenset("+-−*/×÷=·")
_MATHEMATICAL = re.compile(r"[0-9\\^_{}()+*/=<>√π¼-¾⅐-⅞]")

_SIZES = re.compile(r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|textstyle)(?![a-zA-Z])")
_GAPS = re.compile(
    r"(\\[A-Za-z]+)\s+(?=[A-Za-z])|(?<=[A-Za-z])(\s)\s*(?=[A-Za-z])|(?<=[0-9])(\s)\s*(?=[0-9])|\s+"
)


def compare(answer: str, reference: str, *, math: bool, tolerance: Fraction) -> Judgement:
    """The verdict on a stated answer.

    Args:
        answer: what the output states, without what frames it (`extract.unwrapped`).
        reference: a bare answer.
        math: ask math-verify where the exact layers cannot decide; without it such an answer is
            incorrect beside a reference that is understood, and undecided beside one that is not.
        tolerance: largest relative difference of two plain numbers, 0 for none.
    """
    expected, number = parse_number(reference), parse_number(answer)
    if expected is not None and number is not None:
        if _LETTER.search(reference) and _LETTER.search(answer):
            ours, theirs = measure_of(answer), measure_of(reference)
            if ours is not None and theirs is not None and (number == expected) != (ours == theirs):
                return _EQUAL if ours == theirs else _UNEQUAL  # 1 m and 100 cm, 5 m and 5 cm
        return _EQUAL if _within(number, expected, tolerance) else _UNEQUAL
    if expected is not None and not _MATHEMATICAL.search(answer):
        return Judgement(Verdict.INCORRECT, NOT_A_NUMBER)
    if expected is None and answer == reference:
        return _bad_reference() if _is_void(reference) else _EQUAL
    known = parse_expression(reference)
    stated = parse_expression(answer)
    # Notations that only the layer of numbers reads, such as units and periods.
    if known is None and expected is not None and not expected.percent:
        known = parse_expression(str(expected.value))
    if stated is None and number is not None and not number.percent:
        stated = parse_expression(str(number.value))
    decided = None
    if known is not None and stated is not None:
        decided = same(*_alike(stated, answer, known, reference))
    if decided is None and expected is None and _is_same_text(answer, reference):
        return _bad_reference() if _is_void(reference) else _EQUAL
    if not decided and expected is not None and _states_several(answer):
        return Judgement(Verdict.INCORRECT, TWO_ANSWERS)
    if decided is not None:
        return _EQUAL if decided else _UNEQUAL
    if math and not is_undefined(reference):
        return _symbolic(answer, reference, known)
    if known is None and expected is None:
        return _bad_reference()
    return Judgement(Verdict.INCORRECT, NOT_UNDERSTOOD)


def is_equal(first: str, second: str) -> bool:
    """Whether two answers are equal for certain, by the exact layers."""
    return compare(first, second, math=False, tolerance=Fraction(0)) is _EQUAL


def may_be_equal(first: str, second: str) -> bool:
    """False where two answers are unequal for certain, by the exact layers."""
    return compare(first, second, math=False, tolerance=Fraction(0)) is not _UNEQUAL


def _alike(
    stated: Expression, answer: str, known: Expression, reference: str
) -> tuple[Expression, Expression]:
    """Both sides as what the other's kind makes of them."""
    if isinstance(stated, Literal) and stated.kind == "-" and isinstance(known, Value):
        # A reference that is a number says that 20-2 is to be evaluated.
        first, *rest = (int(str(part)) for part in stated.parts)
        stated = integer(first - sum(rest))
    for one, other in ((stated, known), (known, stated)):
        if isinstance(one, Literal) and one.kind == "measure" and isinstance(other, Value):
            return measure_of(answer) or stated, measure_of(reference) or known
    return stated, known


def _symbolic(answer: str, reference: str, known: Expression | None) -> Judgement:
    if symbolic.too_large(answer) or symbolic.too_large(reference):
        return Judgement(Verdict.UNDECIDED, TOO_LARGE)
    decided = symbolic.symbolically_equal(answer, reference)
    if decided is not None:
        return _EQUAL if decided else _UNEQUAL
    if known is None and parse_number(reference) is None:
        own = symbolic.symbolically_equal(reference, reference)
        if own is not True:
            return _bad_reference()
    return Judgement(Verdict.INCORRECT, NOT_UNDERSTOOD)


def _bad_reference() -> Judgement:
    return Judgement(Verdict.UNDECIDED, BAD_REFERENCE)


def _within(number: Number, expected: Number, tolerance: Fraction) -> bool:
    if equal(number, expected):
        return True
    if not tolerance or number.percent != expected.percent:
        return False
    return abs(number.value - expected.value) <= tolerance * abs(expected.value)


def _states_several(answer: str) -> bool:
    """Whether an answer holds several plain numbers, as `5 or 6` and `5, 6` do; `5 + 6` is one."""
    if len(answer) > 200:
        return False
    words = [word for word in _SEPARATORS.split(answer) if word]
    if _OPERATORS.intersection(words):
        return False
    return len(words) > 1 and sum(parse_number(word) is not None for word in words) > 1


def _is_same_text(answer: str, reference: str) -> bool:
    longest = max(len(answer), len(reference))
    return longest <= MAX_CHARACTERS and _squeezed(answer) == _squeezed(reference)


def _squeezed(text: str) -> str:
    """What two texts share when they differ in spaces, sizes and spellings only; a space stays
    between two letters and between two digits."""
    text = _SIZES.sub(" ", SPACE.sub(" ", spelled(text))).replace("\\dfrac", "\\frac")
    return _GAPS.sub(lambda gap: f"{gap[1] or ''}{'' if gap.lastindex is None else ' '}", text)


def _is_void(reference: str) -> bool:
    """Whether a reference states nothing: 1/0, an unclosed brace, or signs alone."""
    if parse_expression(reference) is not None:
        return False
    if not any(character.isalnum() for character in reference):
        return True
    brackets = [sum(map(reference.count, kinds)) for kinds in ("{", "}", "([", ")]")]
    return brackets[0] != brackets[1] or brackets[2] != brackets[3] or is_undefined(reference)
