"""What outputs vote for in maj@k: the answers they state, grouped as verdicts compare them.

Answers that are judged to be the reference's are one group, and no other is in it. The others of a
question are compared by the verifier's workers, under its deadlines; what these cannot decide is
another answer. Equal texts and, under a rule, plain numbers need no worker. A checker of the user's
own may say which answer it read, and compares two of them as the reference and the output.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import NamedTuple

from rft_jax.distributed.collectives import largest
from rft_jax.types import Judgement, Question, Sample, Verdict
from rft_jax.verification.exact.numbers import Number, parse_number
from rft_jax.verification.extract import EXTRACTIONS, FORMS, UNREAD
from rft_jax.verification.pool import Item, VerifierPool

LEADERS_OF_FUNCTIONS = 4
"""Wrong answers of a question, the most frequent, with which a checker of the user's own compares
the others: it may take long."""
_REFERENCE = "the reference"


class Votes(NamedTuple):
    """Of a question's outputs: the answer that each votes for, None where it states none or is cut;
    and whether each is correct, None where undecided."""

    answers: list[Hashable | None]
    correct: list[bool | None]


def correct(sample: Sample) -> bool | None:
    """Whether an output is correct; None where that is undecided."""
    return None if sample.verdict is Verdict.UNDECIDED else sample.accepted


def cast_votes(
    groups: Sequence[Sequence[Sample]], verifier: VerifierPool, questions: Sequence[Question]
) -> list[Votes] | None:
    """The votes of each question's outputs; None under a verifier that says of no output, in no
    process, which answer it read: a function that does not, or random verdicts.

    Every process must call it, with its own outputs.
    """
    rule = verifier.name if verifier.name in EXTRACTIONS else ""
    stated: list[list[Hashable | None]]
    if rule:
        stated = [[_answer(rule, sample) for sample in group] for group in groups]
    else:
        stated = [[sample.stated for sample in group] for group in groups]
        if not largest(any(one is not None for answers in stated for one in answers)):
            return None
    leaders: list[dict[Hashable, Hashable]] = [
        {
            answer: _REFERENCE
            for answer, sample in zip(answers, group, strict=True)
            if answer is not None and _is_equal(sample, verifier)
        }
        for answers, group in zip(stated, groups, strict=True)
    ]
    texts = [
        dict(zip(reversed(answers), (one.text for one in reversed(group)), strict=True))
        for answers, group in zip(stated, groups, strict=True)
    ]

    def item(number: int, first: Hashable, other: Hashable) -> Item:
        if rule:
            return Item(_text(first), FORMS[rule].format(answer=_text(other)), True)
        question = replace(questions[number], answer=first)
        return Item.of(question, texts[number][other])

    _lead(stated, leaders, verifier, item, None if rule else LEADERS_OF_FUNCTIONS)
    return [
        Votes([leader.get(answer) for answer in answers], [correct(sample) for sample in group])
        for answers, leader, group in zip(stated, leaders, groups, strict=True)
    ]


def _lead(
    stated: Sequence[Sequence[Hashable | None]],
    leaders: Sequence[dict[Hashable, Hashable]],
    verifier: VerifierPool,
    item: Callable[[int, Hashable, Hashable], Item],
    most: int | None,
) -> None:
    """Give every answer the first one that it equals; one round for the n-th leaders of all.

    item: (question, answer, other answer) -> what the verifier is asked; most: rounds, the most
    frequent answers first, None for all in the order of the outputs.
    """
    rest = [
        [one for one in dict.fromkeys(answers) if one is not None and one not in leader]
        for answers, leader in zip(stated, leaders, strict=True)
    ]
    if most is not None:
        for counts, answers in zip(map(Counter, stated), rest, strict=True):
            answers.sort(key=lambda one: -counts[one])
    for answers, leader in zip(rest, leaders, strict=True):
        if all(map(_is_plain, answers)):  # as they mostly are
            leader |= dict(zip(answers, answers, strict=True))
            answers.clear()
    rounds = 0
    while any(rest):
        rounds += 1
        pairs = []
        for number, answers in enumerate(rest):
            if not answers:
                continue
            first = answers.pop(0)
            leaders[number][first] = first
            # Plain numbers are hashed by their value: they differ.
            others = [one for one in answers if not _is_plain(one)] if _is_plain(first) else answers
            if most is None or rounds <= most:
                pairs += [(number, first, one) for one in others]
        items = [item(*pair) for pair in pairs]
        judged = verifier.verify(items) if items else []
        for (number, first, one), judgement in zip(pairs, judged, strict=True):
            if _is_equal(judgement, verifier):
                leaders[number][one] = first
                rest[number].remove(one)


def _answer(rule: str, sample: Sample) -> Hashable | None:
    if not sample.finished or sample.reason in UNREAD:
        return None
    text = EXTRACTIONS[rule](sample.text).text
    return None if text is None else parse_number(text) or " ".join(text.split())


def _is_equal(judged: Sample | Judgement, verifier: VerifierPool) -> bool:
    """Whether the answer is the reference's; a check of the output may have failed nevertheless."""
    return judged.verdict is Verdict.CORRECT or verifier.spec.is_of_check(judged.reason)


def _is_plain(answer: Hashable) -> bool:
    return isinstance(answer, Number) and not answer.percent


def _text(answer: Hashable) -> str:
    return f"{answer.value}{'%' * answer.percent}" if isinstance(answer, Number) else str(answer)
