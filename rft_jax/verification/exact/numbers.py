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
_GROUPED = r"[1-9][0-9]{0,2}(?:(?:,[0-9]{3})+|(?: [0-9]{3})+)(?![0-9,])|[0-9]+"
_CURRENCY = r"(?:US)?\\?\$|[€£¥₹]"
_NUMBER = re.compile(
    rf"(?P<sign>[+\-])?(?:(?P<currency>{_CURRENCY})[ ]?)?(?P<inner_sign>[+\-])?"
    rf"(?:(?P<whole>{_GROUPED})"
    rf"(?:\.(?P<decimals>[0-9]*)|[ ]?/[ ]?(?P<denominator>{_GROUPED})"
    rf"|[ ](?P<part>[0-9]+)/(?P<parts>[0-9]+))?"
    rf"|\.(?P<only_decimals>[0-9]+))"
    rf"(?:(?P<percent>[ ]?\\?%|[ ]?per[ ]?cent)"
    rf"|[ ](?P<scale>hundred|thousand|million|billion|trillion)(?![A-Za-z]))?"
    rf"(?P<unit>.*)"
)
_SCALES = {
    "hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12,
}  # fmt: skip

# A unit: up to six words, each with a power; `/` and hyphens may join words (km/h, foot-pounds).
_WORD = r"(?:[A-Za-zµΩ°]+(?:['’\-][A-Za-z]+)*\.?)"
_POWER = r"(?:\^?\{?[23]\}?|[²³])"
_UNIT = re.compile(
    rf"[ \-]?{_WORD}{_POWER}?(?:(?:[ ]|[ ]?/[ ]?){_WORD}{_POWER}?){{0,5}}|[ ]?(?:\\?\$|[€£¥₹¢°])"
)


def words(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


# Units that may touch their number (5cm); of single letters only these are units (5 m, not 5 x).
_ATTACHED = words(
    "km cm mm nm mi ft in yd kg mg lb lbs oz ml mL cL dL hr hrs min mins sec secs ms mph kph kmh "
    "am pm AM PM °C °F ° USD EUR cents dollars"
)
_LETTERS = words("m g s h L l N W V J A C F K")
# Words that state another number, an alternative or a denial: what they follow is no plain number.
NUMBER_WORDS = words(
    "zero two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety "
    "hundred thousand million billion trillion dozen half halves third thirds fourths fifths "
    "sixths sevenths eighths ninths tenths hundredths thousandths"
)
_NO_UNITS = NUMBER_WORDS | words(
    "or nor not no maybe perhaps approximately about plus minus times over divided multiplied "
    "squared cubed factorial mod modulo choose point negative positive e pi i sqrt sin cos tan log "
    "ln exp infinity inf nan wrong incorrect false unknown"
)

_SIGNS = {ord(sign): "-" for sign in "−‐‑–﹣－"} | {ord("＋"): "+"}
_SPACES = {ord(space): " " for space in "\t\u00a0\u2009\u202f"}
_PLAIN = _SIGNS | _SPACES
_REPEATING = re.compile(r"([-−]?)([0-9]{0,40})\.([0-9]{0,40})\\overline\s?\{([0-9]{1,40})\}")
_BLANKS = re.compile(r"[ \t]+")
_LATEX_SPACE = re.compile(r"\\[,;: ]|~|\\q?quad(?![A-Za-z])")
_LATEX_TEXT = re.compile(r"\\(?:text|textrm|mathrm|mbox|operatorname)\s?\{([^{}]*)\}")
_LATEX_DEGREES = re.compile(r"\^\{?\\circ\}?|\\degree(?![A-Za-z])|\^\{?°\}?")
_LATEX_GROUP = re.compile(r"(?<=[0-9])(?:\{,\}|,\\!) *(?=[0-9]{3})")


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
    match = _NUMBER.fullmatch(_plain(text))
    if match is None:
        return None
    groups = match.groupdict()
    sign, inner_sign, percent = groups["sign"], groups["inner_sign"], bool(groups["percent"])
    if (sign or not groups["currency"]) and inner_sign:
        return None
    if not _is_unit(groups["unit"], with_percent=percent, with_currency=bool(groups["currency"])):
        return None
    if groups["currency"] and percent:
        return None
    value = _value(groups)
    if value is None:
        return None
    return Number(-value if (sign or inner_sign) == "-" else value, percent)


def _plain(text: str) -> str:
    """One spelling for signs and spaces, and for what LaTeX has around a number."""
    if not text.isascii():
        text = text.translate(_PLAIN)
    if "\\" in text or "{" in text:
        text = _LATEX_GROUP.sub(",", text)
        text = _LATEX_DEGREES.sub("°", text)
        text = _LATEX_SPACE.sub(" ", text)
        text = _LATEX_TEXT.sub(r" \1", text).replace("\\!", "")
    if "  " in text or "\t" in text:
        text = _BLANKS.sub(" ", text)
    return text.strip()


def _ungrouped(digits: str) -> str:
    return digits.replace(",", "").replace(" ", "")


def _repeating(sign: str, whole: str, decimals: str, period: str) -> Fraction:
    """0.1666... written as 0.1 and the period 6."""
    value = int((whole + decimals) or "0") + Fraction(int(period), 10 ** len(period) - 1)
    return (-value if sign else value) / 10 ** len(decimals)


def _value(groups: dict[str, str | None]) -> Fraction | None:
    """The magnitude, or None where a denominator is zero or a mixed number's part is no part."""
    whole = _ungrouped(groups["whole"] or "")
    decimals = groups["only_decimals"] or groups["decimals"] or ""
    value = Fraction(int(whole + decimals), 10 ** len(decimals))
    if groups["denominator"]:
        divisor = int(_ungrouped(groups["denominator"]))
        if divisor == 0:
            return None
        value /= divisor
    if groups["part"] and groups["parts"]:
        part, parts = int(groups["part"]), int(groups["parts"])
        if not 0 < part < parts:
            return None
        value += Fraction(part, parts)
    return value * _SCALES[groups["scale"]] if groups["scale"] else value


def _is_unit(text: str | None, *, with_percent: bool, with_currency: bool) -> bool:
    """Whether what follows the digits says only what they count."""
    if not text or text == ".":
        return True
    text = text.removesuffix(".")
    if with_percent:
        text = text if text.startswith(" ") else ""  # `50% of it`, not `50%x`
    match = _UNIT.fullmatch(text)
    if match is None:
        return False
    symbol = text.strip(" \\")
    if symbol in ("$", "€", "£", "¥", "₹", "¢"):
        return not with_currency
    parts = re.findall(r"[A-Za-zµΩ°]+", text)
    if not text.startswith((" ", "-")) and parts[0] not in _ATTACHED:
        return False
    return all(
        (len(word) > 1 or word in _LETTERS or word in ("a", "°")) and word.lower() not in _NO_UNITS
        for word in parts
    )
