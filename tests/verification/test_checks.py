"""Calculations marked `<<a=b>>`, evaluated exactly."""

from __future__ import annotations

import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rft_jax.verification.checks import ends_with_answer, equations_hold, evaluate


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("48/2", Fraction(24)),
        ("1+2*3-4/2", Fraction(5)),
        ("-(2+3)*.5", Fraction(-5, 2)),
        ("1,000*$2", Fraction(2000)),
        ("20%*50", Fraction(10)),
        ("2--3", Fraction(5)),
        ("1/3", Fraction(1, 3)),
        ("5.", Fraction(5)),
        ("", None),
        ("1/0", None),
        ("2**3", None),
        ("2(3)", None),
        ("(2", None),
        ("2)", None),
        ("x", None),
        ("__import__('os')", None),
        ("(" * 150, None),
        ("1+" * 150 + "1", None),
    ],
)
def test_values(text: str, value: Fraction | None) -> None:
    assert evaluate(text) == value


def _combined(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.builds("({}{}{})".format, inner, st.sampled_from("+-*/"), inner)


@given(st.recursive(st.integers(0, 99).map(str), _combined, max_leaves=8))
def test_python_agrees(text: str) -> None:
    try:
        # The text is made here of digits and four operators.
        value = eval(re.sub(r"\d+", r"Fraction(\g<0>)", text))
    except ZeroDivisionError:
        value = None
    assert evaluate(text) == value


@given(st.text(alphabet="0123456789+-*/()<>=., $%x\n"))
def test_no_text_raises(text: str) -> None:
    equations_hold(text)
    ends_with_answer(text)


@pytest.mark.parametrize(
    ("output", "holds"),
    [
        ("no mark", True),
        ("<<48/2=24>>24 and <<24+1=25>>25", True),
        ("<<48/2=24>>24 and <<24+1=26>>26", False),
        ("<<1/3=0.33>>", False),
        ("<<5=5=5>>", True),
        ("<<5>>", False),
        ("<<5=x>>", False),
    ],
)
def test_equations(output: str, holds: bool) -> None:
    assert equations_hold(output) is holds


@pytest.mark.parametrize(
    ("output", "ends"),
    [
        ("#### 5", True),
        ("#### 5\n\n", True),
        ("#### 5\nBye.", False),
        (r"so $\boxed{\frac{1}{2}}$.", True),
        (r"so \boxed{5} apples", False),
        ("<answer>5</answer>", True),
        ("<answer>5</answer> Bye", False),
        ("5", False),
        (r"\boxed{5", False),
    ],
)
def test_ends_with_answer(output: str, ends: bool) -> None:
    assert ends_with_answer(output) is ends
