r"""What is written in digits, dashes and words and is no arithmetic.

| literal  | notations                                       | same as                            |
|----------|-------------------------------------------------|------------------------------------|
| date     | `2024-03-09`, `March 9, 2024`, `9th of March`   | the same day, the year where given |
| time     | `3:45 PM`, `3 p.m.`                             | `15:45`; `3 PM` also 3             |
| -, /, .  | `5-3`, `555-1234`, `3/9/2024`, `1.2.3`          | the same numbers in that order     |
| to       | `3 to 4`                                        | also `3-4` and `3:4`               |
| cycle    | `(1\,2\,3)(4\,5)`                               | the same permutation               |
| based    | `1010 base 2`                                   | `1010_2`, but not 1010             |
| index    | `1010_2`                                        | also 1010                          |
| measure  | `2 hours and 30 minutes`                        | as much in other units of the list |
| a choice | `C. 14`, `\textbf{(C)}\ 14`, `Option C`         | its letter, and what it says       |
"""

from __future__ import annotations

import calendar
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from rft_jax.verification.exact.algebra import Expression
from rft_jax.verification.exact.notation import BASES, flat


@dataclass(slots=True, frozen=True)
class Literal(Expression):
    """`parts` say all of it; a range may stand for a ratio and for a sequence of two."""

    kind: str
    parts: tuple[Any, ...]


@dataclass(slots=True)
class Choice(Expression):
    """An option's letter, and what it says where that is written too."""

    letter: str
    says: Expression | None


_MONTH = r"(?P<month>[A-Za-z]{3,9})\.?"
_DAY, _YEAR = r"(?P<day>[0-3]?[0-9])(?:st|nd|rd|th)?", r"(?P<year>[0-9]{4})"
_DATES = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"{_MONTH} {_DAY}(?:,? {_YEAR})?",
        rf"(?:the )?{_DAY} (?:of )?{_MONTH}(?:,? {_YEAR})?",
        rf"{_MONTH},? {_YEAR}",
        r"(?P<year>[0-9]{4})-(?P<number>[01]?[0-9])-(?P<day>[0-3]?[0-9])",
    )
)
_TIME = re.compile(r"(1?[0-9])(?::([0-5][0-9]))? ?([ap])\.? ?m\.?", re.IGNORECASE)
_SEQUENCE = re.compile(r"[0-9]+(?:(?:-[0-9]+)+|(?:/[0-9]+){2,}|(?:\.[0-9]+){2,})")
_RANGE = re.compile(r"(?:from )?([0-9]+(?:\.[0-9]+)?) (?:to|through) ([0-9]+(?:\.[0-9]+)?)")
_BASE = re.compile(r"\(?(-?[0-9]+(?:\.[0-9]+)?)\)?,? \(?(?:in )?base ([0-9]+|[a-z]+)\)?")
_CYCLES = re.compile(r"(?:\( ?[0-9]+(?: [0-9]+)+ ?\) ?)+")
_UNIT_VALUES = {
    unit: (dimension, factor)
    for dimension, units in {
        "time": {"second sec s": 1, "minute min": 60, "hour hr h": 3600, "day": 86400,
                 "week": 604800},
        "calendar": {"month": 1, "year yr": 12},
        "length": {"inch inche in": 1, "foot feet ft": 12, "yard yd": 36, "mile mi": 63360},
        "metres": {"mm millimeter": 1, "cm centimeter": 10, "m meter": 1000, "km kilometer": 10**6},
        "mass": {"ounce oz": 1, "pound lb": 16},
        "grams": {"mg milligram": 1, "g gram": 1000, "kg kilogram": 10**6},
        "money": {"cent": 1, "dollar": 100},
    }.items()
    for names, factor in units.items()
    for unit in names.split()
}  # fmt: skip
_PART = r"([0-9]+(?:\.[0-9]+)?)(?: ([0-9]+)/([0-9]+))?[ -]?([A-Za-z]+)\.?"
_MEASURE = re.compile(rf"{_PART}(?:(?:,? and |, | ){_PART})*")
_CHOOSING = re.compile(
    r"(?:\$|\\[a-z]+\s*\{|\s)*(?:[Oo]ption|[Cc]hoice|OPTION|\(?[A-J]\s*\}?(?:[.):]|$))"
)
_FORMULA = re.compile(r"[=\[<>|]|(?<![0-9])\\[dt]?frac|\\(?:sqrt|begin|left|pi|infty|cup|le|ge|\{)")
_CHOICE = re.compile(
    r"((?:[Oo]ption|[Cc]hoice|OPTION) ?)?\(?(?P<letter>[A-J])(?:[.):]+|(?(1)|(?!)))"
    r"(?: ?(?P<says>(?<= )[^+*/^=<>,;:)\s].*|(?<=\))[0-9$].*))?"
)


