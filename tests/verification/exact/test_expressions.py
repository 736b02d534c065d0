"""The reader of answers: what it refuses, its bounds, and that it never raises or misleads."""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path
from types import FrameType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rft_jax
from rft_jax.verification.exact.algebra import Value, as_fraction
from rft_jax.verification.exact.expressions import MAX_CHARACTERS, parse_expression, same

PACKAGE = str(Path(rft_jax.__file__).parent)
FRAGMENTS = [
    "0", "1", "2", "10", "999", "1,000", ".5", "1.5", "x", "y", "e", "i", "f(x)", "B", "Monday",
    r"\pi", r"\alpha", r"\frac", r"\sqrt", r"\binom", r"\log_2", r"\sin", "sqrt", "pi", "and",
    "or", "{", "}", "(", ")", "[", "]", r"\{", r"\}", "|", "+", "-", "*", "/", "^", "**", "_", "!",
    ",", ";", ":", "=", "<", r"\le", r"\in", r"\cup", r"\pm", r"\infty", "%", r"\%", "$", "&",
    r"\\", r"\text{cm}", r"\text{ or }", r"\begin{pmatrix}", r"\end{pmatrix}", r"^\circ", " ",
    r"\left", r"\,", "(a+b+c)^{20}", "^{999}", "100!", "\0", "٣", "７", "²", "−", "\ud800", "'",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(FRAGMENTS), max_size=25).map("".join) | st.text(max_size=30)


def decide(answer: str, reference: str) -> bool | None:
    found, expected = parse_expression(answer), parse_expression(reference)
    return None if found is None or expected is None else same(found, expected)


@settings(max_examples=500)
@given(TEXTS, TEXTS)
def test_any_text_has_one_verdict(one: str, other: str) -> None:
    assert decide(one, one) is not False
    assert decide(one, other) is decide(other, one)


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "{" * 10_000, "(" * 1_000, "-" * 2_000, r"\frac" * 400, r"\sqrt" * 400,
        r"\sin" * 400, "2^-" * 600, "9" * (MAX_CHARACTERS + 1), "10^10^10", "9^9^9^9",
        "10^{10^{10}}", "2^{1001}", "1000!", "10^{999}^{999}", "((((10^{900})^{900})^{900})^{900})",
        "(a+b+c+d+e+f)^{500}", r"\binom{10000}{5000}", "1/0", "0/0", r"\frac{1}{x-x}", "0^0",
        r"\ln 0", r"\tan\frac{\pi}{2}", r"\infty-\infty", r"2\infty", r"\frac{1}{\infty}", "1/2x",
        "5 6", "x2", "12a3", "2^3^2", r"3\frac{5}{2}", r"\frac123", "5 6/7/8", r"\sin^{-1} x",
        r"\sin(x)^2", "(1,2", "1,2)", "[1,2,3)", "{1,2]", r"\{1,2", "(1,000)", "1,2;3", "2=3",
        "1=2=3", "x<", "=5", "5=", "x<y=z", r"x\in 5", "1x1", "1..2", "1.2..3", "x_{n+1}", "5_9_9",
        "129_2", "1 + + ", r"\unknown", r"\text{12 apples}x", "50% + 1", "a'", "x\0", "٣", "７",
        "\ud800", "²²", "^2", "\\", "_", "5!!x!(", "|x", r"\left(", r"\begin{pmatrix}1&2",
        r"\end{pmatrix}", "1;;", ",", r"\lfloor 2", "3 apples and pears",
        "A. " * 600, "(A) " * 500,
    ],
)  # fmt: skip
def test_refuses(text: str) -> None:
    assert parse_expression(text) is None


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        "+".join(["(a+b+c+d)^{6}"] * 70),
        "*".join(["(a+b)^{9}"] * 90),
        "+".join([*[rf"\frac{{1}}{{x+{n}}}" for n in range(1, 60)]]),
        "+".join(f"10^{{{n}}}" for n in range(800, 999)),
        "+".join(rf"\sqrt{{{n}}}" for n in range(999_999_000, 999_999_110)),
        "*".join(["10^{999}"] * 150),
        "(" * 38 + "x" + ")^{9}" * 38,
        ",".join("x" * 60),
        "100!" * 400,
        "+".join(["499!"] * 300),
        r"\sqrt{" * 30 + "x+2" + "}" * 30,
    ],
)
def test_the_worst_is_bounded_work(text: str) -> None:
    """Calls are counted and not timed; numbers are bounded, and so is the work of a call."""
    assert len(text) <= MAX_CHARACTERS
    calls = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call" and PACKAGE in frame.f_code.co_filename

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        found = parse_expression(text)
        if found is not None:
            same(found, found)
    finally:
        sys.setprofile(before)
    assert 0 < calls < 1_000_000  # about a second


