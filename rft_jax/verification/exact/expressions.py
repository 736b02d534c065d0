"""Reads a short answer in LaTeX or plain mathematics, exactly and fast, without sympy.

`parse_expression` reads values (`algebra.py`) and what is built from them (`structures.py`), and
`same` compares two of them. What is malformed, has two readings, or is over a bound is None: it is
left to the next layer, never guessed. Units and degrees are dropped, so `5\\text{ cm}` is 5.
"""

from __future__ import annotations

import itertools
import re
from contextlib import suppress
from fractions import Fraction
from functools import lru_cache

from rft_jax.verification.exact.algebra import (
    Expression,
    Undefined,
    Unreadable,
    Value,
    equal,
    generator,
    integer,
    is_letter,
    names,
)
from rft_jax.verification.exact.arithmetic import Arithmetic
from rft_jax.verification.exact.latex_tokens import tokens_of
from rft_jax.verification.exact.literals import Literal, literal_of
from rft_jax.verification.exact.notation import spelled
from rft_jax.verification.exact.structures import (
    INFINITY,
    SETS,
    Equation,
    Group,
    Inequality,
    Interval,
    Member,
    Percent,
    Word,
    interval_of,
    joined,
    same,
    system_of,
)

MAX_CHARACTERS = 2_000
MAX_ITEMS = 64
"""Most items of a list: comparing two in any order takes the square of it."""

_TEXT = re.compile(r"\\(?:text(?:bf|it|rm|normal|sf)?|mbox|mathrm|mathbf)\s*\{([^{}\\$]*)\}")
_WORDS = re.compile(r"[A-Za-z]{2,}(?:[ \-'][A-Za-z]+)*")
_ENGLISH = frozenset({"no", "on", "yes", "odd", "one", "two", "six", "ten", "red", "all", "any"})
"""Words so short that they could be products."""
_LETTERS = re.compile("[A-Za-z]+")
_SEPARATING = re.compile(r"\b(?:and|or|infinity)\b")
_RELATIONS = frozenset({"=", "<", ">", "<=", ">=", "!=", "in", "approx"})
_OPERATORS = frozenset("+-*/^!") | {"name", "number", "frac"}
_OPENINGS = {"(": 1, "[": 1, "{": 1, "{{": 1, ")": -1, "]": -1, "}": -1, "}}": -1}
_NAME_SIGNS = frozenset({"(", ")", "|", ":", ",", "{", "}", "mark"})
_NAME_KINDS = _NAME_SIGNS | {"name", "text", "words", "run", "number", "frac"}
"""What `x`, `f(1)`, `|AB|`, `(p,q)`, `V_1:V_2` and `\\frac{AB}{CD}` are made of."""
_ITEM_ENDS = frozenset({"end", ",", ";", ")", "}}", "row", "&", "matrix"})
_ENDLESS = generator(INFINITY)
_JOINTS = {"cup": "union", ":": "ratio", "and": "and", "or": "or"}
_SEPARATORS = frozenset({",", ";"})
_PART_ENDS = _RELATIONS | {
    "end", ",", ";", ")", "]", "}", "}}", "row", "&", "matrix", *_JOINTS,
}  # fmt: skip


@lru_cache(maxsize=2048)  # an answer is compared with others before it is with the reference
def parse_expression(text: str) -> Expression | None:
    """What the whole text says, or None where this layer does not read it."""
    try:
        return _parse(text) if len(text) <= MAX_CHARACTERS else None
    except Unreadable:
        return None


def is_undefined(text: str) -> bool:
    """Whether a text is understood to have no value, as 1/0 has none."""
    try:
        _parse(text[:MAX_CHARACTERS])
    except Unreadable as error:
        return isinstance(error, Undefined)
    return False


def _parse(text: str) -> Expression:
    text = text.strip()
    if text.startswith("$") and text.endswith("$") and len(text) > 1:
        text = text.strip("$").strip()
    text = text.removesuffix(".")
    if (literal := literal_of(text, parse_expression)) is not None:
        return literal
    text = spelled(text)
    if text[:1] == "\\" and (whole := _TEXT.fullmatch(text)):
        inner = whole[1].strip()
        try:
            return _parse(inner)
        except Unreadable:
            if not _WORDS.fullmatch(inner):
                raise
            return _word(inner)
    if text[:2].isalpha() and _WORDS.fullmatch(text) and not _SEPARATING.search(text):
        longest = max(map(len, _LETTERS.findall(text)))
        if longest > 3 or "-" not in text:  # xy-z is a difference
            return _word(text)
    return _Reader(tokens_of(text)).answer()