def literal_of(text: str, read: Callable[[str], Expression | None]) -> Expression | None:
    """The literal a whole text is, or None; `read` reads what a choice says."""
    choosing = _CHOOSING.match(text)
    if not choosing and _FORMULA.search(text):
        return None  # as most of LaTeX
    text = flat(text).strip("$ ").replace("--", "-")
    if choosing and (choice := _CHOICE.fullmatch(text)):
        if (says := choice["says"]) is None:
            return Choice(choice["letter"], None)
        return None if _CHOOSING.match(says) else Choice(choice["letter"], read(says))
    text = text.removesuffix(".")
    if text[:1] == "(":
        return _in_digits(text)
    return _date(text) or _time(text) or _in_digits(text) or measure_of(text, least=2)


def measure_of(text: str, least: int = 1) -> Literal | None:
    """A quantity in units of the list, of at least so many parts, in the smallest unit of each."""
    text = flat(text)
    if not _MEASURE.fullmatch(text):
        return None
    totals: dict[str, Fraction] = {}
    parts = re.findall(_PART, text)
    for number, over, under, unit in parts:
        name = unit if unit in _UNIT_VALUES else unit.casefold().removesuffix("s")
        if name not in _UNIT_VALUES or (under and not int(under)):
            return None
        dimension, factor = _UNIT_VALUES[name]
        value = Fraction(number) + (Fraction(int(over), int(under)) if under else 0)
        totals[dimension] = totals.get(dimension, Fraction(0)) + value * factor
    return Literal("measure", tuple(sorted(totals.items()))) if len(parts) >= least else None


def _in_digits(text: str) -> Literal | None:
    if _SEQUENCE.fullmatch(text):
        mark = re.findall("[-/.]", text)[0]
        return Literal(mark, tuple(map(int, text.split(mark))))
    if bounds := _RANGE.fullmatch(text):
        return Literal("to", tuple(map(Fraction, bounds.groups())))
    if based := _BASE.fullmatch(text):
        base = BASES.get(based[2], based[2])
        return Literal("based", (Fraction(based[1]), base))
    if not _CYCLES.fullmatch(text):
        return None
    cycles = []
    for inner in re.findall(r"[0-9 ]+", text.replace(") (", ")(")):
        cycle = list(map(int, inner.split()))
        first = cycle.index(min(cycle))
        cycles.append(tuple(cycle[first:] + cycle[:first]))
    return Literal("cycle", tuple(sorted(cycles)))


def _date(text: str) -> Literal | None:
    for pattern in _DATES:
        if match := pattern.fullmatch(text):
            said = match.groupdict()
            numbers = [
                int(said[name]) if said.get(name) else 0 for name in ("year", "number", "day")
            ]
            if name := (said.get("month") or "").casefold():
                months = [month.casefold().startswith(name) for month in calendar.month_name]
                if True not in months:
                    return None
                numbers[1] = months.index(True)
            return Literal("date", tuple(numbers))
    return None


def _time(text: str) -> Literal | None:
    """Hour and minute of the day."""
    match = _TIME.fullmatch(text)
    if match is None or not 1 <= int(match[1]) <= 12:
        return None
    return Literal("time", (int(match[1]) % 12 + 12 * (match[3] in "pP"), int(match[2] or 0)))
