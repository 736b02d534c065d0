"""Splits LaTeX or plain mathematics into tokens: pairs of a kind and a text.

Spacing and sizes (`\\,`, `\\left`) are dropped, and notations that mean the same become one token:
`\\cdot`, `\\times` and `×` are `*`. Anything unknown is refused (`Unreadable`), Unicode digits too.
"""

from __future__ import annotations

import re

from rft_jax.verification.exact.algebra import Unreadable
from rft_jax.verification.exact.functions import NAMES
from rft_jax.verification.exact.notation import spelled
from rft_jax.verification.exact.units import ATTACHED, LETTERS, is_measure, is_unit, words

MAX_TOKENS = 1_000

Token = tuple[str, str]
"""(kind, text): a text has what is a number, name, function, index or words; else it is empty."""

END: Token = ("end", "")

_TOKEN = re.compile(
    r"""
    (?P<space>[ \t\r\n~]+ | \\[,!;:\ ] | \\q?quad(?![a-zA-Z])
      | \\(?:left|right|[bB]igg?[lr]?|displaystyle|textstyle|limits)(?![a-zA-Z]))
  | (?P<thousands>[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?)
  | (?P<number>[0-9]{1,3}(?:(?:\{,\\?!?\}|,?\\!|,\\,|\\,)\ ?[0-9]{3})+(?![0-9])(?:\.[0-9]+)?
      | [0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,3}(?![0-9A-Za-z.]))? | \.[0-9]+)
  | (?P<fraction>\\(?:[cdt]|nice|s|x)?(?P<two>frac|binom)\s*(?P<over>[0-9])\s*
      (?P<under>[0-9](?![0-9])|(?=\{)))
  | (?P<text>\\(?:text(?:bf|it|rm|normal|sf)?|mbox|mathrm|mathbf|mathit|mathsf|operatorname|rm)\s*
      \{(?P<words>[^{}\\$]*)\}(?:\s*\^\s*\{?[23]\}?)?)
  | (?P<field>\\mathbb\s*\{?[A-Z]\}?)
  | (?P<matrix>\\(?P<edge>begin|end)\s*\{
      (?P<shape>(?:small|[bBpvV])?matrix|array|cases)\}(?:\{[clr|]*\})?)
  | (?P<command>\\[a-zA-Z]+)
  | (?P<escaped>\\[\\{}%$])
  | (?P<letters>[a-zA-Z]+)
  | (?P<index>_\s*(?:\{\s*(?P<long>[A-Za-z0-9]+)\s*\}|(?P<short>[A-Za-z0-9])))
  | (?P<symbol><=|>=|!=|\*\*|[-+*/^!()\[\]{}|,;:&%$=<>])
    """,
    re.VERBOSE,
)
_GREEK = words(
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi "
    "rho sigma tau upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega"
    " ell"
)
_COMMANDS: dict[str, Token] = {
    command: (kind, "")
    for kind, commands in {
        "*": "cdot times ast", "/": "div", "<=": "le leq leqslant", "<": "lt", ">": "gt",
        ">=": "ge geq geqslant", "!=": "ne neq", ":": "colon", "%": "percent", "in": "in",
        "frac": "frac dfrac tfrac cfrac nicefrac sfrac xfrac", "binom": "binom dbinom tbinom",
        "(": "langle", ")": "rangle", "[": "lbrack", "]": "rbrack", "{{": "lbrace", "}}": "rbrace",
        "|": "lvert rvert vert mid", "floor": "lfloor", "end floor": "rfloor", "ceil": "lceil",
        "end ceil": "rceil", "infinity": "infty", "pm": "pm", "mp": "mp", "approx": "approx",
        "cup": "cup", "and": "land wedge", "or": "lor vee", "degree": "degree",
        "mark": "angle measuredangle triangle overline vec overrightarrow hat widehat",
    }.items()
    for command in commands.split()
} | {
    "pi": ("name", "π"), "imath": ("name", "i"), "emptyset": ("name", "∅"),
    "varnothing": ("name", "∅"), "sqrt": ("sqrt", "latex"),
}  # fmt: skip
_ESCAPED: dict[str, Token] = {
    r"\{": ("{{", ""), r"\}": ("}}", ""), r"\%": ("%", ""), r"\$": ("$", ""), r"\\": ("row", ""),
}  # fmt: skip
_WORDS: dict[str, Token] = {
    "sqrt": ("sqrt", "plain"), "pi": ("name", "π"), "and": (",", "and"), "or": (",", "or"),
    "infinity": ("infinity", ""), "percent": ("%", ""), "pct": ("%", ""), "percentage": ("%", ""),
}  # fmt: skip
_SYMBOLS: dict[str, Token] = {
    symbol: (symbol, "") for symbol in (*"-+*/^!()[]{}|,;:&%$=<>", "<=", ">=", "!=")
} | {"**": ("^", "")}  # fmt: skip
_WORD_TEXT = re.compile(r"\s*[A-Za-z][A-Za-z .\-/']*")
_LETTER_TEXT = re.compile(r"\s*\(?\s*([A-Za-z])\s*\)?\s*\.?\s*")


