r"""Hunt for verdicts that are wrong: what pays and should not, what should pay and does not.

    python -m benchmarks.verifier_hunt --mutants 200000
    python -m benchmarks.verifier_hunt --pairs 2000

Answers are drawn as values of Python (fractions, tuples, words), changed as values (digits, signs,
orders, words, units), and spelled as text afterwards, so that whether two texts say the same is
known without the verifier: their values are equal or not. Every value is spelled twice (both must
be accepted) and its change once (it must not be); then words that change a number, alternatives
beside an answer and edits of single characters are tried. `--pairs` compares every two of so many
answers of other texts, and lists those that are called equal though their values differ.

A change that the documentation calls equal (50% and 0.5, units, the base of digits, a pair and an
open interval, a word's capitals) is counted apart, as a convention.
"""

from __future__ import annotations

import argparse
import itertools
import random
import re
import sys
from collections import Counter, defaultdict
from fractions import Fraction
from functools import cache
from typing import Any
from unittest import mock

from benchmarks.answers import KINDS, Chance, Value, listed
from rft_jax.types import Verdict
from rft_jax.verification import compare
from rft_jax.verification.rules import Comparison, VerifierSpec, load_verifier

UNITS = listed("cm km apples dollars degrees hours points people kg m/s")
CHANGING = [
    *listed(
    "bn K M k lakh crore tens dozen dozens score gross hundred million halved doubled squared "
    "cubed thirds fifths hundredths twelfths factorial negative less more wrong ish odd x y pi"
    ),
    "and a quarter", "and a half", "or more", "or so", "choose two", "point five", "below zero",
    "is wrong", "plus one", "mod 5", "divided by two", "to the third", "over two", "times ten",
    "remainder 3", "or 13", "percent less", "and change", "per mille", "at most", "or thirteen",
]  # fmt: skip
ALTERNATIVES = (
    " or {}", ", or ${}$", ". Or it may be {}.", " (or {})", "~or~{}", "; {}", ", or possibly {}",
    r"\quad\text{{or}}\quad {}", ", possibly {}", " or maybe {}", " (alternatively {})", " and {}",
)  # fmt: skip


class Found:
    """Counts of what was tried, and examples of what was judged otherwise."""

    def __init__(self, comparison: Comparison) -> None:
        self.tried: Counter[str] = Counter()
        self.wrong: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
        self._rules = {
            name: load_verifier(VerifierSpec(name, comparison)) for name in ("auto", "tagged")
        }

    def tell(
        self, what: str, reference: str, output: str, expected: bool, rule: str = "auto"
    ) -> None:
        """Judge one output."""
        self.tried[what] += 1
        judged = self._rules[rule](reference, output)
        assert not isinstance(judged, bool)
        if (judged.verdict is Verdict.CORRECT) is not expected:
            self.wrong[what].append((reference, output))


def hunt(mutants: int, chance: Chance, found: Found) -> None:
    """Try so many changes of value, and twice as many spellings of values as they are."""
    names = list(KINDS)
    for number in range(mutants):
        name = names[number % len(names)]
        kind = KINDS[name]
        value = kind.draw(chance)
        reference = kind.spell(value, chance)
        changed = kind.change(value, chance)
        found.tell(f"{name}: spelled otherwise", reference, boxed(kind.spell(value, chance)), True)
        if changed != value:
            found.tell(
                f"{name}: another value", reference, boxed(kind.spell(changed, chance)), False
            )
        if number % 4 == 0:
            _around(name, reference, kind.spell(changed, chance), changed != value, chance, found)
        if number % 8 == 1:
            _numbers(chance, found)


def boxed(text: str) -> str:
    """An output that states an answer."""
    return rf"so $\boxed{{{text}}}$."


