"""The layer below `exact/`: math-verify's LaTeX parser and sympy, if installed.

`pip install math-verify` brings both. Only its LaTeX parser is used, never its parser of plain
expressions, which runs text as code. Numbers are read here, exactly (its own way runs each through
Python's parser as a float), and values are compared without tolerance: 0.333333 is not 1/3.

An expression is refuted by its value at fixed points, to 60 digits, and accepted only by sympy's
proof that the difference is zero. There are no time limits here: whoever calls this has a deadline
and ends the process. `refusable` texts are never given to sympy.
"""

from __future__ import annotations

import importlib.util
import re
from fractions import Fraction
from functools import lru_cache
from typing import Any

from rft_jax.verification.exact.structures import every
from rft_jax.verification.exact.units import words

MAX_CHARACTERS = 160
MAX_BRACKETS = 16
"""Reading what latex2sympy has not met takes up to 10 ms a character, and longer in brackets."""
MAX_DEPTH = 12
MAX_DEGREE = 200
"""Largest product of the exponents that stand around one another."""
MAX_CALLS = 12
MAX_NESTED = 3
"""Deepest nesting of functions, roots and exponents."""
MAX_NODES = 90
"""Largest tree of a difference that sympy is asked to simplify."""
MAX_ITEMS = 8
"""Most items of sets that are compared in any order."""
DIGITS = 60
"""Precision to which differences are computed."""
WORKING_DIGITS = 120
"""Of the letters' values."""
SEEN = 1e-30
"""Size from which a difference is taken for one."""
_POINTS = ((1, 2), (-1, 3), (2, 5))
"""Start and step of the values of the letters at a point, positive, negative, positive."""
_GENERATORS = 12
"""Numbers of symbols for which `warm_up` has sympy build its polynomial routines."""

_LARGE = re.compile(
    r"""
    [0-9]{40}                                       # a huge number
  | \^\s*(?:[0-9]+|\{[^{}]*[0-9)]\s*\}|\([^()]*\))\s*\^  # a tower of powers
  | \^\s*[{(][^a-zA-Z{}]*\^ | \^\s*[{(][^{}]*(?:!|binom|floor|ceil)  # and one in braces
  | \^\s*\{?\s*[-+(]*\s*[0-9]{4}                    # a huge exponent
  | [0-9]{3}\s*! | !\s*!                            # a large factorial, or one of one
  | [)}\]]\s*!                                      # and one of what has to be computed first
  | binom\s*\{[^{}]*(?:[0-9]{3}|[{!^])              # a large binomial
  | (?:-\s*){4}                                     # signs without end
    """,
    re.VERBOSE,
)
_SMALL_FACTORIAL = re.compile(r"\((?:[a-z]|(?<![0-9])[0-9]{1,2}(?![0-9])|[-+\s]){1,12}\)\s*!")
_REFUSED = re.compile(
    r"""
    [^\x20-\x7e]                                    # not ASCII
  | (?<![a-zA-Z\\])(?:or|and|not|nan|inf|oo|zoo)(?![a-zA-Z])
  | \{\s*(?:or|and)\s*\}                            # lists are for the layer above
  | [0-9][a-zA-Z]+\s*[0-9]                          # 12a3
  | (?<![_0-9])[0-9]+(?:\s|\\[,;:!]|\\\ |~|\\q?quad)+[0-9]   # 5 6, and cycles
  | [A-Z]\s*\^\s*\{?\s*(?:[TH*](?![a-zA-Z])|\\(?:top|dagger|intercal|ast|star))  # a transpose
  | \\(?:frac\s*\{?d|circ\s*[a-z])                  # a derivative, a composition
  | ['"`@\#?;:$]                                   # 12:00 is no quotient
  | /\s*(?:[0-9.]+|[a-zA-Z])\s*[a-zA-Z\\(]          # 1/2x
  | (?<![\\a-zA-Z])[a-zA-Z][0-9]                    # x2
  | [0-9]\s*_                                       # a base, which latex2sympy drops
  | ^[-0-9.\s]*,[-0-9,.\s]*$                        # lists of numbers
  | ^[a-zA-Z\s]{2,}$ | \\text                          # words too
    """,
    re.VERBOSE,
)
_CALLS = r"\\(?:sqrt|(?:arc)?(?:sin|cos|tan|cot|sec|csc)h?|ln|log|exp)(?![a-z])"
_SIZES = re.compile(
    r"[({\[]|[)}\]]|\^\s*\{?\s*-?([0-9]+)\}?"
    rf"|\^(?=\s*[({{])|{_CALLS}(?=\s*(?:\^\s*\{{?[0-9]*\}}?|\\left)?\s*(?:[({{\[]|{_CALLS}))"
)
_DEGREES = re.compile("sin|cos|tan|cot|sec|csc")


