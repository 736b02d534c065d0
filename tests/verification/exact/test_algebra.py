"""Exact algebra: its laws, against evaluation with fractions at random points."""

from __future__ import annotations

import operator
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rft_jax.verification.exact.algebra import (
    MAX_BITS,
    MAX_EXPONENT,
    Sum,
    Unreadable,
    Value,
    as_fraction,
    equal,
    factored,
    generator,
    integer,
    rational,
    root,
)

Tree = tuple[str, object, object]

_LEAVES = st.one_of(st.integers(-9, 9), st.sampled_from("xyz"))
TREES = st.recursive(
    _LEAVES,
    lambda inner: st.tuples(st.sampled_from("+-*/"), inner, inner),
    max_leaves=6,
)


OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv,
}  # fmt: skip


def form(tree: object) -> Value:
    """The normal form of a tree."""
    if isinstance(tree, int):
        return integer(tree)
    if isinstance(tree, str):
        return generator(tree)
    sign, left, right = tree
    value: Value = OPERATIONS[sign](form(left), form(right))
    return value


def number(tree: object, point: dict[str, Fraction]) -> Fraction:
    """The value of a tree at a point, by fractions: an independent reference."""
    if isinstance(tree, int):
        return Fraction(tree)
    if isinstance(tree, str):
        return point[tree]
    sign, left, right = tree
    value: Fraction = OPERATIONS[sign](number(left, point), number(right, point))
    return value


POINTS = [
    {"x": Fraction(1_000_003, 7), "y": Fraction(-999_983, 11), "z": Fraction(999_979, 13)},
    {"x": Fraction(-104_729, 3), "y": Fraction(1_299_709, 5), "z": Fraction(-15_485_863, 17)},
]
"""So far out and so unlike each other that small trees are equal there only when they are equal."""


@given(TREES, TREES)
def test_equality_is_that_of_values(left: object, right: object) -> None:
    try:
        forms = form(left), form(right)
        values = [[number(tree, point) for point in POINTS] for tree in (left, right)]
    except (Unreadable, ZeroDivisionError):
        assume(False)
    assert equal(*forms) is (values[0] == values[1])
    assert equal(*forms) is equal(*reversed(forms))


@given(TREES, TREES, TREES)
def test_laws(a: object, b: object, c: object) -> None:
    try:
        x, y, z = form(a), form(b), form(c)
    except Unreadable:
        assume(False)
    assert equal(x + y, y + x)
    assert equal(x * y, y * x)
    assert equal(x * (y + z), x * y + x * z)
    square = (x + y) ** Fraction(2)
    mixed = integer(2) * (x * y)
    assert equal(square, x ** Fraction(2) + mixed + y ** Fraction(2))


@given(st.integers(1, 5_000), st.integers(1, 5_000))
def test_square_roots(a: int, b: int) -> None:
    product = root(integer(a), 2) * root(integer(b), 2)
    assert equal(product, root(integer(a * b), 2))
    assert equal(root(integer(a), 2) ** Fraction(2), integer(a))
    assert equal(root(integer(a), 2), root(integer(b), 2)) is (a == b)
    assert equal(root(integer(a), 2) + root(integer(b), 2), root(integer(a + b), 2)) is False


@given(st.integers(1, 200), st.integers(2, 6), st.integers(1, 200), st.integers(2, 6))
def test_roots(a: int, n: int, b: int, m: int) -> None:
    assert equal(root(integer(a), n) ** Fraction(n), integer(a))
    assert equal(root(integer(a), n), root(integer(b), m)) is (a**m == b**n)


def test_roots_in_the_denominator() -> None:
    one, half = integer(1), root(integer(2), 2)
    assert equal(one / (one + half), half + integer(-1))
    assert equal(one / half, half / integer(2))


def test_imaginary_unit() -> None:
    i = generator("i")
    assert equal(i ** Fraction(2), integer(-1))
    assert equal(root(integer(-4), 2), integer(2) * i)
    assert equal(integer(1) / i, -i)
    assert equal(root(integer(-8), 3), integer(-2))


def test_opaque_and_transcendental_are_undecided_when_unequal() -> None:
    opaque, other = generator("#ln(2)"), generator("#ln(3)")
    assert equal(opaque, opaque) is True
    assert equal(opaque, other) is None
    assert equal(generator("π"), integer(3)) is False
    assert equal(generator("e"), generator("π")) is None


@pytest.mark.parametrize(
    "make",
    [
        lambda: integer(1) / integer(0),
        lambda: integer(0) / generator("#sin(2)"),
        lambda: integer(0) ** Fraction(0),
        lambda: integer(0) ** Fraction(-1),
        lambda: integer(0) ** Fraction(-1, 2),
        lambda: integer(-8) ** Fraction(1, 3),
        lambda: root(integer(-4), 4),
        lambda: root(integer(4), 1),
        lambda: integer(1 << (MAX_BITS + 1)),
        lambda: integer(10) ** Fraction(MAX_EXPONENT + 1),
        lambda: integer(1 << 1_000) ** Fraction(1_000),
        lambda: (generator("x") + integer(1)) ** Fraction(MAX_EXPONENT),
        lambda: factored(10**9 + 7),
    ],
)
def test_refuses(make: Callable[[], object]) -> None:
    with pytest.raises(Unreadable):
        make()


def test_factors() -> None:
    assert factored(1) == ()
    assert factored(360) == ((2, 3), (3, 2), (5, 1))
    assert factored(999_999_937) == ((999_999_937, 1),)


@given(st.fractions())
def test_rationals(number: Fraction) -> None:
    assert as_fraction(rational(number)) == number


def test_forms_have_no_common_integer_factor() -> None:
    upper: Sum = {(("x", 1),): 2, (): 4}
    assert Value(upper, integer(1).upper) / integer(-6) == Value({(("x", 1),): -1, (): -2}, {(): 3})