def _word(text: str) -> Word:
    """Text in any case; what is short enough for a product of letters in its own, but for the
    capital of a first letter."""
    words = " ".join(text.split())
    if words.casefold() == "nan":
        raise Undefined
    product = None
    if len(words) <= 6 and words.casefold() not in _ENGLISH and max(map(len, words.split())) <= 3:
        reader = _Reader(tokens_of(words))
        with suppress(Unreadable):
            value = reader.value()
            product = value if reader.at_end() else None
    if product is None or words[1:].islower():
        words = words.casefold()
    return Word(words, product)


class _Reader(Arithmetic):
    """Reads structures; inside them, arithmetic."""

    def answer(self) -> Expression:
        """The whole text: one item, or a list of several."""
        items = self._items(bare=True, split=True)
        if not self.at_end():
            raise Unreadable
        return items[0] if len(items) == 1 else _shared_name(items)

    def _items(self, *, bare: bool, split: bool) -> list[Expression]:
        """Items up to a closing bracket or the end; `bare` ones may be relations, and where
        `split`, one with `\\pm` is two."""
        first = self._split(bare) if split else [self._side()]
        if len(first) == 1 and self.kind not in _SEPARATORS:
            return first
        groups: list[list[Expression]] = [first]  # apart by `;`
        words: set[str] = set()
        while True:
            if sum(map(len, groups)) > MAX_ITEMS:
                raise Unreadable
            if self.kind not in _SEPARATORS:
                break
            while self.kind in _SEPARATORS:  # `1, \\text{ and } 2`
                words.add(self.tokens[self.at][1])
                if self.kind == ";" and groups[-1]:
                    groups.append([])
                self.at += 1
            groups[-1] += self._split(bare) if split else [self._side()]
        if len(groups) > 1 and max(map(len, groups)) > 1:  # x=1, y=2; x=3, y=4
            systems = [Group("set", group) for group in groups]
            if not all(map(system_of, systems)):
                raise Unreadable
            return [*systems]
        items = [item for group in groups for item in group]
        if "or" in words and all(same(items[0], item) for item in items):  # 1/2 or 0.5
            return items[:1]
        both = joined(items, words) if bare and len(items) > 1 else None
        return items if both is None else [both]

    def _split(self, bare: bool) -> list[Expression]:
        read = self._side if self.kinds.isdisjoint(_RELATIONS) or not bare else self._chain
        if "pm" not in self.kinds and "mp" not in self.kinds:
            return [read()]
        start, sign, has_sign = self.at, self.sign, self.has_sign
        items = []
        self.has_sign = False
        for self.sign in (1, -1):
            self.at = start
            items.append(read())
            if not self.has_sign:
                break
        self.sign, self.has_sign = sign, has_sign
        return items

    def _chain(self) -> Expression:
        """Sides with relations between them."""
        name = self._name()
        left = self._name_value() if name else self._side()
        relations: list[str] = []
        sides: list[Expression] = []
        while self.kind in _RELATIONS:
            relation = self.kind
            self.at += 1
            side = self._side()
            if relation == "approx" and relations:  # x = 1/3 \\approx 0.3: what is exact counts
                break
            relations.append(relation)
            sides.append(side)
        if not relations:
            assert left is not None
            return left
        if set(relations) <= {"=", "approx"}:
            return _equation(name, left, sides[-1])
        if relations == ["in"] and name:
            if isinstance(sides[0], Value) and SETS.isdisjoint(names(sides[0])):
                raise Unreadable
            return Member(name, sides[0])
        if left is None:
            raise Unreadable
        return _inequality([left, *sides], relations)

    def _name(self) -> str:
        """What is named left of the first relation, such as `x`, `f(x)`, `|AB|`, or empty."""
        at, depth = self.at, 0
        words = []
        while (token := self.tokens[at])[0] not in _RELATIONS:
            kind = token[0]
            depth += _OPENINGS.get(kind, 0)
            if kind not in _NAME_KINDS or (kind == "," and not depth):
                return ""
            if kind != "run":
                words.append(token[1] or kind)
            at += 1
        letters = [word for word in words if word not in _NAME_SIGNS]
        if not letters or letters[0][0] in ".0123456789" or set(letters) == {"frac"}:
            return ""
        product = len(letters) > 1 and len(letters) == len(words)
        if (product or "frac" in letters) and not all(
            letter.isupper() or letter == "frac" for letter in letters
        ):  # xy = 6 names nothing
            return ""
        return "".join(words)

    def _name_value(self) -> Value | None:
        """Step over a name; its value where it is one letter."""
        token = self.tokens[self.at]
        one = token[0] == "name" and self.tokens[self.at + 1][0] in _RELATIONS
        while self.kind not in _RELATIONS:
            self.at += 1
        return generator(token[1]) if one else None

    def _side(self) -> Expression:
        """One side of a relation: a union, a ratio, a structure or a value with its unit."""
        first = self._part()
        joint = self.kind
        if joint not in _JOINTS:
            return first
        parts, kind = [first], _JOINTS[joint]
        while self.take(joint):
            parts.append(self._part())
        if not all(
            isinstance(part, Interval | Group if joint == "cup" else Value) for part in parts
        ):
            raise Unreadable
        return Group(kind, parts)

    def _part(self) -> Expression:
        kind, text = self.tokens[self.at]
        part: Expression
        if kind == "number" and self.tokens[self.at + 1][0] in _PART_ENDS and text.isdigit():
            self.at += 1
            return integer(int(text))
        if kind in ("words", "run") and (word := self._lone_word()) is not None:
            return word
        if kind in ("(", "[") and self.tokens[self.at + 1] == ("matrix", "begin"):
            self.at += 1  # `\left[\begin{array}` is a matrix in brackets
            part = self._matrix()
            self.expect(")" if kind == "(" else "]")
        elif kind == "{{" or (kind in ("(", "[", "{") and self._has_items()):
            part = self._brackets(kind)
        elif self.tokens[self.at] == ("name", "RR"):
            self.at += 1
            part = interval_of(-_ENDLESS, _ENDLESS, False, False)
        elif kind == "matrix":
            part = self._matrix()
        elif kind == "infinity" or (
            kind in ("+", "-") and self.tokens[self.at + 1][0] == "infinity"
        ):
            part = -_ENDLESS if kind == "-" else _ENDLESS
            self.at += 1 if kind == "infinity" else 2
            if self.kind in _OPERATORS:
                raise Undefined
        elif "base" in self.kinds and (based := self._based()) is not None:
            part = based
        else:
            part = self._quantity()
        if self.kind not in _PART_ENDS:
            raise Unreadable
        return part

    def _lone_word(self) -> Word | None:
        """Words that are an item by themselves: no product without a sign that it is one."""
        kind, text = self.tokens[self.at]
        size = 1 if kind == "words" else len(text) + 1
        if self.tokens[self.at + size][0] not in _ITEM_ENDS:
            return None
        self.at += size
        return _word(text)

    def _based(self) -> Literal | None:
        """Digits with the index of a base, and a sign."""
        at = self.at + (self.kind == "-")
        kind, text = self.tokens[at]
        if kind != "number" or self.tokens[at + 1][0] != "base":
            return None
        base, digits = self.tokens[at + 1][1], text.replace(".", "", 1)
        if not digits.isdigit() or not 2 <= int(base) <= 36 or int(max(digits)) >= int(base):
            raise Unreadable
        value = -Fraction(text) if at > self.at else Fraction(text)
        self.at = at + 2
        return Literal("index", (value, base))

    def _quantity(self) -> Expression:
        """A value with what may stand around it: `\\$`, a percent sign, a unit."""
        self.take("$")
        value = self.value()
        if self.kind in _PART_ENDS:
            return value
        self.take("$")
        if self.take("%"):
            return Percent(value)
        while self.take("text") or (self.kind == "/" and self.tokens[self.at + 1][0] == "text"):
            if self.take("^") and not self.take("number"):
                self.expect("{")
                self.expect("number")
                self.expect("}")
            self.take("/")
        return value

    def _has_items(self) -> bool:
        """Whether the bracket that opens here has a separator of its own or closes otherwise."""
        depth = 0
        opening = self.kind
        for kind, _ in self.tokens[self.at :]:
            depth += _OPENINGS.get(kind, 0)
            if depth == 1 and kind in (",", ";"):
                return True
            if not depth:
                return (opening, kind) in (("(", "]"), ("[", ")"))
        raise Unreadable

    def _brackets(self, opening: str) -> Expression:
        self.deeper()
        self.at += 1
        if opening == "{{" and self.take("}}"):
            self.depth -= 1
            return generator("∅")
        items = self._items(bare=opening == "{{", split=opening[0] == "{")
        closing = self.kind
        self.at += 1
        self.depth -= 1
        if (opening, closing) in (("{{", "}}"), ("{", "}")):
            unlike = [not any(same(a, b) for b in items[:at]) for at, a in enumerate(items)]
            return Group("set", [*itertools.compress(items, unlike)])
        if (opening, closing) == ("(", ")"):
            return Group("tuple", items)
        if (opening, closing) == ("[", "]") and len(items) != 2:
            return Group("list", items)
        if len(items) == 2 and opening in "([" and closing in (")", "]"):
            return interval_of(items[0], items[1], opening == "[", closing == "]")
        raise Unreadable

    def _matrix(self) -> Expression:
        edge = self.tokens[self.at][1].removeprefix("begin")
        self.at += 1
        rows: list[Expression] = []
        entries: list[Expression] = []
        while True:
            entries.append(self._chain() if edge == "cases" else self._side())
            if edge == "cases":
                self.take(",")
            if self.take("&"):
                continue
            rows.append(Group("row", entries))
            entries = []
            self.take("row")
            if self.kind == "matrix":
                break
        self.expect("matrix")
        if edge == "cases":
            return Group("cases", rows)
        return Group("determinant" if edge in "vV" and edge else "matrix", rows)