_KNOWN = words(
    "frac dfrac tfrac cfrac sqrt binom sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh "
    "ln log exp pi alpha beta gamma delta epsilon varepsilon zeta eta theta kappa lambda mu nu xi "
    "rho sigma tau phi varphi chi psi omega Gamma Delta Theta Lambda Sigma Phi Psi Omega infty "
    "left right cdot times div le leq ge geq lt gt ne neq pm mp cup cap in bigl bigr "
    "begin end lbrace rbrace lvert rvert lfloor rfloor lceil rceil circ degree mathrm operatorname "
    "emptyset varnothing quad displaystyle ell prime max min"
)
"""Commands whose meaning latex2sympy knows; others it reads as letters, or not at all."""
_SINGLE_LETTER = re.compile(r"(?<![a-zA-Z])[a-zA-Z](?![a-zA-Z])")


def available() -> bool:
    """Whether math-verify is installed."""
    return importlib.util.find_spec("math_verify") is not None


def too_large(text: str) -> bool:
    """Whether computing what a text says may take too long; seen before anything is computed."""
    if len(text) > MAX_CHARACTERS or _LARGE.search(_SMALL_FACTORIAL.sub("n!", text)):
        return True
    brackets = sum(map(text.count, "([{|"))
    return brackets > MAX_BRACKETS or len(re.findall(_CALLS, text)) > MAX_CALLS or _grows(text)


def refusable(text: str) -> bool:
    """Whether a text is not given to sympy: it may take too long, or math-verify misreads it."""
    if too_large(text) or _REFUSED.search(text):
        return True
    if not _KNOWN.issuperset(re.findall(r"\\([a-zA-Z]+)", text)):
        return True
    return "circ" in text and bool(_DEGREES.search(text))  # latex2sympy drops degrees


def _grows(text: str) -> bool:
    """Whether brackets, the exponents around one another, or calls in calls are over the bounds."""
    degrees, calls, waiting = [1], [0], 0  # of each open bracket; calls that await their argument
    last = 1
    for token in _SIZES.finditer(text):
        mark = token[0]
        if mark[0] == "^" and token[1]:
            last = last * max(1, int(token[1]))
            degrees[-1] = max(degrees[-1], last)
        elif mark[0] in "^\\":
            waiting += 1
        elif mark in "({[":
            degrees.append(1)
            calls.append(calls[-1] + waiting)
            waiting = 0
        elif len(degrees) > 1:
            last = degrees.pop()
            degrees[-1] = max(degrees[-1], last)
            calls.pop()
            continue
        if not token[1]:
            last = 1
        if len(degrees) > MAX_DEPTH or last > MAX_DEGREE or calls[-1] + waiting > MAX_NESTED:
            return True
    return False


def symbolically_equal(answer: str, reference: str) -> bool | None:
    """Whether sympy shows two LaTeX texts to be equal or unequal; None where it shows neither."""
    if refusable(answer) or refusable(reference):
        return None
    expected = _read_reference(reference)
    stated = None if expected is None else _read(answer)
    if stated is None:
        return None
    try:
        return _same(stated, expected)
    except Exception:  # sympy raises whatever it likes on what it cannot do
        return None


def warm_up() -> None:
    """Import all that reading and comparing import, and have sympy build what it builds once.

    Its routines for polynomials are code built from templates (no model's text in it), once for
    each number of symbols.
    """
    from sympy.polys.monomials import MonomialOps

    for count in range(1, _GENERATORS + 1):
        operations = MonomialOps(count)
        for name in ("mul", "pow", "mulpow", "ldiv", "div", "lcm", "gcd"):
            getattr(operations, name)()
    for answer, reference in (
        (r"\tan^2(y)+1", r"\sec^2(y)"),
        (r"\sqrt{3+2\sqrt{2}}", r"1+\sqrt{2}"),
        (r"e^{i\pi}", "-1"),
        (r"\log_3 4", r"\frac{\ln 4}{\ln 3}"),
        (r"\begin{pmatrix}1&2\\3&x\end{pmatrix}", r"\begin{pmatrix}1&2\\3&y\end{pmatrix}"),
        (r"(1,2]\cup[3,4)", r"[3,4)\cup(1,2]"),
        (r"\{1,\sqrt{2}\}", r"\{\sqrt{2},1\}"),
        ("x^2+y^2=1", r"\frac{x^2}{2}+\frac{y^2}{2}=\frac{1}{2}"),
        ("x^2>4", "4<x^2"),
    ):
        symbolically_equal(answer, reference)


@lru_cache(maxsize=1)
def _converter() -> tuple[Any, Any]:
    """latex2sympy's module, and its converter with an exact reader of numbers."""
    from latex2sympy2_extended import latex2sympy2

    class Exact(latex2sympy2._Latex2Sympy):  # type: ignore[misc]
        def parse_number(self, text: str) -> Any:
            number = Fraction(text.replace(",", ""))
            return latex2sympy2.Rational(number.numerator, number.denominator)

    return latex2sympy2, Exact


@lru_cache(maxsize=1024)
def _read_reference(text: str) -> Any:
    return _read(text)


