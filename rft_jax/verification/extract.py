r"""Which answer an output states: the rules `hash`, `boxed`, `tagged` and `auto`.

Each is anchored: an answer counts only where it is stated in the rule's form, and there is no
fallback to the last number in the text, which a policy learns to exploit. (`lenient_last_number`
is just that; it is for evaluating the outputs of other models, and refused in training.)

An output that states two different answers states none. What follows the answer may be words that
state no other number. Every rule takes time linear in the text.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from rft_jax.verification.exact.numbers import NUMBER_WORDS, equal, parse_number

NO_ANSWER = "no answer"
TWO_ANSWERS = "two answers"
UNCLOSED = "unclosed answer"
TEXT_AFTER_ANSWER = "text after answer"

UNREAD = frozenset({NO_ANSWER, TWO_ANSWERS, UNCLOSED, TEXT_AFTER_ANSWER})
"""Reasons of an output that states no answer."""


class AnswerError(ValueError):
    """A reference states no answer."""


class Answer(NamedTuple):
    """What an output states: `text` as written, white space around it off, or None for `reason`."""

    text: str | None
    reason: str


Extraction = Callable[[str], Answer]

_NO_ANSWER = Answer(None, NO_ANSWER)

# Runs of four or more, so that a run of five is seen whole and is not taken for a marker.
_HASHES = re.compile(r"####+")
_LEAD = re.compile(r"(?:the )?(?:final )?answer(?: is)?\s*:?\s*", re.IGNORECASE)
_MATH_ENVIRONMENTS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"))
_NUMBERS = re.compile(r"[0-9]+(?:[.,/][0-9]+)*")
_WORDS = re.compile(r"[A-Za-z]+")


def hash_answer(text: str) -> Answer:
    """What the last `#### ANSWER` line states (GSM8K's form).

    A `####` line before it that states another number makes two answers; one that states no number
    is a heading. Numbers after the line, other than the answer's own, make it no final answer.
    """
    if text.count("####") == 0:
        return _NO_ANSWER
    ends = [match.end() for match in _HASHES.finditer(text) if match.end() - match.start() == 4]
    if not ends:
        return _NO_ANSWER
    line, _, rest = text[ends[-1] :].partition("\n")
    answer = unwrapped(line)
    if not answer:
        return _NO_ANSWER
    for end, following in itertools.pairwise(ends):
        earlier = unwrapped(text[end : following - 4].partition("\n")[0])
        if parse_number(earlier) is not None and not _same(earlier, answer):
            return Answer(None, TWO_ANSWERS)
    if rest and not rest.isspace() and _states_another_number(rest, answer):
        return Answer(None, TEXT_AFTER_ANSWER)
    return Answer(answer, "")


_BOX_TOKENS = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_OR_AFTER = re.compile(r"[\s$\])\\]*(?:or|and)[\s$(\[]*\\?[-−]?[0-9\\]", re.IGNORECASE)
_OR_BEFORE = re.compile(r"[0-9}]\s*[$)\]\\]*\s+or\s+[$(\[\\]*\s*$", re.IGNORECASE)


def boxed_answer(text: str) -> Answer:
    r"""What the last `\boxed{...}` states, braces nested to any depth; `\fbox` counts too.

    Boxes of different content are one list of answers, which is equal to a reference only if that
    is the same list.
    """
    boxes: list[tuple[int, int, int]] = []
    open_braces: list[tuple[bool, int, int]] = []
    for token in _BOX_TOKENS.finditer(text):
        mark = token.group()
        if mark == "}":
            if open_braces:
                is_box, start, inner = open_braces.pop()
                if is_box and not any(brace[0] for brace in open_braces[-1:]):
                    boxes.append((start, inner, token.start()))
        elif mark == "{" or len(mark) > 2:
            open_braces.append((len(mark) > 2, token.start(), token.end()))
    if any(is_box for is_box, _, _ in open_braces):
        return Answer(None, UNCLOSED)
    answer = _listed(text[inner:end] for _, inner, end in boxes)
    if answer is _NO_ANSWER:
        return answer
    start, _, end = boxes[-1]
    before, after = text[max(0, start - _BESIDE) : start], text[end + 1 : end + _BESIDE]
    # An alternative in a box of its own is in the list already.
    boxed_too = len(boxes) > 1 and "box" in before + after
    if not boxed_too and (_OR_AFTER.match(after) or _OR_BEFORE.search(before)):
        return Answer(None, TWO_ANSWERS)
    return answer


_MOST_ANSWERS = 8
"""An output that states more different answers than this states two."""
_BESIDE = 40
"""Characters before and after a box in which an alternative is looked for."""

_TAGS = re.compile(r"<(/?)answer>", re.IGNORECASE)


def tagged_answer(text: str) -> Answer:
    """What the last `<answer>...</answer>` states; different contents are a list, as for boxes."""
    contents: list[str] = []
    opened = -1
    for tag in _TAGS.finditer(text):
        if not tag.group(1):
            opened = tag.end()
        elif opened >= 0:
            contents.append(text[opened : tag.start()])
            opened = -1
    return _listed(contents) if opened < 0 else Answer(None, UNCLOSED)


def auto_answer(text: str) -> Answer:
    r"""The last `####` line, else the last `\boxed{...}`; where there are both they must agree.

    A `####` line of words is a heading when a box follows it.
    """
    if "####" not in text:
        return boxed_answer(text) if "box" in text else _NO_ANSWER
    marked = hash_answer(text)
    if "box" not in text:
        return marked
    boxed = boxed_answer(text)
    if boxed.text is None:
        return boxed if boxed.reason == UNCLOSED else marked
    if marked.text is None or _is_heading(marked.text):
        return boxed if marked.reason != TWO_ANSWERS else marked
    return marked if _same(marked.text, boxed.text) else Answer(None, TWO_ANSWERS)


_LAST_NUMBER = re.compile(r"[-−]?\$?[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?(?:/[0-9]+)?%?")


def lenient_last_number(text: str) -> Answer:
    """What `auto` finds, else the last number anywhere. Never train on it: it accepts guesses."""
    answer = auto_answer(text)
    if answer.text is not None:
        return answer
    numbers = _LAST_NUMBER.findall(text)
    return Answer(numbers[-1], "") if numbers else _NO_ANSWER


EXTRACTIONS: dict[str, Extraction] = {
    "auto": auto_answer,
    "hash": hash_answer,
    "boxed": boxed_answer,
    "tagged": tagged_answer,
    "lenient_last_number": lenient_last_number,
}

FORMS: dict[str, str] = {
    "auto": "#### {answer}",
    "hash": "#### {answer}",
    "boxed": "\\boxed{{{answer}}}",
    "tagged": "<answer>{answer}</answer>",
    "lenient_last_number": "#### {answer}",
}
"""How an output states an answer under each rule."""


def reference_answer(reference: str) -> str:
    r"""The answer of a reference: bare (`18`, `\frac{1}{2}`), or a solution that ends in `#### 18`
    or `\boxed{18}`.

    Raises AnswerError when it states none.
    """
    if "####" in reference or "\\boxed" in reference:
        answer, reason = auto_answer(reference)
    else:
        answer = unwrapped(reference)
        reason = "" if answer else NO_ANSWER
    if answer is None or reason:
        raise AnswerError(
            f"reference {reference[-100:]!r} states no answer ({reason}): give a bare answer, or a "
            "solution whose last line is `#### ANSWER`."
        )
    return answer


def unwrapped(text: str) -> str:
    r"""An answer without what frames it: `$`, `\(`, `**`, a box, `The answer is`, `=`, a stop."""
    text = text.strip()
    if text.isascii() and text.isdigit():  # by far the most frequent
        return text
    if text[:1] in "tTfFaA" and (lead := _LEAD.match(text)):
        text = text[lead.end() :]
    text = text.removeprefix("=").lstrip()
    for _ in range(4):
        before = text
        for start, end in _MATH_ENVIRONMENTS:
            inner = text[len(start) : -len(end)]
            framed = len(text) > len(start) + len(end) and text.startswith(start)
            if framed and text.endswith(end) and start not in inner and inner[-1:] != "\\":
                text = inner.strip()
        if text.startswith("\\boxed{") and text.endswith("}") and text.count("{") == 1:
            text = text[7:-1].strip()
        if text.endswith(".") and text[-2:-1] != ".":
            text = text[:-1].rstrip()
        if text == before:
            break
    return text


def _listed(contents: Iterable[str]) -> Answer:
    """The different answers that several boxes or tags state, as one list."""
    answers: list[str] = []
    for content in contents:
        answer = unwrapped(content)
        if answer and not any(_same(answer, other) for other in answers[-_MOST_ANSWERS:]):
            answers.append(answer)
    if not answers:
        return _NO_ANSWER
    if len(answers) > _MOST_ANSWERS:
        return Answer(None, TWO_ANSWERS)
    return Answer(", ".join(answers), "")


def _same(first: str, second: str) -> bool:
    if first == second:
        return True
    one, other = parse_number(first), parse_number(second)
    return one is not None and other is not None and equal(one, other)


def _states_another_number(text: str, answer: str) -> bool:
    """Whether words after an answer hold a number other than the answer's own."""
    own = parse_number(answer)
    for match in _NUMBERS.finditer(text):
        number = parse_number(match.group())
        if own is None or number is None or not equal(number, own):
            return True
    if any(character.isdigit() for character in text if character > "\x7f"):
        return True
    return any(word.group().lower() in NUMBER_WORDS for word in _WORDS.finditer(text))


def _is_heading(line: str) -> bool:
    """Whether a `####` line is words (`Step 2: add`) rather than an answer."""
    return line[:1].isalpha() and len(line.split()) > 1 and parse_number(line) is None