RATIONALS = st.fractions(max_denominator=500).filter(lambda number: abs(number) < 1_000)


def renderings(number: Fraction) -> st.SearchStrategy[str]:
    """Texts that all say the same rational number."""
    sign = "-" if number < 0 else ""
    over, under = abs(number.numerator), number.denominator
    texts = [
        f"{number.numerator}/{under}",
        rf"{sign}\frac{{{over}}}{{{under}}}",
        rf"\dfrac{{{2 * number.numerator}}}{{{2 * under}}}",
        rf"\left({number.numerator}\right) \cdot {under}^{{-1}}",
        rf"x = \frac{{{number.numerator}}}{{{under}}}",
        rf"$\frac{{{number.numerator}}}{{{under}}}\text{{ cm}}$",
        rf"\sqrt{{\frac{{{over**2}}}{{{under**2}}}}}" if not sign else f"{sign}{over}/{under}",
    ]
    if over > under > 1:
        texts.append(rf"{sign}{over // under}\frac{{{over % under}}}{{{under}}}")
    return st.sampled_from(texts)


@given(st.data(), RATIONALS, RATIONALS)
def test_rationals_in_any_rendering(data: st.DataObject, one: Fraction, other: Fraction) -> None:
    first, second = data.draw(renderings(one)), data.draw(renderings(one))
    third = data.draw(renderings(other))
    assert decide(first, second) is True
    assert decide(first, third) is (one == other)


@given(st.integers(-99, 99), st.integers(-99, 99), st.integers(1, 30), st.integers(1, 30))
def test_polynomials(a: int, b: int, c: int, d: int) -> None:
    product = f"({c}x+({a}))({d}y+({b}))"
    expanded = f"{c * d}xy+({b * c})x+({a * d})y+({a * b})"
    assert decide(product, expanded) is True
    assert decide(product, f"{expanded}+1") is False
    assert decide(f"({c}x+{d}y)^2", f"{c * c}x^2+{2 * c * d}xy+{d**2}y**2") is True
    assert decide(f"{c}x+{d}y={a}", f"{a}-{d}y={c}x") is True


@given(st.decimals(0, 999, places=3, allow_nan=False))
def test_decimals_are_exact(number: object) -> None:
    found = parse_expression(f"{number}")
    assert isinstance(found, Value)
    assert as_fraction(found) == Fraction(str(number))


@given(st.lists(st.integers(-9, 9), min_size=2, max_size=5, unique=True))
def test_sets_have_no_order_and_tuples_have(numbers: list[int]) -> None:
    moved = numbers[1:] + numbers[:1]
    one, other = (", ".join(map(str, row)) for row in (numbers, moved))
    assert decide(one, other) is True
    assert decide(rf"\{{{one}\}}", other) is True
    assert decide(f"({one})", f"({other})") is False
    assert decide(one, str(numbers[0])) is False
    assert decide(one, f"{other}, 99") is False


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (r"\ln 2", r"\ln 3"),
        (r"\sqrt{2+\sqrt3}", r"\sqrt{2}"),
        (r"\sin 2", r"\cos 2"),
        ("e+\\pi", "6"),
        ("f(x)", "f(y)"),
        ("(1,2)", "1,2"),
        ("|x|<1", "(-1,1)"),
        (r"(0,1)\cup(1,2)", r"(0,2)"),
        ("x^2>4", "x>2"),
        ("x^2=4", "x=2"),
    ],
)
def test_undecided(one: str, other: str) -> None:
    assert decide(one, other) is None