def _equation(name: str, left: Expression | None, right: Expression) -> Expression:
    value = left if isinstance(left, Value) else None
    if name and isinstance(right, Group) and right.kind == "tuple" and name[0] == "(":
        letters = name[1:-1].split(",")
        if len(letters) == len(right.items):  # (x, y) = (1, 2)
            named = zip(letters, map(generator, letters), right.items, strict=True)
            return Group("set", [Equation(*each) for each in named])
    if name:
        return Equation(name, value, right)
    if value is None or not isinstance(right, Value):
        raise Unreadable
    if equal(value, right):  # 2 + 3 = 5
        return right
    if letter := _letter(right):  # 5 = x
        return Equation(letter, right, value)
    if not any(is_letter(other) for other in names(value) | names(right)):
        raise Undefined  # 2 = 3
    return Equation("", value, right)


def _letter(value: Value) -> str:
    """The one letter a value is, or empty."""
    letters = names(value)
    letter = min(letters) if len(letters) == 1 else ""
    return letter if letter and is_letter(letter) and value == generator(letter) else ""


def _inequality(sides: list[Expression], relations: list[str]) -> Expression:
    parts = []
    for left, relation, right in zip(sides, relations, sides[1:], strict=False):
        if not isinstance(left, Value) or not isinstance(right, Value):
            raise Unreadable
        if relation in ("<", "<="):
            left, right = right, left
        elif relation not in (">", ">=", "!="):
            raise Unreadable
        if relation in "<>" and (left == _ENDLESS or right == -_ENDLESS):
            continue  # x < \\infty
        if INFINITY in names(left) | names(right):
            raise Unreadable
        parts.append((left - right, relation.replace("<", ">")))
    if (
        not parts
        and len(sides) == 3
        and isinstance(sides[1], Value)
        and (name := _letter(sides[1]))
    ):
        return Member(name, interval_of(-_ENDLESS, _ENDLESS, False, False))
    letters = set().union(*(names(part) for part, _ in parts))
    if not any(is_letter(name) or name[0] == "#" for name in letters):
        raise Unreadable
    return Inequality(parts)


def _shared_name(items: list[Expression]) -> Expression:
    """A list; in `x = 1, 2` the name is that of all of it."""
    first, *rest = items
    if (
        isinstance(first, Equation)
        and first.name
        and not any(isinstance(item, Equation | Inequality | Member) for item in rest)
    ):
        return Equation(first.name, None, Group("set", [first.right, *rest]))
    return Group("set", items)