def _read(text: str) -> Any:
    """What latex2sympy makes of a text, or None."""
    library, converter = _converter()
    config = library.NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none"
    )
    try:
        normal = library.normalize_latex(text, config)
        if refusable(normal):
            return None
        complex_numbers = "i" in _SINGLE_LETTER.findall(normal)
        settings = library.ConversionConfig(lowercase_symbols=False)
        value = converter({}, not complex_numbers, False, settings).parse(normal)
        if complex_numbers:
            value = value.subs(library.get_symbol("i", False), library.sympy.I)
        value = value.doit()
        infinite = (library.sympy.nan, library.sympy.zoo)
        return None if value.has(*infinite) else value
    except Exception:  # antlr and latex2sympy raise plain Exceptions
        return None


def _same(stated: Any, expected: Any) -> bool | None:
    """Compare by kind, part by part; values by `_equal_values`."""
    from sympy import Eq, FiniteSet, Interval, MatrixBase, Tuple

    if isinstance(stated, Eq) or isinstance(expected, Eq):
        return _equations(stated, expected)
    if isinstance(stated, MatrixBase) and isinstance(expected, MatrixBase):
        return stated.shape == expected.shape and _all(list(stated), list(expected))
    if isinstance(stated, Interval) and isinstance(expected, Interval):
        if (stated.left_open, stated.right_open) != (expected.left_open, expected.right_open):
            return False
        return _all([stated.start, stated.end], [expected.start, expected.end])
    if isinstance(stated, Tuple) and isinstance(expected, Tuple):
        return _all(list(stated), list(expected))
    if isinstance(stated, FiniteSet) and isinstance(expected, FiniteSet):
        return _any_order(list(stated.args), list(expected.args))
    if _is_value(stated) and _is_value(expected):
        return _equal_values(stated, expected)
    if _is_value(stated) != _is_value(expected):
        return None
    return True if stated == expected else None


def _equations(stated: Any, expected: Any) -> bool | None:
    """x = 5 is 5; two equations are the same up to a constant factor."""
    from sympy import Eq

    if not isinstance(stated, Eq) or not isinstance(expected, Eq):
        equation, other = (stated, expected) if isinstance(stated, Eq) else (expected, stated)
        return _same(equation.rhs, other) if equation.lhs.is_Symbol else None
    if stated.lhs == expected.lhs:
        return _same(stated.rhs, expected.rhs)
    sides = (stated.lhs, stated.rhs, expected.lhs, expected.rhs)
    if not all(_is_value(side) for side in sides):
        return None
    over, under = stated.lhs - stated.rhs, expected.lhs - expected.rhs
    if over == 0 or under == 0:
        return None
    if _is_heavy(over / under):
        return None
    ratio = (over / under).simplify()
    return True if ratio.is_number and ratio.is_finite and not ratio.is_zero else None


def _is_value(stated: Any) -> bool:
    from sympy import Expr

    return isinstance(stated, Expr) and not stated.is_Matrix


def _all(stated: list[Any], expected: list[Any]) -> bool | None:
    if len(stated) != len(expected):
        return False
    return every([_same(one, other) for one, other in zip(stated, expected, strict=True)])


def _any_order(stated: list[Any], expected: list[Any]) -> bool | None:
    """Whether each of one is in the other."""
    if max(len(stated), len(expected)) > MAX_ITEMS:
        return None
    table = [[_same(one, other) for other in expected] for one in stated]
    lines = [*table, *map(list, zip(*table, strict=True))]
    if any(all(verdict is False for verdict in line) for line in lines):
        return False
    return True if all(True in line for line in lines) else None


def _equal_values(stated: Any, expected: Any) -> bool | None:
    """Unequal when the difference is seen at a point; equal when sympy shows it to be zero."""
    if stated == expected:
        return True
    difference = stated - expected
    if difference == 0:
        return True
    if difference.is_Rational:
        return False
    differ = _differ(stated, expected)
    if differ is not False:
        return False if differ else None
    if _is_heavy(difference):
        return None
    from sympy import simplify

    return True if simplify(difference) == 0 else None


def _is_heavy(value: Any) -> bool:
    from sympy import preorder_traversal

    return sum(1 for _ in preorder_traversal(value)) > MAX_NODES


def _differ(stated: Any, expected: Any) -> bool | None:
    """Whether two values are clearly different at one of `_POINTS`, or as they stand; None where
    no point tells.

    Where one of them is not real, such as the logarithm of a negative number, none is: whoever
    wrote it did not mean that point.
    """
    from sympy import Float, I, Rational

    symbols = sorted(stated.free_symbols | expected.free_symbols, key=str)
    means_complex = stated.has(I) or expected.has(I)
    verdict = None
    for start, step in _POINTS if symbols else _POINTS[:1]:
        point = {  # no exact rationals: powers of them grow without bound
            symbol: Float(Rational(start * (3 + step * place), 7 + place), WORKING_DIGITS)
            for place, symbol in enumerate(symbols)
        }
        first, second = (side.xreplace(point).evalf(DIGITS) for side in (stated, expected))
        if not means_complex and not (first.is_real and second.is_real):
            continue
        difference = (first - second).evalf(DIGITS)
        if difference.is_number and difference.is_finite:
            if abs(difference) > SEEN:
                return True
            verdict = False
    return verdict
