"""Functions of exact values: logarithms, trigonometry, factorials, absolute values.

What has a simple exact value gets it (`ln 8` is 3 ln 2, `sin(π/6)` is 1/2); everything else is an
opaque generator, which equals itself and leaves all else undecided.
"""

from __future__ import annotations

import math
from fractions import Fraction

from rft_jax.verification.exact.algebra import (
    ONE,
    Undefined,
    Unreadable,
    Value,
    as_fraction,
    describe,
    factored,
    generator,
    integer,
    rational,
    root,
)

TRIGONOMETRIC = frozenset({"sin", "cos", "tan", "cot", "sec", "csc"})
NAMES = TRIGONOMETRIC | {
    "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "ln", "log", "lg", "exp",
}  # fmt: skip
"""Functions of one argument that are written without brackets too."""
MAX_FACTORIAL = 500
HALF = Fraction(1, 2)


def apply(name: str, argument: Value) -> Value:
    """The value of a function of `NAMES`."""
    if name in ("sin", "cos"):
        return _sine_or_cosine(name, argument)
    if name in TRIGONOMETRIC:
        sine, cosine = _sine_or_cosine("sin", argument), _sine_or_cosine("cos", argument)
        one = integer(1)
        over, under = {
            "tan": (sine, cosine), "cot": (cosine, sine), "sec": (one, cosine), "csc": (one, sine),
        }[name]  # fmt: skip
        return over / under
    if name in ("ln", "log"):  # log is of base 10 or e: only the writer knows
        return logarithm(name, argument)
    if name == "lg":
        return logarithm("ln", argument) / logarithm("ln", integer(10))
    if name == "exp":
        return raise_to(generator("e"), argument)
    return _opaque(name, argument)


def logarithm(name: str, argument: Value) -> Value:
    """A logarithm; of a positive rational as a sum over its primes, of a power of e exact."""
    total = integer(0)
    if name == "ln":
        argument, exponent = _without_e(argument)
        total = rational(exponent)
    number = as_fraction(argument)
    if number is None:
        return total + _opaque(name, argument)
    if number <= 0:
        raise Undefined if not number else Unreadable
    for part, sign in ((number.numerator, 1), (number.denominator, -1)):
        for prime, times in factored(part):
            term = generator(f"#{name}({prime})")
            total += integer(sign * times) * term
    return total


def _without_e(value: Value) -> tuple[Value, Fraction]:
    """A product without its power of e, and the exponent of that power."""
    if len(value.upper) != 1 or len(value.lower) != 1:
        return value, Fraction(0)
    (over,), (under,) = value.upper, value.lower
    exponent = Fraction(dict(over).get("e", 0)) - Fraction(dict(under).get("e", 0))
    if not exponent:
        return value, exponent
    return value / generator("e") ** exponent, exponent


def raise_to(base: Value, exponent: Value) -> Value:
    """base ** exponent; whole parts of an exponent with letters come out: 2^(n+1) is 2 * 2^n."""
    number = as_fraction(exponent)
    if number is not None:
        return base**number
    if not base.upper:
        raise Unreadable
    result = integer(1)
    if exponent.lower == ONE and () in exponent.upper:
        whole = exponent.upper[()]
        result = base ** Fraction(whole)
        exponent += integer(-whole)
    return result * generator(f"#({describe(base)})^({describe(exponent)})")


def factorial(value: Value) -> Value:
    """n! of a small whole number; of letters opaque."""
    number = as_fraction(value)
    if number is None:
        return _opaque("!", value)
    if number.denominator != 1 or not 0 <= number <= MAX_FACTORIAL:
        raise Unreadable
    return integer(math.factorial(number.numerator))


def binomial(upper: Value, lower: Value) -> Value:
    """Number of ways to choose; of letters opaque."""
    n, k = as_fraction(upper), as_fraction(lower)
    if n is None or k is None:
        return generator(f"#binom({describe(upper)},{describe(lower)})")
    whole = n.denominator == 1 == k.denominator
    if not whole or not 0 <= k <= n <= 1_000:
        raise Unreadable
    return integer(math.comb(n.numerator, k.numerator))


def absolute(value: Value) -> Value:
    """Absolute value; of what is not rational opaque."""
    number = as_fraction(value)
    return _opaque("abs", value) if number is None else rational(abs(number))


def rounded(name: str, value: Value) -> Value:
    """`floor` or `ceil`; of what is not rational opaque."""
    number = as_fraction(value)
    if number is None:
        return _opaque(name, value)
    return integer(math.floor(number) if name == "floor" else math.ceil(number))


def _opaque(name: str, argument: Value) -> Value:
    return generator(f"#{name}({describe(argument)})")


def _sine_or_cosine(name: str, argument: Value) -> Value:
    turns = _multiple_of_pi(argument)
    if turns is None:
        return _opaque(name, argument)
    if name == "cos":
        turns += HALF
    turns %= 2
    sign = 1
    if turns > 1:
        sign, turns = -1, turns - 1
    turns = min(turns, 1 - turns)
    known = {
        Fraction(0): integer(0),
        Fraction(1, 6): rational(HALF),
        Fraction(1, 4): root(integer(2), 2) / integer(2),
        Fraction(1, 3): root(integer(3), 2) / integer(2),
        HALF: integer(1),
    }
    value = known.get(turns)
    if value is None:
        value = generator(f"#sin({turns}π)")
    return value if sign == 1 else -value


def _multiple_of_pi(value: Value) -> Fraction | None:
    """The rational number that times π is `value`, or None."""
    if not value.upper:
        return Fraction(0)
    over, under = value.upper.get((("π", 1),)), value.lower.get(())
    if over is None or under is None or len(value.upper) + len(value.lower) > 2:
        return None
    return Fraction(over, under)
