"""Exact algebra in a normal form: quotients of sums of monomials with integer coefficients.

A monomial is a product of powers of generators, each known by a text:

| generator | what it is                                    | exponents                          |
|-----------|-----------------------------------------------|------------------------------------|
| `√2`      | a prime number under a root                   | fractions between 0 and 1          |
| `i`       | the imaginary unit                            | 1                                  |
| `x`, `π`  | a letter, or e or π                           | positive, whole or fractional      |
| `#ln(x)`  | opaque: only known to equal itself            | positive, whole or fractional      |

Real roots of products of primes are linearly independent over Q (Besicovitch), so without opaque
generators, and without e and π together, forms decide equality both ways. Refused (`Unreadable`):
division by zero and everything over the bounds below, before it is computed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

MAX_BITS = 7_000
"""Longest coefficient: about 2,000 decimal digits."""
MAX_TERMS = 200
MAX_PRODUCTS = 4_000
"""Most products of two terms in one multiplication."""
MAX_WEIGHT = 100_000
"""Terms times bits of the longest coefficient of one sum."""
MAX_EXPONENT = 1_000
MAX_FACTORED = 10**9
"""Largest integer factored into primes: trial division then takes about a millisecond."""

Exponent = int | Fraction
Monomial = tuple[tuple[str, Exponent], ...]
Sum = dict[Monomial, int]

ONE: Sum = {(): 1}


class Unreadable(Exception):
    """The text is outside what this layer reads, or over one of its bounds."""


class Undefined(Unreadable):
    """The text is read and has no value: a division by zero, infinity times zero."""


class Expression:
    """Whatever an answer can be: a value, or a structure of values."""

    __slots__ = ()


@dataclass(slots=True)
class Value(Expression):
    """A quotient of two sums; the lower is never zero. Nothing changes it once it is made."""

    upper: Sum
    lower: Sum

    def __add__(self, other: Value) -> Value:
        if self.lower == other.lower:
            return _quotient(_added(self.upper, other.upper), self.lower)
        upper = _added(_multiplied(self.upper, other.lower), _multiplied(other.upper, self.lower))
        return _quotient(upper, _multiplied(self.lower, other.lower))

    def __neg__(self) -> Value:
        return Value({term: -number for term, number in self.upper.items()}, self.lower)

    def __sub__(self, other: Value) -> Value:
        return self + -other

    def __mul__(self, other: Value) -> Value:
        return _quotient(_multiplied(self.upper, other.upper), _multiplied(self.lower, other.lower))

    def __truediv__(self, other: Value) -> Value:
        """Refused when other is zero, or when self is and other is opaque: it may be zero too."""
        if not other.upper:
            raise Undefined
        if not self.upper and is_opaque(other):
            raise Unreadable
        return self * Value(other.lower, other.upper)

    def __pow__(self, exponent: Fraction) -> Value:
        """Refused: 0 ** 0, and fractional powers of negative numbers (see `root`)."""
        if abs(exponent.numerator) > MAX_EXPONENT or exponent.denominator > MAX_EXPONENT:
            raise Unreadable
        if exponent.denominator != 1:
            return _fractional_power(self, exponent)
        times = exponent.numerator
        if times <= 0 and not self.upper:
            raise Undefined
        base = self if times >= 0 else Value(self.lower, self.upper)
        return _quotient(_powered(base.upper, abs(times)), _powered(base.lower, abs(times)))


def integer(number: int) -> Value:
    """A whole number as a value."""
    if number.bit_length() > MAX_BITS:
        raise Unreadable
    return Value({(): number} if number else {}, ONE)


def rational(number: Fraction) -> Value:
    """A rational number as a value."""
    return integer(number.numerator) / integer(number.denominator)


def generator(name: str, exponent: Exponent = 1) -> Value:
    """A power of a generator as a value."""
    return Value({((name, exponent),): 1}, ONE)


def as_fraction(value: Value) -> Fraction | None:
    """The rational number a value is, or None."""
    upper, lower = value.upper, value.lower
    if len(lower) > 1 or len(upper) > 1 or () not in lower or (upper and () not in upper):
        return None
    return Fraction(upper.get((), 0), lower[()])


def root(radicand: Value, degree: int) -> Value:
    """The degree-th root; of a negative number the real one, or the imaginary square root."""
    number = as_fraction(radicand)
    if not 2 <= degree <= MAX_EXPONENT:
        raise Unreadable
    if number is None or number >= 0:
        return radicand ** Fraction(1, degree) if radicand.upper else radicand
    positive = (-radicand) ** Fraction(1, degree)
    if degree % 2:
        return -positive
    if degree == 2:
        return generator("i") * positive
    raise Unreadable


def is_opaque(value: Value) -> bool:
    """Whether an opaque generator occurs, so that unequal forms may still be equal."""
    return any(name[0] == "#" for name in names(value))


def names(value: Value) -> set[str]:
    """The generators that occur."""
    return {name for part in (value.upper, value.lower) for term in part for name, _ in term}


def is_letter(name: str) -> bool:
    """Whether a generator is a letter: unknown, not a root or a constant."""
    return name[0] not in "#√" and name not in ("e", "π", "i")


def equal(left: Value, right: Value) -> bool | None:
    """Whether two values are equal; None where unequal forms do not decide it."""
    if left.lower == right.lower:
        same = left.upper == right.upper
    else:
        try:
            same = _multiplied(left.upper, right.lower) == _multiplied(right.upper, left.lower)
        except Unreadable:
            return None
    if same:
        return True
    both = names(left) | names(right)
    if {"e", "π"} <= both or any(name[0] == "#" for name in both):
        return None
    return False


def describe(value: Value) -> str:
    """A text that only equal values share, for the names of opaque generators."""
    if len(value.upper) + len(value.lower) > 20:
        raise Unreadable
    text = f"{sorted(value.upper.items(), key=str)}/{sorted(value.lower.items(), key=str)}"
    if len(text) > 2_000:
        raise Unreadable
    return text


@lru_cache(maxsize=4096)
def factored(number: int) -> tuple[tuple[int, int], ...]:
    """(prime, exponent) of a positive integer, by trial division; large ones are refused."""
    if number > MAX_FACTORED:
        raise Unreadable
    factors = []
    divisor = 2
    while divisor * divisor <= number:
        exponent = 0
        while number % divisor == 0:
            number //= divisor
            exponent += 1
        if exponent:
            factors.append((divisor, exponent))
        divisor += 1 if divisor == 2 else 2
    if number > 1:
        factors.append((number, 1))
    return tuple(factors)


def _added(left: Sum, right: Sum) -> Sum:
    total = dict(left)
    for term, number in right.items():
        whole = total.get(term, 0) + number
        if whole:
            total[term] = whole
        else:
            del total[term]
    return total


def _multiplied(left: Sum, right: Sum) -> Sum:
    if left is ONE:
        return right
    if right is ONE:
        return left
    if len(left) * len(right) > MAX_PRODUCTS:
        raise Unreadable
    total: Sum = {}
    for term, number in left.items():
        for other, second in right.items():
            monomial, factor = _joined(term, other)
            total[monomial] = total.get(monomial, 0) + number * second * factor
    total = {term: number for term, number in total.items() if number}
    _check(total)
    return total


def _joined(left: Monomial, right: Monomial) -> tuple[Monomial, int]:
    """Product of two monomials: a monomial, and the integer that roots and i leave."""
    if not left or not right:
        return left or right, 1
    exponents = dict(left)
    for name, exponent in right:
        exponents[name] = exponents.get(name, 0) + exponent
    return _reduced(exponents)


def _reduced(exponents: dict[str, Exponent]) -> tuple[Monomial, int]:
    factor = 1
    for name, exponent in tuple(exponents.items()):
        if name[0] == "√" and exponent >= 1:
            prime, times = int(name[1:]), int(exponent)
            if prime.bit_length() * times > MAX_BITS:
                raise Unreadable
            factor *= prime**times
            exponents[name] = exponent - times
        elif name == "i" and exponent >= 2:
            factor *= -1 if exponent % 4 >= 2 else 1
            exponents[name] = exponent % 2
    return tuple(sorted((name, power) for name, power in exponents.items() if power)), factor


def _powered(base: Sum, times: int) -> Sum:
    if times == 1 or base is ONE:
        return base
    if not times:
        return ONE
    if len(base) == 1:
        ((term, number),) = base.items()
        if number.bit_length() * times > MAX_BITS + times:
            raise Unreadable
        monomial, factor = _reduced({name: exponent * times for name, exponent in term})
        power = {monomial: number**times * factor}
        _check(power)
        return power
    half = _powered(base, times // 2)
    square = _multiplied(half, half)
    return _multiplied(square, base) if times % 2 else square


def _check(total: Sum) -> None:
    """Refuse a sum that is over the bounds."""
    if len(total) == 1:
        ((term, number),) = total.items()
        longest = number.bit_length()
        if any(exponent > MAX_EXPONENT for _, exponent in term):
            raise Unreadable
    else:
        longest = max(map(int.bit_length, total.values()), default=0)
    if longest > MAX_BITS or len(total) > MAX_TERMS or longest * len(total) > MAX_WEIGHT:
        raise Unreadable


def _quotient(upper: Sum, lower: Sum) -> Value:
    """upper / lower without their common integer factor, the lower positive where it is one."""
    if not upper:
        return Value({}, ONE)
    if lower is ONE:
        return Value(upper, ONE)
    if len(upper) == 1 and len(lower) == 1 and () not in upper:
        upper, lower = _cancelled(upper, lower)
    common = math.gcd(*upper.values(), *lower.values())
    # The sign goes up; which term decides does not matter as long as it is always the same one.
    first = lower[min(lower, key=str)] if len(lower) > 1 else next(iter(lower.values()))
    if first < 0:
        common = -common
    if common != 1:
        upper = {term: number // common for term, number in upper.items()}
        lower = {term: number // common for term, number in lower.items()}
    return Value(upper, ONE if lower == ONE else lower)


def _cancelled(upper: Sum, lower: Sum) -> tuple[Sum, Sum]:
    """Two monomials without the powers they share."""
    ((over, up),) = upper.items()
    ((under, down),) = lower.items()
    first, second = dict(over), dict(under)
    for name in first.keys() & second.keys():
        shared = min(first[name], second[name])
        first[name] -= shared
        second[name] -= shared
    (over, _), (under, _) = _reduced(first), _reduced(second)
    return {over: up}, {under: down}


def _fractional_power(base: Value, exponent: Fraction) -> Value:
    if not base.upper:
        if exponent < 0:
            raise Unreadable
        return base
    if len(base.upper) == 1 and len(base.lower) == 1:
        ((upper, over),) = base.upper.items()
        ((lower, under),) = base.lower.items()
        # A root of a product is the product of the roots where all factors but one are positive.
        unsure = [name for name, _ in upper + lower if name[0] != "√" and name not in "eπ"]
        simple = all(power == 1 for name, power in upper + lower if name in unsure)
        if over < 0 and not unsure:
            raise Unreadable
        if over > 0 and len(unsure) <= 1 and simple and "i" not in unsure:
            result = _root_of(over, exponent) / _root_of(under, exponent)
            for name, power in upper:
                result *= _power_of(name, power * exponent)
            for name, power in lower:
                result /= _power_of(name, power * exponent)
            return result
    whole, part = divmod(exponent, 1)
    return base ** Fraction(whole) * _power_of(f"#({describe(base)})", part)


def _power_of(name: str, exponent: Fraction) -> Value:
    if exponent < 0:
        return Value(ONE, ONE) / _power_of(name, -exponent)
    monomial, factor = _reduced({name: exponent})
    return Value({monomial: factor}, ONE)


def _root_of(number: int, exponent: Fraction) -> Value:
    while number > 1 and (whole := math.isqrt(number)) ** 2 == number:
        number, exponent = whole, 2 * exponent
    result = Value(ONE, ONE)
    for prime, times in factored(number):
        result *= _power_of(f"√{prime}", times * exponent)
    return result
