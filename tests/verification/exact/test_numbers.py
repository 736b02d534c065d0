"""Exact comparison of numbers."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rft_jax.verification.exact.numbers import MAX_CHARACTERS, Number, equal, parse_number


def equal_texts(first: str, second: str) -> bool:
    one, other = parse_number(first), parse_number(second)
    return one is not None and other is not None and equal(one, other)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("72", Fraction(72)),
        ("007", Fraction(7)),
        ("0", Fraction(0)),
        ("-0", Fraction(0)),
        ("  72\t\n", Fraction(72)),
        ("-7", Fraction(-7)),
        ("−7", Fraction(-7)),
        ("+18", Fraction(18)),
        ("1,080", Fraction(1080)),
        ("-109,200,000", Fraction(-109_200_000)),
        ("1,080.50", Fraction(2161, 2)),
        ("3.50", Fraction(7, 2)),
        ("-.5", Fraction(-1, 2)),
        ("18.", Fraction(18)),
        ("0.1", Fraction(1, 10)),
        ("1/2", Fraction(1, 2)),
        ("-1/2", Fraction(-1, 2)),
        ("2 / 4", Fraction(1, 2)),
        ("1,000/2,000", Fraction(1, 2)),
        ("0/5", Fraction(0)),
        ("$18", Fraction(18)),
        (r"\$36", Fraction(36)),
        ("-$18", Fraction(-18)),
        ("$-18", Fraction(-18)),
        ("$1,080.50", Fraction(2161, 2)),
        ("1{,}080", Fraction(1080)),
        (r"1\,080\,000", Fraction(1_080_000)),
        ("1 080", Fraction(1080)),
        (r"1,\! 080", Fraction(1080)),
        ("1 080/2", Fraction(540)),
        ("1 1/2", Fraction(3, 2)),
        (r"0.\overline{3}", Fraction(1, 3)),
        (r"-1.1\overline{6}", Fraction(-7, 6)),
        ("-1 1/2", Fraction(-3, 2)),
        ("－7", Fraction(-7)),
        ("€5", Fraction(5)),
        ("18$", Fraction(18)),
        ("18 dollars", Fraction(18)),
        ("72 clips", Fraction(72)),
        ("30 miles per hour.", Fraction(30)),
        ("5-year-old", Fraction(5)),
        ("12cm", Fraction(12)),
        ("12 m^2", Fraction(12)),
        (r"12\text{ cm}^2", Fraction(12)),
        (r"45^{\circ}", Fraction(45)),
        ("2.5 million dollars", Fraction(2_500_000)),
        ("9" * MAX_CHARACTERS, Fraction(10**MAX_CHARACTERS - 1)),
    ],
)
def test_reads(text: str, value: Fraction) -> None:
    assert parse_number(text) == Number(value, percent=False)


@pytest.mark.parametrize("text", ["50%", "50 %", "+50%", r"50\%", "50.0%", "100/2%", "50 percent"])
def test_reads_percent(text: str) -> None:
    assert parse_number(text) == Number(Fraction(50), percent=True)


@pytest.mark.parametrize(
    "text",
    [
        "", " ", ".", "-", "$", "%", "/", "x", "12a3", "5 or 6", "5 6", "5, 6", "5x", "5 x", "5 y",
        "$5%", "$5 $", "- 7", "--7", "+-7", "-$-7", "+$-7", "10,80", "0,080", "5 seven", "5 half",
        "1,0800", ",080", "1,080,", "3,5", "1.2.3", "1.5/2", "1/2/3", "1/-2", "1 3/2", "1/0", "0/0",
        "1/", "/2", "1e3", "1E400", "0x10", "1_000", "inf", "nan", "٣", "７", "²", "½", "1\x002",
        "7\n8", "(7)", "7!", "2**9", "2^9", "__import__('os')", "9" * (MAX_CHARACTERS + 1), "5 pi",
        "1/" + "9" * MAX_CHARACTERS, "5 or so", "5 squared", "5 not", "50%x", "5 " + "a " * 9,
    ],
)  # fmt: skip
def test_refuses(text: str) -> None:
    assert parse_number(text) is None
    assert not equal_texts(text, text)


@pytest.mark.parametrize(
    ("answer", "reference", "same"),
    [
        ("18", "18", True),
        ("18.0", "18", True),
        ("$1,080", "1080", True),
        ("0.5", "1/2", True),
        ("−3", "-3", True),
        ("-0", "0", True),
        ("50%", "50 %", True),
        ("50%", "0.5", True),
        ("50%", "50", True),
        ("50%", "5", False),
        ("50%", "0.5%", False),
        ("18", "-18", False),
        ("0.333333333333333333333333", "1/3", False),
        ("9007199254740993", "9007199254740992", False),
        ("", "", False),
        ("18", "", False),
        ("", "18", False),
    ],
)
def test_equal(answer: str, reference: str, same: bool) -> None:
    assert equal_texts(answer, reference) is same
    assert equal_texts(reference, answer) is same


def _renderings(value: Fraction) -> list[str]:
    """Notations of one number that must all read as it."""
    sign = "-" if value < 0 else ""
    numerator, denominator = abs(value.numerator), value.denominator
    texts = [
        f"{sign}{numerator}/{denominator}",
        f"{sign}{3 * numerator} / {3 * denominator}",
        f"{sign}{numerator:,}/{denominator:,}",
    ]
    # A decimal of d digits exists when the denominator divides 10**d.
    digits = next((d for d in range(20) if 10**d % denominator == 0), None)
    if digits is not None:
        scaled = str(numerator * 10**digits // denominator).zfill(digits + 1)
        whole, decimals = scaled[: len(scaled) - digits], scaled[len(scaled) - digits :]
        texts += [
            f"{sign}{whole}.{decimals}",
            f"{sign}{whole}.{decimals}00",
            f"{sign}{int(whole):,}.{decimals}",
            f"{sign}${whole}.{decimals}",
            rf"\${sign}{whole}.{decimals}",
            f"{sign}{whole}.{decimals} dollars",
            rf"{sign}{whole}.{decimals}\text{{ kg}}",
        ]
    if denominator == 1:
        texts += [f"{sign}{numerator}", f"{sign}{numerator:,}", f" {sign}00{numerator} "]
    texts += [text.replace("-", "−") for text in texts if sign]
    texts += ["+" + text for text in texts if not sign and text[0].isdigit()]
    return texts


_integers = st.integers(-(10**15), 10**15)
_values = st.one_of(
    _integers.map(Fraction),
    st.builds(Fraction, _integers, st.integers(1, 10**6)),
    st.builds(lambda n, d: Fraction(n, 10**d), _integers, st.integers(0, 12)),
)


@given(_values)
def test_every_notation_of_a_number_is_equal(value: Fraction) -> None:
    for text in _renderings(value):
        assert parse_number(text) == Number(value, percent=False), text


@given(_values, st.one_of(_values, st.sampled_from([Fraction(1, 10**9), Fraction(1)])), st.data())
def test_numbers_are_equal_only_to_themselves(
    value: Fraction, other: Fraction, data: st.DataObject
) -> None:
    for second in (other, value + other):
        left = data.draw(st.sampled_from(_renderings(value)))
        right = data.draw(st.sampled_from(_renderings(second)))
        assert equal_texts(left, right) is (value == second)


@given(st.text(), st.text(alphabet="0123456789.,/-+$% \\−", max_size=120))
def test_no_text_raises(first: str, second: str) -> None:
    for text in (first, second):
        number = parse_number(text)
        assert number is None or isinstance(number.value, Fraction)
    assert equal_texts(first, second) is equal_texts(second, first)
