"""Exact numbers as people write them: rationals with signs, separators, currency and units.

Nothing is a float and nothing is rounded. `docs/verification.md` has the table of notations, each
row a test. Anything longer than `MAX_CHARACTERS` is refused, so numbers stay small whatever a
model writes, and every pattern here is linear in the text.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from rft_jax.verification.exact.notation import flat
from rft_jax.verification.exact.units import is_unit

MAX_CHARACTERS = 1000
"""Longest number read, with its unit; GSM8K's longest has 11 characters."""


class Number(NamedTuple):
    """An exact number; equal numbers compare and hash equal. 50% is (50, True)."""

    value: Fraction
    percent: bool


def equal(first: Number, second: Number) -> bool:
    """Whether two numbers are the same.

    A percent sign is either a unit or a factor, and a question does not say which: 50% is equal to
    50 and to 1/2 (and to no percentage but 50%). Two numbers without it are equal only if the same.
    """
    if first.percent == second.percent:
        return first.value == second.value
    percent, bare = (first, second) if first.percent else (second, first)
    return bare.value in (percent.value, percent.value / 100)


# ASCII digits only, by intention: \d also takes those of other scripts.
_GROUPED = r"[1-9][0-9]{0,2}(?:(?:,[0-9]{3})+|(?: [0-9]{3})+|(?:['’][0-9]{3})+)(?![0-9,])|[0-9]+"
_CURRENCY = (
    r"(?:US|CA|AU|A|C|HK|NZ|S|R)?\\?\$|[€£¥₹₽₩₪₺฿]|\\(?:pounds|euro)|Rs\.?"
    r"|(?:USD|EUR|GBP|INR|CNY|RMB|JPY|CAD|AUD|CHF)(?= )"
)
_NUMBER = re.compile(
    rf"(?P<sign>[+\-])?(?:(?P<currency>{_CURRENCY})[ ]?)?(?P<inner_sign>[+\-])?"
    rf"(?:(?P<whole>{_GROUPED})"
    rf"(?:\.(?P<decimals>[0-9]*)|[ ]?/[ ]?(?P<denominator>{_GROUPED})"
    rf"|[ ](?P<part>[0-9]+)/(?P<parts>[0-9]+))?"
    rf"|\.(?P<only_decimals>[0-9]+))"
    rf"(?:(?P<percent>[ ]?\\?%|[ ]?per[ ]?cent)"
    rf"|[ ](?P<scale>hundred|thousand|lakh|million|mn|crore|billion|bn|trillion)(?![A-Za-z]))?"
    rf"(?P<unit>.*)"
)
_FORMULAS = ("\\frac", "\\sqrt", "\\left", "\\begin", "\\{", "(", "[", "x", "{")
"""What no number begins with: quick for most of LaTeX."""
_SCALES = {
    "hundred": 10**2, "thousand": 10**3, "lakh": 10**5, "million": 10**6, "mn": 10**6,
    "crore": 10**7, "billion": 10**9, "bn": 10**9, "trillion": 10**12,
}  # fmt: skip
_SIGNS_OF_CURRENCY = re.compile(r"[ ]?(?:\\?\$|[€£¥₹₽₩¢°])\.?")
_NO_SEPARATORS = {ord(mark): None for mark in ", '’"}
_REPEATING = re.compile(r"([-−]?)([0-9]{0,40})\.([0-9]{0,40})\\overline\s?\{([0-9]{1,40})\}")


@lru_cache(maxsize=4096)
def parse_number(text: str) -> Number | None:
    """The number that is the whole of `text` but for white space around it, or None."""
    if len(text) > MAX_CHARACTERS:
        return None
    text = text.strip()
    if text.isascii() and text.isdigit():
        return Number(Fraction(int(text)), percent=False)
    if "overline" in text and (repeating := _REPEATING.fullmatch(text)):
        return Number(_repeating(*repeating.groups()), percent=False)
    match = None if text.startswith(_FORMULAS) else _NUMBER.fullmatch(flat(text))
    if match is None:
        return None
    groups = match.groupdict()
    sign, inner_sign, percent = groups["sign"], groups["inner_sign"], bool(groups["percent"])
    if (sign or not groups["currency"]) and inner_sign:
        return None
    if groups["currency"] and percent:
        return None
    if not _is_unit(groups["unit"], with_percent=percent, with_currency=bool(groups["currency"])):
        return None
    value = _value(groups)
    if value is None:
        return None
    return Number(-value if (sign or inner_sign) == "-" else value, percent)


def _repeating(sign: str, whole: str, decimals: str, period: str) -> Fraction:
    """0.1666... written as 0.1 and the period 6."""
    value = int((whole + decimals) or "0") + Fraction(int(period), 10 ** len(period) - 1)
    return (-value if sign else value) / 10 ** len(decimals)


def _value(groups: dict[str, str | None]) -> Fraction | None:
    """The magnitude, or None where a denominator is zero or a mixed number's part is no part."""
    whole = (groups["whole"] or "").translate(_NO_SEPARATORS)
    decimals = groups["only_decimals"] or groups["decimals"] or ""
    value = Fraction(int(whole + decimals), 10 ** len(decimals))
    if groups["denominator"]:
        divisor = int(groups["denominator"].translate(_NO_SEPARATORS))
        if divisor == 0:
            return None
        value /= divisor
    if groups["part"] and groups["parts"]:
        part, parts = int(groups["part"]), int(groups["parts"])
        if not 0 < part < parts:
            return None
        value += Fraction(part, parts)
    return value * _SCALES[groups["scale"]] if groups["scale"] else value


def _is_unit(text: str, *, with_percent: bool, with_currency: bool) -> bool:
    """Whether what follows the digits says only what they count."""
    if not text or text == ".":
        return True
    if _SIGNS_OF_CURRENCY.fullmatch(text):
        return not with_currency and not with_percent
    apart = text[0] in " -/"
    return (apart or not with_percent) and is_unit(text, attached=not apart)
