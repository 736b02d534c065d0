"""Reads arithmetic from tokens into exact values, by recursive descent.

Where a notation has two readings it is refused (`Unreadable`): `1/2x`, `2^3^2`, `5 6`, `x2`,
`3\\frac{5}{2}`. A number before a proper fraction is a mixed number: `1\\frac{1}{2}` is 3/2.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

from rft_jax.verification.exact import functions
from rft_jax.verification.exact.algebra import (
    Undefined,
    Unreadable,
    Value,
    as_fraction,
    describe,
    generator,
    integer,
    rational,
    root,
)
from rft_jax.verification.exact.latex_tokens import END, Token

MAX_DEPTH = 40
_FACTOR_STARTS = frozenset(
    {"name", "run", "function", "sqrt", "frac", "binom", "(", "{", "floor", "ceil"}
)  # fmt: skip
"""What may follow a factor to be multiplied with it; a number may not."""
_SIGNS = frozenset({"+", "-", "pm", "mp"})
_CALLED = frozenset({"f", "g", "h"})
"""Letters that brackets call, not multiply."""
_CLOSE = {"(": ")", "[": "]", "{": "}", "floor": "end floor", "ceil": "end ceil"}


class Arithmetic:
    """A position in a list of tokens, and what reads values from there."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens = tokens
        self.kinds = {kind for kind, _ in tokens}
        self.at = 0
        self.sign = 1
        """Of `\\pm`: a text with one is read twice."""
        self.has_sign = False
        self.depth = 0
        self._bars = 0
        self._angles = 0

    @property
    def kind(self) -> str:
        """Kind of the next token."""
        return self.tokens[self.at][0]

    def take(self, kind: str) -> bool:
        """Step over the next token where it is of this kind."""
        if self.tokens[self.at][0] == kind:
            self.at += 1
            return True
        return False

    def expect(self, kind: str) -> None:
        """Step over a token that has to be of this kind."""
        if self.tokens[self.at][0] != kind:
            raise Unreadable
        self.at += 1

    def deeper(self) -> None:
        """Go one level down, which is bounded."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unreadable

    def value(self) -> Value:
        """A sum: what is left of a relation, a separator or a closing bracket."""
        self.deeper()
        total: Value | None = None
        while True:
            sign = 1
            if self.tokens[self.at][0] in _SIGNS:
                sign = self._taken_sign()
            elif total is not None:
                break
            term = self._term()
            if sign < 0:
                term = -term
            total = term if total is None else total + term
        self.depth -= 1
        return total

    def _taken_sign(self) -> int:
        kind = self.kind
        self.at += 1
        if kind == "+" or kind == "-":
            return 1 if kind == "+" else -1
        self.has_sign = True
        return self.sign if kind == "pm" else -self.sign

    def _term(self) -> Value:
        product = self._factor()
        divided = False
        while True:
            kind = self.kind
            if kind == "*":
                self.at += 1
                product *= self._signed(self._factor)
                divided = False
            elif kind == "/":
                self.at += 1
                product /= self._signed(self._factor)
                divided = True
            elif kind in _FACTOR_STARTS or (kind == "|" and not self._bars):
                if divided:  # 1/2x
                    raise Unreadable
                product *= self._factor()
            else:
                return product

    def _signed(self, read: Callable[[], Value]) -> Value:
        return -read() if self.take("-") else read()

    def _factor(self) -> Value:
        base = self._primary()
        while True:
            kind = self.kind
            if kind == "^":
                self.at += 1
                exponent = self._signed(self._primary)
                if self.kind == "^":
                    raise Unreadable
                base = functions.raise_to(base, exponent)
            elif kind == "!":
                self.at += 1
                base = functions.factorial(base)
            elif kind == "degree":
                self.at += 1
                if self._angles:  # a unit, dropped, but within a function it makes an angle
                    base *= generator("π") / integer(180)
            else:
                return base

    def _primary(self) -> Value:
        kind, text = self.tokens[self.at]
        self.at += 1
        if kind == "number":
            return self._number(text)
        if kind == "run":
            return self._primary()
        if kind == "infinity":
            raise Undefined
        if kind == "name":
            if text in _CALLED and self.kind == "(":
                return generator(f"#{text}({describe(self._bracketed('('))})")
            return generator(text)
        if kind in ("(", "[", "{"):
            self.at -= 1
            return self._bracketed(kind)
        if kind == "frac" or kind == "binom":
            over, under = self._argument(), self._argument()
            return over / under if kind == "frac" else functions.binomial(over, under)
        if kind == "sqrt":
            return self._root(plain=text == "plain")
        if kind == "function":
            return self._function(text)
        if kind == "$" and self.kind == "number":
            return self._primary()
        if kind == "|":
            self._bars += 1
            inner = self.value()
            self.expect("|")
            self._bars -= 1
            return functions.absolute(inner)
        if kind in ("floor", "ceil"):
            inner = self.value()
            self.expect(_CLOSE[kind])
            return functions.rounded(kind, inner)
        raise Unreadable

    def _bracketed(self, kind: str) -> Value:
        self.expect(kind)
        inside, text = self.tokens[self.at]
        if inside == "number" and text.isdigit() and self.tokens[self.at + 1][0] == _CLOSE[kind]:
            self.at += 2
            return integer(int(text))
        bars, self._bars = self._bars, 0
        inner = self.value()
        self._bars = bars
        self.expect(_CLOSE[kind])
        return inner

    def _number(self, text: str) -> Value:
        value = integer(int(text)) if text.isdigit() else rational(Fraction(text))
        if self.kind not in ("frac", "number"):
            return value
        upper: Value | None = None
        if self.kind == "frac":
            kinds = [kind for kind, _ in self.tokens[self.at : self.at + 7]]
            if kinds == ["frac", "{", "number", "}", "{", "number", "}"]:
                self.at += 1
                upper, lower = self._argument(), self._argument()
        elif self.kind == "number":
            kinds = [kind for kind, _ in self.tokens[self.at : self.at + 3]]
            if kinds != ["number", "/", "number"]:
                raise Unreadable
            over, under = self.tokens[self.at][1], self.tokens[self.at + 2][1]
            if not (over + under).isdigit():
                raise Unreadable
            upper, lower = integer(int(over)), integer(int(under))
            self.at += 3
        if upper is None:
            return value
        part = as_fraction(upper / lower)
        if not text.isdigit() or part is None or not 0 < part < 1 or self.kind in ("^", "/", "!"):
            raise Unreadable
        return value + rational(part)

    def _argument(self) -> Value:
        """An argument of a command: a group, or one digit, letter or command."""
        self.take("run")
        kind, text = self.tokens[self.at]
        if kind == "{":
            return self._bracketed("{")
        self.at += 1
        if kind == "number" and len(text) == 1 and self.kind != "number":
            return integer(int(text))
        if kind == "name":
            return generator(text)
        if kind == "sqrt":
            return self._root(plain=False)
        raise Unreadable

    def _root(self, plain: bool) -> Value:
        degree = 2
        if self.take("["):
            number = as_fraction(self.value())
            self.expect("]")
            if number is None or number.denominator != 1:
                raise Unreadable
            degree = number.numerator
        bare = plain or self.kind == "("
        if self.kind == "number" and (digits := self.tokens[self.at][1]).isdigit():
            self.at += 1  # `\\sqrt 12` is TeX's for the root of 1 and a 2, which nobody means
            return root(integer(int(digits)), degree)
        self.deeper()
        if degree % 2 and (power := self._power_within(degree)) is not None:
            self.depth -= 1
            return power
        radicand = self._primary() if bare else self._argument()
        self.depth -= 1
        return root(radicand, degree)

    def _power_within(self, degree: int) -> Value | None:
        """An odd root of a power, `\\sqrt[3]{(x+5)^2}`, as the power of the root."""
        start = self.at
        if self.take("{") and self.kind == "(":
            base = self._bracketed("(")
            if self.take("^"):
                exponent = as_fraction(self._signed(self._primary))
                if exponent is not None and self.take("}"):
                    return base ** (exponent / degree)
        self.at = start
        return None

    def _function(self, name: str) -> Value:
        base: Value | None = None
        if self.kind == "index":
            text = self.tokens[self.at][1]
            base = integer(int(text)) if text.isdigit() else generator(text)
            self.at += 1
        times = Fraction(1)
        if self.take("^"):
            exponent = as_fraction(self._signed(self._primary))
            if exponent is None or exponent.denominator != 1 or exponent < 1:
                raise Unreadable  # sin^{-1} is not 1/sin
            times = exponent
        self.deeper()
        self._angles += 1
        if self.kind in ("(", "{", "["):
            argument = self._bracketed(self.kind)
            if self.kind in ("^", "!"):  # of the argument, or of the function?
                raise Unreadable
        else:
            argument = self._factor()
            while self.kind in ("name", "run", "frac", "sqrt"):
                argument *= self._factor()
        self._angles -= 1
        self.depth -= 1
        if base is not None:
            value = functions.logarithm("ln", argument) / functions.logarithm("ln", base)
            return value**times
        return functions.apply(name, argument) ** times

    def at_end(self) -> bool:
        """Whether all tokens are read."""
        return self.tokens[self.at] is END
