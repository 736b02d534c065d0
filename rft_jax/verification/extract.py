r"""Which answer an output states: the rules `hash`, `boxed`, `tagged` and `auto`.

Each is anchored: an answer counts only where it is stated in the rule's form, and there is no
fallback to the last number in the text, which a policy learns to exploit. (`lenient_last_number`
is just that; it is for evaluating the outputs of other models, and refused in training.)

An output that states two different answers states none: in several places, or as an alternative
beside the answer. Two notations of one value are one answer. What follows the answer may be words
that state no other number. What a model writes before it closes its reasoning is no answer. Every
rule takes time linear in the text.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from rft_jax.verification.compare import TWO_ANSWERS, is_equal
from rft_jax.verification.exact.numbers import equal, parse_number
from rft_jax.verification.exact.units import NUMBER_WORDS

NO_ANSWER = "no answer"

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


Same = Callable[[str, str], bool]
"""Whether two answers are equal, as an answer is to a reference."""
Extraction = Callable[..., Answer]
"""(output, same) -> answer; `same` is by default the exact comparison."""

_NO_ANSWER = Answer(None, NO_ANSWER)

# Runs of four or more, so that a run of five is seen whole and is not taken for a marker.
_HASHES = re.compile(r"####+")
_LEAD = re.compile(
    r"(?:\\text\w*\s*\{\s*|\*\*)?(?:(?:so|thus|hence|therefore),? )?"
    r"(?:(?:the )?(?:final |correct )?(?:answer|result|total|ans\b)(?: is| =)?(?![a-z])"
    r"|(?:最终)?答案(?:是|为)?|答)\s*[:：]?\s*(?P<closed>\})?(?:\*\*)?\s*",
    re.IGNORECASE,
)
_MATH_ENVIRONMENTS = (
    ("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("__", "__"),
    ("`", "`"), ("*", "*"), ('"', '"'),
)  # fmt: skip
_NUMBERS = re.compile(r"[0-9]+(?:[.,/][0-9]+)*")
_WORDS = re.compile(r"[A-Za-z]+")
_LEFTOVERS = re.compile(
    r"<<[^<>\n]*>>|\s*(?:<\|[\w ]+\|>|<｜[^<>｜]+｜>|</s>|<eos>|<end_of_turn>)\s*$|\s*\\+\s*$"
)
"""A calculator's marks, a token that ends a turn, the end of a row."""
_BLANK = re.compile(r"(?:\\[hv]?phantom\s*\{[^{}]*\}|\\q?quad|\\[,;: ]|[~_?\s])*")
_NUMBERED = re.compile(r"(?:step )?([0-9]+)[.):]?", re.IGNORECASE)

_OPENED = (
    r"<(?:seed:)?think(?:ing)?>|<reasoning>|<thought>|<\|begin_of_thought\|>|\[THINK\]|◁think▷|"
    r"<\|channel\|>analysis<\|message\|>"
)
_CLOSED = (
    r"</(?:seed:)?think(?:ing)?>|</reasoning>|</thought>|<\|end_of_thought\|>|\[/THINK\]|"
    r"◁/think▷|<\|channel\|>final<\|message\|>"
)
_OPENED_LAST = re.compile(rf"(?P<mark>{_OPENED})\s*$")
_REASONING = re.compile(rf"(?P<closed>{_CLOSED})|{_OPENED}")


def after_reasoning(text: str) -> str:
    """What a text states once its reasoning is closed; nothing where it is opened and never is."""
    # Quick for most: `<` is a calculator's `<<`, if it is there at all.
    if "[" not in text and "◁" not in text and text.count("<") == 2 * text.count("<<"):
        return text
    marks = list(_REASONING.finditer(text))
    if not marks:
        return text
    return text[marks[-1].end() :] if marks[-1]["closed"] else ""


def opened_reasoning(prompt: str) -> str:
    """The mark at the end of a prompt that opens the output's reasoning, as chat templates of
    reasoning models put it there; empty where there is none."""
    return match["mark"] if (match := _OPENED_LAST.search(prompt)) else ""


