"""What outputs vote for in maj@k: the answers they state, grouped as verdicts compare them.

Answers that are judged to be the reference's are one group, and no other is in it. The others of a
question are compared by the verifier's workers, under its deadlines; what these cannot decide is
another answer. Equal texts and plain numbers need no worker.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

from rft_jax.types import Judgement, Sample, Verdict
from rft_jax.verification.exact.numbers import Number, parse_number
from rft_jax.verification.extract import EXTRACTIONS, FORMS
from rft_jax.verification.pool import Item, VerifierPool

_REFERENCE = "the reference"


class Votes(NamedTuple):
    """Of a question's outputs: the answer that each votes for, None where it states none or is cut;
    and whether each is correct, None where undecided."""

    answers: list[Hashable | None]
    correct: list[bool | None]


def correct(sample: Sample) -> bool | None:
    """Whether an output is correct; None where that is undecided."""
    return None if sample.verdict is Verdict.UNDECIDED else sample.accepted


def cast_votes(groups: Sequence[Sequence[Sample]], verifier: VerifierPool) -> list[Votes] | None:
    """The votes of each group of outputs; None under a verifier that does not say which answer it
    read: a function of the user's, or random verdicts."""
    if verifier.name not in EXTRACTIONS:
        return None
    stated = [[_answer(verifier.name, sample) for sample in group] for group in groups]
    leaders: list[dict[Hashable, Hashable]] = [
        {
            answer: _REFERENCE
            for answer, sample in zip(answers, group, strict=True)
            if answer is not None and _is_equal(sample)
        }
        for answers, group in zip(stated, groups, strict=True)
    ]
    _lead(stated, leaders, verifier)
    return [
        Votes([leader.get(answer) for answer in answers], [correct(sample) for sample in group])
        for answers, leader, group in zip(stated, leaders, groups, strict=True)
    ]


def _lead(
    stated: Sequence[Sequence[Hashable | None]],
    leaders: Sequence[dict[Hashable, Hashable]],
    verifier: VerifierPool,
) -> None:
    """Give every answer the first one that it equals; one round for the n-th leaders of all."""
    rest = [
        [one for one in dict.fromkeys(answers) if one is not None and one not in leader]
        for answers, leader in zip(stated, leaders, strict=True)
    ]
    for answers, leader in zip(rest, leaders, strict=True):
        if all(map(_is_plain, answers)):  # as they mostly are
            leader |= dict(zip(answers, answers, strict=True))
            answers.clear()
    while any(rest):
        pairs = []
        for number, answers in enumerate(rest):
            if not answers:
                continue
            first = answers.pop(0)
            leaders[number][first] = first
            # Plain numbers are hashed by their value: they differ.
            others = [one for one in answers if not _is_plain(one)] if _is_plain(first) else answers
            pairs += [(number, first, one) for one in others]
        form = FORMS[verifier.name]
        items = [Item(_text(a), form.format(answer=_text(b)), True) for _, a, b in pairs]
        judged = verifier.verify(items) if items else []
        for (number, first, one), judgement in zip(pairs, judged, strict=True):
            if _is_equal(judgement):
                leaders[number][one] = first
                rest[number].remove(one)


def _answer(rule: str, sample: Sample) -> Hashable | None:
    text = EXTRACTIONS[rule](sample.text).text if sample.finished else None
    return None if text is None else parse_number(text) or " ".join(text.split())


def _is_equal(judged: Sample | Judgement) -> bool:
    """Whether the answer is the reference's; a check of the output may have failed nevertheless."""
    return judged.verdict is Verdict.CORRECT or judged.reason.startswith("failed ")


def _is_plain(answer: Hashable) -> bool:
    return isinstance(answer, Number) and not answer.percent


def _text(answer: Hashable) -> str:
    return f"{answer.value}{'%' * answer.percent}" if isinstance(answer, Number) else str(answer)