def _around(
    name: str, reference: str, other: str, differs: bool, chance: Chance, found: Found
) -> None:
    """The right answer with another one beside it."""
    if not differs or name in ("word", "measure", "date", "clock", "system", "list"):
        return
    more = chance.choice(ALTERNATIVES).format(other)
    if other.startswith(("\\begin", "x", "[", "(", "\\left", "\\langle", "{")):
        return  # a formula in a text is told apart only as $...$
    found.tell("alternative beside the box", reference, rf"\boxed{{{reference}}}{more}", False)
    output = f"<answer>{reference}</answer>{more}"
    found.tell("alternative beside the tag", reference, output, False, "tagged")


def _numbers(chance: Chance, found: Found) -> None:
    """Numbers with words, with units, and with one character edited."""
    number = chance.randint(2, 999)
    word = chance.choice(CHANGING)
    forms = (r"\boxed{{{} {}}}", r"\boxed{{{}\text{{ {}}}}}", "#### {} {}", "#### ${} {}")
    found.tell(
        "number and a changing word", str(number), chance.choice(forms).format(number, word), False
    )
    unit = chance.choice(UNITS)
    found.tell(
        "number and a unit", str(number), chance.choice(forms[:3]).format(number, unit), True
    )
    text = str(
        chance.choice((number, f"{number:,}", f"{number * 1009:,}", f"-{number}", f"{number}.5"))
    )
    at = chance.randrange(len(text))
    edited = (
        text[:at] + chance.choice(("", *"0123456789.,-/x!^%")) + text[at + chance.randint(0, 1) :]
    )
    known = _plain(edited)
    if known is None or known != _plain(text):
        found.tell("one character edited", text, f"#### {edited}", False)


def _plain(text: str) -> Fraction | None:
    """The value of a plain number or a difference of two, by Python's own reader."""
    if re.fullmatch(r"\d+-\d+", text):
        first, second = text.split("-")
        return Fraction(int(first) - int(second))
    if not re.fullmatch(r"-?(?:\d+|\d{1,3}(?:,\d{3})+)(?:\.\d+)?|-?\d+/[1-9]\d*", text):
        return None
    return Fraction(text.replace(",", ""))


def every_pair(count: int, chance: Chance, found: Found) -> None:
    """Compare every two of so many answers of other texts; equal ones must have equal values."""
    answers: dict[str, tuple[str, Value]] = {}
    for name in itertools.cycle(KINDS):  # a kind of few texts leaves its place to others
        if len(answers) == count:
            break
        value = KINDS[name].draw(chance)
        answers.setdefault(KINDS[name].spell(value, chance), (name, value))
    rows = list(answers.items())
    # Each is read once, and compared with all others.
    names = ["parse_number", "parse_expression", "measure_of", "_squeezed", "_states_several"]
    readers: dict[str, Any] = {name: cache(getattr(compare, name)) for name in names}
    with mock.patch.multiple(compare, **readers):
        for at, (reference, (name, value)) in enumerate(rows):
            for text, (other, second) in rows[at + 1 :]:
                same = name == other and value == second
                what = f"{name}: equal values" if same else f"{name} and {other}: other values"
                found.tried[what] += 1
                if compare.is_equal(text, reference) is not same:
                    found.wrong[what].append((reference, text))


def main() -> int:
    """Print what was tried and what was judged otherwise; 1 where anything was."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--mutants", type=int, default=0)
    parser.add_argument("--pairs", type=int, default=0)
    parser.add_argument("--comparison", choices=("exact", "math"), default="exact")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", type=int, default=5, help="examples of a row")
    arguments = parser.parse_args()
    chance, found = random.Random(arguments.seed), Found(arguments.comparison)
    hunt(arguments.mutants, chance, found)
    if arguments.pairs:
        every_pair(arguments.pairs, chance, found)
    for what, count in sorted(found.tried.items()):
        wrong = found.wrong.get(what, [])
        if wrong or arguments.mutants:
            print(f"{what}: {count:,} tried, {len(wrong):,} judged otherwise")
        for reference, output in wrong[: arguments.show]:
            print(f"    {reference!r}  {output!r}")
    total = sum(map(len, found.wrong.values()))
    print(f"{sum(found.tried.values()):,} tried, {total:,} judged otherwise")
    return 1 if total else 0


if __name__ == "__main__":
    sys.exit(main())
