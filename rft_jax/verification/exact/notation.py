r"""One spelling for what LaTeX, Unicode and English spell in several ways.

`spelled` is for the reader of expressions (`\nicefrac` and `¾`, `\mathbb R`, `is at least`), `flat`
for that of numbers and of plain text, where no LaTeX is left around words.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

_UNICODE = str.maketrans(
    {
        "–": "-", "×": "*", "·": "*", "⋅": "*", "∙": "*", "÷": "/", "√": " sqrt ", "：": ":",
        "π": r"\pi ", "∞": r"\infty ", "≤": "<=", "≥": ">=", "≠": "!=", "±": r"\pm ", "∓": r"\mp ",
        "⩽": "<=", "⩾": ">=", "（": "(", "）": ")", "，": ",", "；": ";", "。": ".", "％": "%",
        "∪": r"\cup ", "∈": r"\in ", "≈": r"\approx ", "∅": r"\emptyset ", "θ": r"\theta ",
        "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ", "λ": r"\lambda ", "⟨": r"\langle ",
        "⟩": r"\rangle ", "∠": r"\angle ", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}",
        "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}", "—": "-", "¢": " cents",
    }
    | dict.fromkeys("−‐‑﹣－", "-") | dict.fromkeys("\u00a0\u2009\u202f\u3000", " ") | {"＋": "+"}
    | {
        sign: rf"\frac{{{over}}}{{{under}}}"
        for sign in "¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"
        for over, under in [unicodedata.normalize("NFKC", sign).split("\u2044")]
    }
)  # fmt: skip
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻₀₁₂₃₄₅₆₇₈₉", "0123456789-0123456789")
_SCRIPTS = re.compile("([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)|([₀-₉]+)")

_TEXT = r"\\(?:text(?:bf|it|rm|normal|sf)?|mbox|mathrm|mathbf|mathit|operatorname|rm)\s*"
_FLAT_TEXT = rf"{_TEXT}\{{((?:[^{{}}\\$]|\{{[^{{}}]*\}}|\\[,;: ]|\\cdot)*)\}}"
_NAMES = ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
BASES = {name: str(base) for base, name in enumerate(_NAMES, 2)} | {"sixteen": "16"}
_CONDITION = (  # says of which letters a formula holds, and sets them no condition
    r"(?:for|where|with)\b(?:\b(?:any|all|every|each|some|an?|the|real|integers?|constants?|arbitrary|"
    r"numbers?|values?|of|is|are|and|[a-zA-Z])\b|[\s,.}$]|\\in(?![a-z])|\\text\s*\{|\\[,; ]|"
    r"\\mathbb\s*\{?Z)*$"
)
_ANY_LETTERS = rf"(?<=\S)[\s,]*(?:\\[,;: ]|\\q?quad)*\s*(?:\\text\s*\{{\s*|\b){_CONDITION}"
_PHRASES = tuple(
    (needle, re.compile(rf"(?:\\text\s*\{{\s*)?\b(?:is )?(?:{words})(?=[^a-z])\s*\}}?"), sign)
    for needle, words, sign in (
        ("than", "greater than or equal to|no(?:t)? (?:less|smaller) than", " >= "),
        ("than", "(?:less|smaller) than or equal to|no(?:t)? (?:more|greater|larger) than", " <= "),
        ("than", "(?:strictly )?(?:greater|more|larger|bigger) than", " > "),
        ("than", "(?:strictly )?(?:less|smaller|fewer) than", " < "),
        ("least", "at least", " >= "), ("most", "at most", " <= "),
        ("equal", "not equal to", " != "), ("equal", "equals|equal to", " = "),
    )
)  # fmt: skip
# (what a text has in it, pattern, replacement): each once, in this order.
_DOUBLED = re.compile(r"(?:[^\\]|\\\\(?=[a-zA-Z{},]))*")
_RULES: tuple[tuple[str, re.Pattern[str], str], ...] = tuple(
    (needle, re.compile(pattern), replacement)
    for needle, pattern, replacement in (
        ("\\\\", r"(?:\s*\\\\)+\s*$", ""),
        ("box", r"\\(?:boxed|fbox|framebox)\s*(?=\{)", ""),
        ("over", r"\{((?:[^{}]|\{[^{}]*\})*)\\over(?![a-z])((?:[^{}]|\{[^{}]*\})*)\}",
                 r"\\frac{\1}{\2}"),
        ("over", r"^([^{}]*)\\over(?![a-z])([^{}]*)$", r"\\frac{\1}{\2}"),
        ("\\", r"\\(?:(?:text)?color\s*\{\w+\}|underline|boldsymbol|bm|bf)(?![a-zA-Z])", ""),
        ("\\text{", r"\\text\s*\{\s*-\s*\}", "-"),
        (r"\in", r"(?<=\S),\s*(?:\\[,;: ]|\\q?quad)*\s*[a-z]\s*\\in\s*\\mathbb\s*\{?Z\}?$", ""),
        ("phantom", r"\\[hv]?phantom\s*\{[^{}]*\}", " "),
        ("for", _ANY_LETTERS, ""),
        ("where", _ANY_LETTERS, ""),
        (r"\begin{cases}", r"^\\begin\{cases\}([^&]*)\\end\{cases\}$", "\x1f\\1"),  # a system
        (r"\begin", r"\\(?:begin|end)\s*\{(?:align(?:ed|at)?|gather(?:ed)?|split)\*?\}", "\x1f"),
        ("frac", rf"\\[dt]?frac\s*\{{\s*{_FLAT_TEXT}(\^\{{?-?\d\}}?)?\s*\}}\s*"
                 rf"\{{\s*{_FLAT_TEXT}(\^\{{?-?\d\}}?)?\s*\}}", r"\\text{\1\2/\3\4}"),
        ("circ", r"\^\s*(?:\\circ(?![a-zA-Z])|\{\s*\\circ\s*\})", r"\\degree "),
        ("^", r"\s*\^\s*\{?\s*(?:\\(?:text|mathrm|rm)\s*)?\{?(st|nd|rd|th)\b\}{0,2}", r"\1"),
        ("R", r"\\(?:mathbf|mathds|mathrm|Bbb|reals)\s*\{?R\}?|\\(?:R|Reals|reals|Re)(?![a-zA-Z])"
              r"|\{\\(?:bf|Bbb|mathbb)\s+R\}", r"\\mathbb{R}"),
        ("eal", r"(?:\\text\s*\{\s*)?(?i:(?:the set of )?\b(?:all|the) real(?: number)?s)\b\s*\}?"
                r"(?!\s*[a-z])", r"\\mathbb{R}"),
        ("base", r"(?<=_\{)\\text\s*\{\s*base[ -]?\s*\}", ""),
        ("_", r"_\s*(?:\{\s*(\\text\w*\s*\{)?|\\text\w*\s*\{)\s*\(?\s*(?:base[ -])?\s*"
              r"([0-9]+|[a-z]{3,7})\s*\)?\s*\}(?(1)\s*\})", r"_{\2}"),
        (")", r"\(\s*(-?[0-9A-Z.]+)\s*\)\s*(?=_)", r"\1"),
    )
) + _PHRASES  # fmt: skip
_PLAIN_RULES = tuple(rule for rule in _RULES if "\\" not in rule[0])
_NO_BRACES = {ord(brace): None for brace in "{}"}
_INNER = re.compile(_FLAT_TEXT)
SPACE = re.compile(r"\\[,;:! ]|~|\\q?quad(?![A-Za-z])")
_DEGREES = re.compile(r"(?:\^\s*)?\\degree(?![A-Za-z])")
_GROUP = re.compile(r"(?<=[0-9])(?:\{,\\?!?\}|,\\!) *(?=[0-9]{3})")
_MIXED = re.compile(
    r"(?<=[0-9])\s*\\[dt]?frac\s*(?:\{([0-9]+)\}|([0-9]))\s*(?:\{([0-9]+)\}|([0-9]))"
)
_BLANKS = re.compile(r"[ \t]+")


@lru_cache(maxsize=4096)
def spelled(text: str) -> str:
    """A text in the spellings that the readers know."""
    if not text.isascii():
        text = text.translate(_UNICODE)
        text = _SCRIPTS.sub(_script, text.replace("°", r"\degree "))
    if "\\\\" in text and _DOUBLED.fullmatch(text):  # every command, as JSON writes them
        text = text.replace("\\\\", "\\")
    for needle, pattern, replacement in _RULES if "\\" in text else _PLAIN_RULES:
        if needle in text:
            text = pattern.sub(replacement, text)
    if "\x1f" in text:  # rows of aligned formulas
        rows = text.replace("\x1f", " ").replace("&", " ").split("\\\\")
        text = ", ".join(row.strip() for row in rows if row.strip())
    if "_{" in text:
        for word, base in BASES.items():
            text = text.replace(f"_{{{word}}}", f"_{{{base}}}")
    if "\\" in text:
        text = _INNER.sub(_plain_inner, text)
    return text.strip()


@lru_cache(maxsize=4096)
def flat(text: str) -> str:
    """A text without LaTeX's spaces and the commands around words."""
    text = spelled(text)
    if "\\" in text or "{" in text:
        text = _MIXED.sub(r" \1\2/\3\4", _GROUP.sub(",", text))
        text = _DEGREES.sub("°", text)
        text = SPACE.sub(" ", text.replace("\\!", ""))
        text = _INNER.sub(r" \1", text)
    return _BLANKS.sub(" ", text).strip()


def _script(match: re.Match[str]) -> str:
    return f"{'^' if match[1] else '_'}{{{match[0].translate(_RAISED)}}}"


def _plain_inner(match: re.Match[str]) -> str:
    inner = SPACE.sub(" ", match[1].replace("\\cdot", " ")).translate(_NO_BRACES)
    return rf"\text{{{inner}}}"