def hash_answer(text: str, same: Same = is_equal) -> Answer:
    """What the last `#### ANSWER` line states (GSM8K's form).

    A `####` line before it that states another number makes two answers; one that states none, or
    its own place (`#### 2.`), is a heading. Numbers after the line, other than the answer's own,
    make it no final answer.
    """
    return _hash(after_reasoning(text), same)


def _hash(text: str, same: Same) -> Answer:
    ends = _marks(text)
    if not ends:
        return _NO_ANSWER
    line, _, rest = text[ends[-1] :].partition("\n")
    answer = unwrapped(line)
    if not answer:
        return _NO_ANSWER
    start = ends[-1] - 4
    if start and text[start - 1] != "\n":
        before = text[max(0, start - _BESIDE) : start].rpartition("\n")[2]
        if _alone(Answer(answer, ""), before, "", same).text is None:
            return Answer(None, TWO_ANSWERS)
    for place, (end, following) in enumerate(itertools.pairwise(ends), 1):
        line = text[end : following - 4].partition("\n")[0].strip(" *")
        numbered = _NUMBERED.fullmatch(line)
        if numbered and int(numbered[1][:9]) == place and not line.isdigit():
            continue
        earlier = unwrapped(line)
        if parse_number(earlier) is not None and not same(earlier, answer):
            return Answer(None, TWO_ANSWERS)
    if rest and not rest.isspace() and _states_another(rest, answer):
        return Answer(None, TEXT_AFTER_ANSWER)
    return Answer(answer, "")


def _marks(text: str) -> list[int]:
    """Where each `####` ends."""
    first = text.find("####")
    if first < 0:
        return []
    if text.find("####", first + 1) < 0:
        return [first + 4]
    return [match.end() for match in _HASHES.finditer(text) if match.end() - match.start() == 4]


_BOX = re.compile(r"\\(?:box|fbox|framebox)")
_BOX_TOKENS = re.compile(
    r"\\(?:boxed|fbox|framebox)(?:\s*\{|\s*(?P<bare>[^\W_]+(?:[.,/][0-9]+)*)(?![\w^\\{]))|\\.|[{}]",
    re.DOTALL,
)


def boxed_answer(text: str, same: Same = is_equal) -> Answer:
    r"""What the last `\boxed{...}` states, braces nested to any depth; `\fbox` counts too.

    Boxes of different content are one list of answers, which is equal to a reference only if that
    is the same list. A box in a box is part of what that says.
    """
    return _boxed(after_reasoning(text), same)


def _boxed(text: str, same: Same) -> Answer:
    if not _BOX.search(text):
        return _NO_ANSWER
    boxes: list[tuple[int, int, int, int]] = []
    open_braces: list[tuple[bool, int, int]] = []
    within = 0
    for token in _BOX_TOKENS.finditer(text):
        mark = token.group()
        if mark == "}":
            if open_braces:
                is_box, start, inner = open_braces.pop()
                within -= is_box
                if is_box and not within:
                    boxes.append((start, inner, token.start(), token.end()))
        elif token["bare"]:
            if not within:
                boxes.append((token.start(), *token.span("bare"), token.end()))
        elif mark == "{" or len(mark) > 2:
            open_braces.append((len(mark) > 2, token.start(), token.end()))
            within += len(mark) > 2
    if within:
        return Answer(None, UNCLOSED)
    boxes = [box for box in boxes if not _BLANK.fullmatch(text[box[1] : box[2]])]
    answer = _listed((text[inner:end] for _, inner, end, _ in boxes), same)
    if answer.text is None:
        return answer
    start, _, _, end = boxes[-1]
    before = text[max(0, start - _BESIDE, *(box[3] for box in boxes[:-1])) : start]
    return _alone(answer, before, text[end : end + _BESIDE], same)


