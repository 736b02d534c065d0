"""Exact comparison of answers: integers, decimals and fractions as rationals, never as floats.

| notation        | read as             | refused (not a number)                           |
|-----------------|---------------------|--------------------------------------------------|
| `72`, `007`     | integer             | Unicode digits, `1e3`, `0x10`, `1_000`           |
| `-7`, `−7`, `+7`| signed (also U+2212)| `- 7`, `--7`, `+-7`                              |
| `1,080`         | groups of three     | `10,80`, `0,080`, `1,0800`                       |
| `3.50`, `.5`    | decimal (`18.` too) | `.`, `3,5`, `1.2.3`                              |
| `1/2`, `1 / 2`  | fraction            | `1/0`, `1.5/2`, `1/-2`, `1 1/2`                  |
| `$18`, `\\$18`   | currency is dropped | `18$`, `18 dollars`                              |
| `50%`           | percent: equal only to percent | `$5%`                                 |

Anything longer than `MAX_CHARACTERS` is refused, so numbers stay small whatever a model writes.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

MAX_CHARACTERS = 100
"""Longest number read; GSM8K's longest has 11 characters."""

_INTEGER = r"[0-9]+|[1-9][0-9]{0,2}(?:,[0-9]{3})+"
_NUMBER = re.compile(
    rf"(?P<sign>[+\-−])?(?P<currency>\\?\$)?(?P<inner_sign>[+\-−])?"
    rf"(?:(?P<whole>{_INTEGER})(?:\.(?P<decimals>[0-9]*)|[ ]?/[ ]?(?P<denominator>{_INTEGER}))?"
    rf"|\.(?P<only_decimals>[0-9]+))"
    rf"(?P<percent>[ ]?\\?%)?"
)


class Number(NamedTuple):
    """An exact number; equal numbers compare and hash equal. 50% is (50, True)."""

    value: Fraction
    percent: bool


def parse_number(text: str) -> Number | None:
    """The number that is the whole of `text` but for white space around it, or None."""
    text = text.strip()
    if len(text) > MAX_CHARACTERS:
        return None
    match = _NUMBER.fullmatch(text)
    if match is None:
        return None
    sign, currency, inner_sign, whole, decimals, denominator, only_decimals, percent = (
        match.groups()
    )
    if (sign and inner_sign) or (inner_sign and not currency) or (currency and percent):
        return None
    decimals = only_decimals or decimals or ""
    numerator = int((whole or "").replace(",", "") + decimals)
    divisor = int(denominator.replace(",", "")) if denominator else 10 ** len(decimals)
    if divisor == 0:
        return None
    if (sign or inner_sign or "+") != "+":
        numerator = -numerator
    return Number(Fraction(numerator, divisor), percent is not None)


def equal(answer: str, reference: str) -> bool:
    """Whether both are numbers and the same number; a percent equals only a percent."""
    number = parse_number(answer)
    return number is not None and number == parse_number(reference)
