r"""What an answer can be beyond one value, and when two answers are the same.

| structure  | notations                         | same as                                       |
|------------|-----------------------------------|-----------------------------------------------|
| Percent    | `50%`                             | 50 and 1/2                                    |
| Group      | tuple, set or list, union, matrix | the same kind, part by part; sets in any      |
|            | ratio `7:32`                      | order; a set of one thing is that thing       |
| Interval   | `[a,b)`, and `(a,b)` as a tuple   | the tuple where both ends are open            |
| Equation   | `x=5`, `2x+y=1`                   | with a bare name also the right side;         |
|            |                                   | else left - right up to a constant factor     |
| Inequality | `x>3`, `1<x\le 2`                 | also the interval of its only letter          |
| Member     | `x \in S`                         | also the bare set                             |
| Word       | `\text{Monday}`, `Monday`         | the word in any case                          |
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, cast

from rft_jax.verification.exact.algebra import (
    ONE,
    Expression,
    Sum,
    Unreadable,
    Value,
    as_fraction,
    equal,
    generator,
    integer,
    is_letter,
    names,
    rational,
)
from rft_jax.verification.exact.literals import Choice, Literal

INFINITY = "∞"
"""Generator that only ends of intervals have."""
SETS = frozenset({"∅", "NN", "ZZ", "QQ", "CC"})
r"""Generators that are sets: `\emptyset`, `\mathbb{Z}`."""


@dataclass(slots=True)
class Percent(Expression):
    """A number of percent."""

    value: Value


@dataclass(slots=True)
class Group(Expression):
    """`kind` is tuple, list (`[1,2,3]`), set, union, ratio, or an edge of a matrix and its rows."""

    kind: str
    items: list[Expression]


@dataclass(slots=True)
class Interval(Expression):
    """Not open at both ends when written with brackets: that is a Group, as a pair is."""

    low: Expression
    high: Expression
    has_low: bool
    has_high: bool


@dataclass(slots=True)
class Equation(Expression):
    """`name` is what the left side names (a letter, `f(x)`), or empty; `left` its value if any."""

    name: str
    left: Value | None
    right: Expression


@dataclass(slots=True)
class Inequality(Expression):
    """Each part is a difference that is positive (strict), not negative, or not zero (`!=`)."""

    parts: list[tuple[Value, str]]


@dataclass(slots=True)
class Member(Expression):
    """A name and the set it is in."""

    name: str
    within: Expression


@dataclass(slots=True)
class Word(Expression):
    """Text; `product` is what its letters mean when they are factors, where they may be."""

    text: str
    product: Value | None


def every(verdicts: Iterable[bool | None]) -> bool | None:
    """False where one verdict is, else None where one is."""
    unsure = False
    for verdict in verdicts:
        if verdict is False:
            return False
        unsure = unsure or verdict is None
    return None if unsure else True


def same(answer: Expression, reference: Expression) -> bool | None:
    """Whether two answers are the same; None where this layer cannot decide."""
    try:
        return _same(answer, reference)
    except Unreadable:
        return None


def _same(left: Expression, right: Expression) -> bool | None:
    if isinstance(left, Value) and isinstance(right, Value):
        return equal(left, right)
    for kind, decide in _BY_KIND:
        if isinstance(left, kind):
            return decide(left, right)
        if isinstance(right, kind):
            return decide(right, left)
    return _groups(left, right)


def _percent(percent: Percent, other: Expression) -> bool | None:
    if isinstance(other, Percent):
        return equal(percent.value, other.value)
    if isinstance(other, Value):
        verdicts = {equal(percent.value, other), equal(percent.value / integer(100), other)}
        return True in verdicts or (None if None in verdicts else False)
    if isinstance(other, Equation):
        return _equation(other, percent)
    return _groups(other, percent) if isinstance(other, Group) else False


def _equation(equation: Equation, other: Expression) -> bool | None:
    if not isinstance(other, Equation):
        return _same(equation.right, other) if equation.name else False
    if equation.name and equation.name == other.name:
        return _same(equation.right, other.right)
    first, second = _difference(equation), _difference(other)
    if first is None or second is None:
        called = "(" in equation.name and "(" in other.name
        return None if called or not (equation.name and other.name) else False
    return _proportional(first, second, positive=False)


def _difference(equation: Equation) -> Value | None:
    if equation.left is None or not isinstance(equation.right, Value):
        return None
    return equation.left - equation.right


def _proportional(first: Value, second: Value, *, positive: bool) -> bool | None:
    """Whether first is a constant times second, the constant positive where that is asked for."""
    if first.lower != ONE or second.lower != ONE:
        constant = all(not _letters(Value(value.lower, ONE)) for value in (first, second))
        if not constant:
            return None
        first, second = (Value(value.upper, ONE) for value in (first, second))
        positive_known = all(len(value.lower) == 1 for value in (first, second))
        if positive and not positive_known:
            return None
    if not first.upper or not second.upper:
        return None
    term = min(first.upper, key=str)
    if term in second.upper:
        a, b = first.upper[term], second.upper[term]
        if equal(integer(b) * first, integer(a) * second):
            return (a > 0) == (b > 0) or not positive
    linear = _is_linear(first.upper) and _is_linear(second.upper)
    return False if linear else None


def _is_linear(total: Sum) -> bool:
    return all(sum(exponent for _, exponent in term) <= 1 for term in total) and all(
        is_letter(name) for term in total for name, _ in term
    )


def _letters(value: Value) -> set[str]:
    """The letters that occur, opaque generators included: they may hide some."""
    return {name for name in names(value) if is_letter(name) or name[0] == "#"}


def _member(member: Member, other: Expression) -> bool | None:
    if isinstance(other, Member):
        return _same(member.within, other.within) if member.name == other.name else False
    if isinstance(other, Inequality):
        bounds = _as_interval(other)
        if bounds is None:
            return None
        name, interval = bounds
        return _same(member.within, interval) if name == member.name else False
    return _same(member.within, other)


def _inequality(inequality: Inequality, other: Expression) -> bool | None:
    if isinstance(other, Inequality):
        return _inequalities(inequality, other)
    if isinstance(other, Member):
        return _member(other, inequality)
    if isinstance(other, Interval | Group):
        bounds = _as_interval(inequality)
        return None if bounds is None else _same(bounds[1], other)
    return False


def _inequalities(first: Inequality, second: Inequality) -> bool | None:
    one, other = _as_interval(first), _as_interval(second)
    if one is not None and other is not None:
        return one[0] == other[0] and _same(one[1], other[1])
    if len(first.parts) != len(second.parts):
        return None
    verdicts = [
        kind == other_kind and _proportional(part, other_part, positive=kind != "!=")
        for (part, kind), (other_part, other_kind) in zip(first.parts, second.parts, strict=True)
    ]
    return True if all(verdicts) else None


def joined(items: list[Expression], words: set[str]) -> Expression | None:
    """Inequalities of one letter that all hold, as one; None where they are alternatives.

    `words` stand between them: or, and; only commas join where that leaves something.
    """
    if "or" in words or not all(isinstance(item, Inequality) for item in items):
        return None
    both = Inequality([part for item in cast(list[Inequality], items) for part in item.parts])
    if (bounds := _as_interval(both)) is not None:
        inner: Any = bounds[1]
        ends: list[Any] = inner.items if isinstance(inner, Group) else [inner.low, inner.high]
        low, high = map(as_fraction, ends)
        if low is None or high is None or low < high:
            return both
    if "and" in words and len(set().union(*(_letters(part) for part, _ in both.parts))) == 1:
        raise Unreadable
    return None


def _as_interval(inequality: Inequality) -> tuple[str, Expression] | None:
    """The letter of an inequality and the interval it is in, or None where that is not simple."""
    low: Expression = Value({((INFINITY, 1),): -1}, ONE)
    high: Expression = Value({((INFINITY, 1),): 1}, ONE)
    has_low = has_high = False
    letters = set().union(*(_letters(part) for part, _ in inequality.parts))
    if len(letters) != 1:
        return None
    (letter,) = letters
    if letter[0] == "#" and letter[1:3] not in ("f(", "g(", "h("):
        return None  # |x| < 1 bounds x, which is not |x|
    sides = set()
    for part, kind in inequality.parts:
        slope = part.upper.get(((letter, 1),))
        rest = {term: number for term, number in part.upper.items() if term != ((letter, 1),)}
        constant_below = len(part.lower) == 1 and () in part.lower
        if slope is None or not constant_below or letter in names(Value(rest, ONE)):
            return None
        end = -Value(rest, ONE) / integer(slope)
        if kind == "!=":
            pieces: list[Expression] = [Group("tuple", [low, end]), Group("tuple", [end, high])]
            return (letter, Group("union", pieces)) if len(inequality.parts) == 1 else None
        # The difference is positive where the letter is above the end, if its slope is.
        if (slope > 0) == (part.lower[()] > 0):
            low, has_low = end, kind == ">="
        else:
            high, has_high = end, kind == ">="
        sides.add(slope > 0)
    if len(sides) != len(inequality.parts):
        return None
    return letter, interval_of(low, high, has_low, has_high)


def interval_of(low: Expression, high: Expression, has_low: bool, has_high: bool) -> Expression:
    """An interval; an open one is a pair, which is written the same."""
    if not has_low and not has_high:
        return Group("tuple", [low, high])
    return Interval(low, high, has_low, has_high)


def _interval(interval: Interval, other: Expression) -> bool | None:
    if not isinstance(other, Interval):
        if isinstance(other, Group) and other.kind == "list":
            closed = interval.has_low and interval.has_high and len(other.items) == 2
            return closed and _all_same([interval.low, interval.high], other.items)
        # A union may be written apart, an open interval or a number may not.
        return None if isinstance(other, Group) and other.kind == "union" else False
    if (interval.has_low, interval.has_high) != (other.has_low, other.has_high):
        return False
    return _all_same([interval.low, interval.high], [other.low, other.high])


def _word(word: Word, other: Expression) -> bool | None:
    if isinstance(other, Word):
        return word.text == other.text
    if isinstance(other, Value) and word.product is not None:
        return equal(word.product, other)
    return False


def _literal(literal: Literal, other: Expression) -> bool | None:
    if isinstance(other, Literal):
        alike = {literal.kind, other.kind} in ({"to", "-"}, {"based", "index"})
        return (alike or literal.kind == other.kind) and literal.parts == other.parts
    if literal.kind == "index":
        return _same(rational(literal.parts[0]), other)
    if literal.kind == "time" and isinstance(other, Value):  # 3 PM without its unit
        hours, minutes = literal.parts
        return minutes == 0 and as_fraction(other) == (hours % 12 or 12)
    if literal.kind in ("time", "to") and isinstance(other, Group):
        return _groups(Group("ratio", [rational(Fraction(part)) for part in literal.parts]), other)
    return False


def _choice(choice: Choice, other: Expression) -> bool | None:
    if isinstance(other, Choice):
        if choice.letter != other.letter:
            return False
        return choice.says is None or other.says is None or _same(choice.says, other.says)
    if isinstance(other, Value) and equal(generator(choice.letter), other):
        return True
    return choice.says is not None and _same(choice.says, other)


def _groups(left: Expression, right: Expression) -> bool | None:
    if not isinstance(left, Group):
        left, right = right, left
    if not isinstance(left, Group):
        return False
    if not isinstance(right, Group):
        if left.kind == "set" and len(left.items) == 1:
            return _same(left.items[0], right)
        if isinstance(right, Value):
            return False if SETS.isdisjoint(names(right)) else None
        return False if left.kind == "set" else None
    for one, other in ((left, right), (right, left)):
        if (values := system_of(one)) and other.kind == "tuple":  # x = 1, y = 2 is (1, 2)
            return _all_same(values, other.items)
    kinds = {left.kind, right.kind}
    if kinds == {"set"} or kinds == {"union"}:
        verdict = _sets(left.items, right.items)
        return None if kinds == {"union"} and not verdict else verdict
    if len(kinds) == 1 and left.kind != "ratio":
        return _all_same(left.items, right.items)
    if len(kinds) == 1:
        return True if _all_same(left.items, right.items) else None
    for one, other in ((left, right), (right, left)):
        if one.kind == "set" and len(one.items) == 1 and other.kind != "set":
            return _same(one.items[0], other)
        if one.kind == "set" and other.kind == "union":  # x < 1 or x > 3
            intervals = [
                _as_interval(item) if isinstance(item, Inequality) else None for item in one.items
            ]
            letters = {piece[0] for piece in intervals if piece}
            bounded = [piece[1] for piece in intervals if piece]
            if len(letters) == 1 and len(bounded) == len(one.items):
                return _same(Group("union", bounded), other)
    if kinds <= {"tuple", "list", "set"}:  # (1,2) may or may not be meant by 1, 2
        return False if _all_same(left.items, right.items) is False else None
    return None


def system_of(group: Group) -> list[Expression] | None:
    """The values of equations that each name another letter, by name; None where it is no such."""
    named = {item.name: item.right for item in group.items if isinstance(item, Equation)}
    if group.kind != "set" or "" in named or not 1 < len(named) == len(group.items):
        return None
    return [named[name] for name in sorted(named)]


def _all_same(left: list[Expression], right: list[Expression]) -> bool | None:
    if len(left) != len(right):
        return False
    return every(_same(one, other) for one, other in zip(left, right, strict=True))


def _sets(left: list[Expression], right: list[Expression]) -> bool | None:
    """Whether each is in the other; in the same order first, which is the usual case."""
    for one, other in ((left, right), (right, left)):
        called = {item.name if isinstance(item, Equation) else "" for item in one}
        bare = not any(isinstance(item, Equation) for item in other)
        if bare and len(called) > 1 and "" not in called:
            # `x=1, y=2` is `1, 2` but not `2, 1`.
            return _all_same(left, right)
    if len(left) != len(right):
        return False
    verdicts = []
    rest = list(right)
    for item in left:
        found: bool | None = False
        for at, candidate in enumerate(rest):
            if verdict := _same(item, candidate):
                del rest[at]
                found = True
                break
            found = None if verdict is None else found
        verdicts.append(found)
    return every(verdicts)


_BY_KIND: tuple[tuple[type, Callable[[Any, Expression], bool | None]], ...] = (
    (Choice, _choice), (Percent, _percent), (Equation, _equation),
    (Member, _member), (Inequality, _inequality),
    (Word, _word), (Literal, _literal), (Interval, _interval),
)  # fmt: skip
"""Who decides: the first whose kind one of the two is."""