_JUNK = r"(?:[\s$~.,:!?()\[\]{}*]|\\[,;:()\[\]! ]|\\q?quad(?![a-z])|\\(?:text|mathrm|mbox)\s*\{)*"
_VALUE = (
    r"(?:\$(?P<formula>[^$\n]*[0-9\\][^$\n]*)\$|JUNK(?P<bare>[-−+]?(?:\\?\$)?(?:[0-9]|\\[a-zA-Z])"
    r"(?:[^\s$;()!?{}]|\{(?:[^{}]|\{[^{}]*\})*\}|\s[-+*/]\s(?=[0-9]))*|[A-J](?![A-Za-z])|"
    rf"(?:{'|'.join(sorted(NUMBER_WORDS))})(?![a-z])))"
)
_OR = r"(?i:or|possibly|perhaps|maybe|alternatively|otherwise|else)(?![A-Za-z])"
_AFTER = re.compile(
    rf"JUNK{_OR}(?:[\s~]+[a-z]+){{0,4}}?[\s~,:]*{_VALUE}"
    rf"|[\s$\])\\]*and[\s~]*{_VALUE}|[\s$]*;[\s$]*{_VALUE}|[\s$]*,[\s$]*{_VALUE}\W*?(?:\n|$)".replace(
        "JUNK", _JUNK
    )
    .replace("(?P<formula>", "(")
    .replace("(?P<bare>", "(")
)
_WORD_AFTER = re.compile(
    rf"JUNK{_OR}JUNK(?!(?:so|equivalently|simply|just|as|if|we|the|it)\b)([A-Za-z]+)".replace(
        "JUNK", _JUNK
    )
)
_BEFORE = re.compile(
    r"(?:\$([^$\n]+)\$|([-−]?[0-9][0-9.,/]*%?|\\[a-zA-Z]+(?:\{(?:[^{}]|\{[^{}]*\})*\})+|\b[A-J]\b))"
    rf"[)}}]*JUNK{_OR}(?:\s+[a-z]+){{0,2}}JUNK$".replace("JUNK", _JUNK)
)


_FRAMED_WORDS = re.compile(r"(?:\\text\w*\s*\{)?\s*\(?[A-Za-z ]+\)?\s*\}?")


def _alone(answer: Answer, before: str, after: str, same: Same) -> Answer:
    """An answer, unless an alternative of another value stands beside it."""
    assert answer.text is not None
    words = _FRAMED_WORDS.fullmatch(answer.text)
    beside = [(_WORD_AFTER if words else _AFTER).match(after)]
    if len(before) > 2 and re.search(_OR, before):
        beside.append(_BEFORE.search(before))
    for match in beside:
        if match and not same(next(filter(None, match.groups())).rstrip(".,:*\\"), answer.text):
            return Answer(None, TWO_ANSWERS)
    return answer


_MOST_ANSWERS = 8
"""An output that states more different answers than this states two."""
_BESIDE = 40
"""Characters before and after a box in which an alternative is looked for."""

_TAGS = re.compile(r"<(/?)answer>", re.IGNORECASE)


def tagged_answer(text: str, same: Same = is_equal) -> Answer:
    """What the last `<answer>...</answer>` states; different contents are a list, as for boxes."""
    text = after_reasoning(text)
    contents: list[str] = []
    opened, begins, ends = -1, 0, 0
    for tag in _TAGS.finditer(text):
        if not tag.group(1):
            opened = tag.end()
            begins = tag.start()
        elif opened >= 0:
            contents.append(text[opened : tag.start()])
            opened, ends = -1, tag.end()
    if opened >= 0:
        return Answer(None, UNCLOSED)
    answer = _listed(contents, same)
    if answer.text is None:
        return answer
    before = text[max(0, begins - _BESIDE) : begins]
    return _alone(answer, before, text[ends : ends + _BESIDE], same)


