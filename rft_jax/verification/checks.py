"""Checks of an output beside its answer: are its calculations right, does it end in its answer?

A calculation is marked `<<48/2=24>>`, as in GSM8K. Its sides are evaluated exactly, by the parser
below: digits, decimals and + - * / ( ) only; no text ever reaches Python's own.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

Check = Callable[[str], bool]
"""(output) -> whether it passes."""

MAX_CHARACTERS = 200
"""Longest calculation read; a longer one is not valid."""
MAX_PARENTHESES = 20
"""Most parentheses opened in it, which bounds the parser's recursion."""

_MARKED = re.compile(r"<<([^<>\n]*)>>")
_TOKENS = re.compile(r"\s*(?:([0-9]+(?:,[0-9]{3})*(?:\.[0-9]*)?|\.[0-9]+)(%?)|([-+*/()]))")
_CURRENCY = re.compile(r"\\?\$")


class _InvalidError(ValueError):
    """The text is no calculation."""


def equations_hold(output: str) -> bool:
    """Whether every `<<a=b>>` of the output is exactly true (`1/3=0.33` is not)."""
    return all(_holds(match.group(1)) for match in _MARKED.finditer(output))


def ends_with_answer(output: str) -> bool:
    r"""Whether nothing but white space and a full stop follows the last answer, whatever its form:
    a `####` line, `\\boxed{...}` or `</answer>`."""
    text = output.rstrip()
    marker = text.rfind("####")
    if marker >= 0 and "\n" not in text[marker:]:
        return True
    return text.rstrip(".$").endswith("</answer>") or _ends_in_box(text.rstrip(".$ "))


CHECKS: dict[str, Check] = {"equations": equations_hold, "ends_with_answer": ends_with_answer}


def evaluate(text: str) -> Fraction | None:
    """The exact value of a calculation, or None when it is none (or divides by zero)."""
    if len(text) > MAX_CHARACTERS or text.count("(") > MAX_PARENTHESES:
        return None
    try:
        tokens = _tokens(_CURRENCY.sub("", text))
        value = _sum(tokens)
    except (_InvalidError, ZeroDivisionError):
        return None
    return None if tokens else value


def _holds(equation: str) -> bool:
    sides = equation.split("=")
    values = [evaluate(side) for side in sides]
    return len(sides) > 1 and None not in values and len(set(values)) == 1


_Token = Fraction | str


def _tokens(text: str) -> list[_Token]:
    """The tokens of a calculation, the first one last."""
    tokens: list[_Token] = []
    position = 0
    text = text.rstrip()
    while position < len(text):
        match = _TOKENS.match(text, position)
        if match is None:
            raise _InvalidError
        number, percent, operator = match.groups()
        if operator:
            tokens.append(operator)
        else:
            value = Fraction(number.replace(",", "").rstrip("."))
            tokens.append(value / 100 if percent else value)
        position = match.end()
    return tokens[::-1]


# Each of these takes its tokens off the end of the list.


def _sum(tokens: list[_Token]) -> Fraction:
    value = _product(tokens)
    while tokens and tokens[-1] in ("+", "-"):
        sign = 1 if tokens.pop() == "+" else -1
        value += sign * _product(tokens)
    return value


def _product(tokens: list[_Token]) -> Fraction:
    value = _factor(tokens)
    while tokens and tokens[-1] in ("*", "/"):
        value = value * _factor(tokens) if tokens.pop() == "*" else value / _factor(tokens)
    return value


def _factor(tokens: list[_Token]) -> Fraction:
    token = tokens.pop() if tokens else ")"
    if isinstance(token, Fraction):
        return token
    if token in ("+", "-"):
        return _factor(tokens) if token == "+" else -_factor(tokens)
    if token != "(":
        raise _InvalidError
    value = _sum(tokens)
    if not tokens or tokens.pop() != ")":
        raise _InvalidError
    return value


def _ends_in_box(text: str) -> bool:
    start = max(text.rfind("\\boxed{"), text.rfind("\\fbox{"))
    depth = 0
    for position in range(start, len(text)) if start >= 0 else ():
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if text[position] == "}" and depth == 0:
            return position == len(text) - 1
    return False
