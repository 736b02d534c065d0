"""Checks of an output beside its answer: are its calculations right, does it end in its answer?

A calculation is marked `<<48/2=24>>`, as in GSM8K. Its sides are evaluated exactly, by the parser
below: digits, + - * / ( ) and decimals, nothing else; no text is ever handed to Python's own.
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
    return all(_holds(found.group(1)) for found in _MARKED.finditer(output))


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
        value, position = _sum(tokens, 0)
    except (_InvalidError, ZeroDivisionError):
        return None
    return value if position == len(tokens) else None


def _holds(equation: str) -> bool:
    sides = equation.split("=")
    values = [evaluate(side) for side in sides]
    return len(sides) > 1 and None not in values and len(set(values)) == 1


_Token = Fraction | str


def _tokens(text: str) -> list[_Token]:
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
    return tokens


# Each function returns a value and the next position.


def _sum(tokens: list[_Token], position: int) -> tuple[Fraction, int]:
    value, position = _product(tokens, position)
    while position < len(tokens) and tokens[position] in ("+", "-"):
        sign = 1 if tokens[position] == "+" else -1
        term, position = _product(tokens, position + 1)
        value += sign * term
    return value, position


def _product(tokens: list[_Token], position: int) -> tuple[Fraction, int]:
    value, position = _factor(tokens, position)
    while position < len(tokens) and tokens[position] in ("*", "/"):
        is_product = tokens[position] == "*"
        factor, position = _factor(tokens, position + 1)
        value = value * factor if is_product else value / factor
    return value, position


def _factor(tokens: list[_Token], position: int) -> tuple[Fraction, int]:
    sign = 1
    while position < len(tokens) and tokens[position] in ("+", "-"):
        sign = -sign if tokens[position] == "-" else sign
        position += 1
    if position == len(tokens):
        raise _InvalidError
    token = tokens[position]
    if isinstance(token, Fraction):
        return sign * token, position + 1
    if token != "(":
        raise _InvalidError
    value, position = _sum(tokens, position + 1)
    if position == len(tokens) or tokens[position] != ")":
        raise _InvalidError
    return sign * value, position + 1


def _ends_in_box(text: str) -> bool:
    start = max(text.rfind("\\boxed{"), text.rfind("\\fbox{"))
    depth = 0
    for position in range(start, len(text)) if start >= 0 else ():
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if text[position] == "}" and depth == 0:
            return position == len(text) - 1
    return False