def auto_answer(text: str, same: Same = is_equal) -> Answer:
    r"""The last `####` line, else the last `\boxed{...}`; where there are both they must agree.

    A `####` line of words is a heading when a box follows it.
    """
    text = after_reasoning(text)
    marked = _hash(text, same)
    if "box" not in text:
        return marked
    boxed = _boxed(text, same)
    if marked.reason == NO_ANSWER:
        return boxed
    if boxed.text is None:
        return marked if boxed.reason == NO_ANSWER else boxed
    if marked.text is None or _is_heading(marked.text):
        return boxed if marked.reason != TWO_ANSWERS else marked
    return marked if same(marked.text, boxed.text) else Answer(None, TWO_ANSWERS)


_LAST_NUMBER = re.compile(r"[-−]?\$?[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?(?:/[0-9]+)?%?")


def lenient_last_number(text: str, same: Same = is_equal) -> Answer:
    """What `auto` finds, else the last number anywhere. Never train on it: it accepts guesses."""
    answer = auto_answer(text, same)
    if answer.text is not None:
        return answer
    numbers = _LAST_NUMBER.findall(after_reasoning(text))
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
    # Quick for most: nothing frames what begins with a digit and ends with one or with a letter.
    if "0" <= text[:1] <= "9" and text[-1].isalnum() and ">" not in text:
        return text
    text = _LEFTOVERS.sub("", text).strip() if ">" in text or text.endswith("\\") else text
    for _ in range(6):
        before = text
        if (lead := _LEAD.match(text)) and lead.end() < len(text):
            text = text[lead.end() :]
            if lead[0].startswith("\\") and not lead["closed"] and text.endswith("}"):
                text = text[:-1].rstrip()
        text = text.removeprefix("=").lstrip()
        for start, end in _MATH_ENVIRONMENTS:
            inner = text[len(start) : -len(end)]
            framed = len(text) > len(start) + len(end) and text.startswith(start)
            if framed and text.endswith(end) and start not in inner and inner[-1:] != "\\":
                text = inner.strip()
        if box := _WHOLE_BOX.fullmatch(text):
            text = box[1].strip() if _is_closed(box[1]) else text
        if text.endswith("**") and text.count("**") == 1:
            text = text[:-2].rstrip()
        if text.endswith(".") and text[-2:-1] != ".":
            text = text[:-1].rstrip()
        if text == before:
            break
    return text


_WHOLE_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{(.*)\}", re.DOTALL)


def _is_closed(text: str) -> bool:
    """Whether no brace of a text closes one that stands before it."""
    depth = 0
    for brace in re.findall(r"(?<!\\)[{}]", text):
        depth += 1 if brace == "{" else -1
        if depth < 0:
            return False
    return True


def _listed(contents: Iterable[str], same: Same) -> Answer:
    """The different answers that several boxes or tags state, as one list."""
    answers: list[str] = []
    for content in contents:
        answer = unwrapped(content)
        if answer and not any(
            answer == other or same(answer, other) for other in answers[-_MOST_ANSWERS:]
        ):
            answers.append(answer)
    if not answers:
        return _NO_ANSWER
    if len(answers) > _MOST_ANSWERS:
        return Answer(None, TWO_ANSWERS)
    return Answer(", ".join(answers), "")


def _states_another(text: str, answer: str) -> bool:
    """Whether words after an answer hold another number, or an alternative."""
    own = parse_number(answer)
    for match in _NUMBERS.finditer(text):
        number = parse_number(match.group())
        if own is None or number is None or not equal(number, own):
            return True
    if any(character.isdigit() for character in text if character > "\x7f"):
        return True
    if own is None and _AFTER.match(text):
        return True
    return any(word.group().lower() in NUMBER_WORDS for word in _WORDS.finditer(text))


_HEADINGS = re.compile(
    r"(?:[0-9]+[.):]|[^\W\d]\S*)\s+\S.*|(?i:solution|steps?|conclusion|result)s?:?"
)


def _is_heading(line: str) -> bool:
    """Whether a `####` line is words (`Step 2: add`, `3. Add`) rather than an answer."""
    return bool(_HEADINGS.fullmatch(line)) and parse_number(line) is None