def tokens_of(text: str) -> list[Token]:
    """The tokens of a text, END last."""
    text = spelled(text)
    tokens: list[Token] = []
    at = depth = 0
    for match in _TOKEN.finditer(text):
        if match.start() != at:
            raise Unreadable
        at = match.end()
        kind = match.lastgroup
        # The last group that took part is the outer one: it closes last.
        if kind == "space":
            continue
        if kind == "symbol":
            token = _SYMBOLS[match[0]]
            if token[0] in "([":
                depth += 1
            elif token[0] in ")]":
                depth -= 1
            tokens.append(token)
        elif kind == "number":
            number = match[0]
            plain = number if number.isdigit() else re.sub(r"[^0-9.eE+-]", "", number)
            tokens.append(("number", plain))
        elif kind == "letters":
            _add_letters(match[0], tokens)
        elif kind == "command":
            _add_command(match[0][1:], tokens)
        elif kind == "thousands":
            _add_thousands(match[0], depth, tokens)
        elif kind == "escaped":
            tokens.append(_ESCAPED[match[0]])
            depth += {r"\{": 1, r"\}": -1}.get(match[0], 0)
        elif kind == "text":
            _add_text(match["words"], tokens)
        elif kind == "fraction":
            digit = [("{", ""), ("number", match["over"]), ("}", "")]
            under = [("{", ""), ("number", match["under"]), ("}", "")] if match["under"] else []
            tokens += [(match["two"], ""), *digit, *under]
        elif kind == "index":
            _add_index(match["long"] or match["short"], tokens)
        elif kind == "field":
            tokens.append(("name", match[0][-2:].strip("{}")[-1] * 2))
        else:
            shape = match["shape"]
            kind = {"cases": "cases", "array": "", "smallmatrix": ""}.get(shape, shape[0])
            tokens.append(("matrix", match["edge"] + kind))
    if at < len(text) or len(tokens) > MAX_TOKENS:
        raise Unreadable
    tokens.append(END)
    return tokens


def _add_letters(word: str, tokens: list[Token]) -> None:
    if len(word) == 1 and word != "U":
        tokens.append(("name", word))
    elif word in NAMES:
        tokens.append(("function", word))
    elif word == "U" and tokens and tokens[-1][0] in (")", "]", "}}"):
        tokens.append(("cup", ""))
    elif word in _WORDS:
        tokens.append(_WORDS[word])
    elif is_measure(word) if len(word) > 3 else word in ATTACHED:
        tokens.append(("text", word))
    elif len(word) == 1:
        tokens.append(("name", word))
    elif len(word) <= 3:
        # Only a sign beside them makes them factors: see `_Reader._part`.
        tokens += [("run", word), *(("name", letter) for letter in word)]
    else:
        tokens.append(("words", word))


def _add_command(name: str, tokens: list[Token]) -> None:
    token = _COMMANDS.get(name)
    if token is None:
        if name in NAMES:
            token = ("function", name)
        elif name in _GREEK:
            token = ("name", "\\" + name)
        else:
            raise Unreadable
    tokens.append(token)


def _add_thousands(text: str, depth: int, tokens: list[Token]) -> None:
    """`1,000` is a number, but within brackets a comma separates: `(1,100)` is a pair."""
    if depth <= 0:
        tokens.append(("number", text.replace(",", "")))
        return
    first, *rest = text.split(",")
    tokens.append(("number", first))
    for group in rest:
        if group[0] == "0":  # `(1,000)`: neither a pair nor surely a number
            raise Unreadable
        tokens += [(",", ""), ("number", group)]


def _add_text(text: str, tokens: list[Token]) -> None:
    """`\\text{...}`: a separator, a letter, a unit, or other words."""
    plain = text.strip(" ,")
    if plain in NAMES:
        tokens.append(("function", plain))
        return
    if plain in _WORDS:
        tokens.append(_WORDS[plain])
        return
    if tokens and tokens[-1] == ("&", "") and plain in ("if", "for", "when", "where"):
        return
    letter = _LETTER_TEXT.fullmatch(text)
    measured = tokens and tokens[-1][0] in ("number", "}", ")")
    per = len(tokens) > 1 and tokens[-1][0] == "/" and tokens[-2][0] == "text"
    if letter and letter[1] in LETTERS and (measured or per):
        tokens.append(("text", letter[1]))
    elif letter:
        tokens.append(("name", letter[1]))
    elif is_unit(plain):
        tokens.append(("text", " ".join(plain.split())))
    elif _WORD_TEXT.fullmatch(text):
        tokens.append(("words", " ".join(plain.split())))
    elif plain:
        raise Unreadable


def _add_index(index: str, tokens: list[Token]) -> None:
    if not tokens:
        raise Unreadable
    kind, text = tokens[-1]
    if kind == "name" and "_" not in text:
        tokens[-1] = ("name", f"{text}_{index}")
    elif kind == "number" and index.isdigit():
        tokens.append(("base", index))
    elif (kind, text) == ("function", "log"):
        tokens.append(("index", index))
    else:
        raise Unreadable
