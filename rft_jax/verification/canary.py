"""The verifiers of a run: opened from its settings, tried on known answers, and watched."""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Iterator, Sequence

from rft_jax.config import Config
from rft_jax.errors import VerifierError
from rft_jax.types import Judgement, Question, Sample, Verdict
from rft_jax.verification.compare import may_be_equal
from rft_jax.verification.extract import FORMS
from rft_jax.verification.pool import Item, VerifierPool
from rft_jax.verification.rules import ERROR, NO_VERDICT, RANDOM, Limits, VerifierSpec

REASONS_SHOWN = 3
"""Of undecided outputs, in a warning; the most frequent ones."""
PROBES = 4
"""Questions with which it is seen, whatever verification.canary is, that a function of the user's
returns verdicts."""
CANARY_QUESTIONS = 256
"""Questions whose known answers are judged before the first step, evenly spread over the data."""

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def open_verifiers(
    config: Config, questions: Sequence[Question]
) -> Iterator[tuple[VerifierPool, VerifierPool]]:
    """The pools that judge in training and in evaluations (often one), tried on known answers."""
    with contextlib.ExitStack() as stack:
        training = evaluation = stack.enter_context(
            VerifierPool(training_spec(config), limits_of(config))
        )
        try_verifier(training, questions, config)
        if (spec := evaluation_spec(config)) is not None:
            evaluation = stack.enter_context(VerifierPool(spec, limits_of(config)))
            try_verifier(evaluation, questions, config)
        yield training, evaluation


def limits_of(config: Config) -> Limits:
    """The limits of a run's verifier processes."""
    return Limits(**{name: getattr(config.verification, name) for name in Limits._fields})


def training_spec(config: Config) -> VerifierSpec:
    """The verifier that decides I(o)."""
    settings = config.verification
    return VerifierSpec(
        name=settings.verifier,
        comparison=settings.comparison,
        checks=settings.checks,
        random_rate=settings.random_rate,
    )


def evaluation_spec(config: Config) -> VerifierSpec | None:
    """The verifier of evaluations, or None where it is that of training."""
    if not config.evaluation.verifier:
        return None
    return VerifierSpec(config.evaluation.verifier, config.verification.comparison)


def try_verifier(pool: VerifierPool, questions: Sequence[Question], config: Config) -> None:
    """The canary: judge answers known to be right and known to be wrong, made from the data.

    Right: a question's own solution (or its answer in the rule's form, see verification.canary);
    wrong: that of another question with another answer. A user's function is tried on solutions
    only: its form is not known. What it returns must be a verdict on any text.

    Args:
        pool: of the verifier.
        questions: of which CANARY_QUESTIONS are tried.
        config: of the run.

    Raises: VerifierError when the verifier disagrees with any.
    """
    mode, name = config.verification.canary, pool.name
    if name == RANDOM:
        return
    stride = max(1, len(questions) // CANARY_QUESTIONS)
    chosen = questions[::stride][:CANARY_QUESTIONS]
    if ":" in name:
        _require_verdicts(chosen[:PROBES], pool)
    if mode == "off":
        return
    known = [
        (question, output) for question in chosen if (output := _known_output(question, name, mode))
    ]
    if not known:
        logger.warning(
            "verification.canary: %s cannot be tried on known answers, as no question has a "
            "solution",
            name,
        )
        return
    right = [Item(question.answer, output, True) for question, output in known]
    wrong = [
        Item(question.answer, output, True)
        for (question, _), (other, output) in zip(known, known[1:] + known[:1], strict=True)
        if not may_be_equal(other.answer, question.answer)
    ]
    judged = pool.verify(right + wrong)
    _require_agreement("right", right, judged[: len(right)], Verdict.CORRECT, pool)
    _require_agreement("wrong", wrong, judged[len(right) :], Verdict.INCORRECT, pool)


def watch_undecided(samples: Sequence[Sample], config: Config, where: str) -> None:
    """Warn, or raise VerifierError, when too large a share of a step's outputs is undecided.

    Args:
        samples: of the step, or of the pool.
        config: of the run, with both bounds.
        where: the step, for the message.
    """
    undecided = [sample.reason for sample in samples if sample.verdict is Verdict.UNDECIDED]
    share = len(undecided) / len(samples) if samples else 0.0
    settings = config.verification
    counts = Counter(undecided)
    shown = [f"{count} {reason}" for reason, count in counts.most_common(REASONS_SHOWN)]
    more = f"; {len(counts) - len(shown)} other reasons" if len(counts) > len(shown) else ""
    text = (
        f"{where}: {share:.1%} of {len(samples)} outputs are undecided ({'; '.join(shown)}{more}); "
        "they are left out of training and of every rate. rollouts/ has each one's reason."
    )
    if share > settings.stop_undecided:
        raise VerifierError(
            f"{text} That is above verification.stop_undecided, {settings.stop_undecided}: fix "
            "the verifier or raise the bound."
        )
    if share > settings.warn_undecided:
        logger.warning("%s", text)


def _require_verdicts(questions: Sequence[Question], pool: VerifierPool) -> None:
    items = [
        Item(question.answer, question.solution or question.answer, True) for question in questions
    ]
    for item, judgement in zip(items, pool.verify(items), strict=True):
        if judgement.reason.startswith(NO_VERDICT):
            raise VerifierError(
                f"verification.verifier is {pool.name!r}: with the reference "
                f"{_end(item.reference)!r} and the output {_end(item.output)!r} "
                f"{judgement.reason.removeprefix(NO_VERDICT)}: return True, False or a Judgement."
            )


def _known_output(question: Question, verifier: str, mode: str) -> str:
    """An output that reaches the question's answer, or an empty text where none is known."""
    if mode == "solutions" and question.solution:
        return question.solution
    form = FORMS.get(verifier)
    return form.format(answer=question.answer) if form else ""


def _require_agreement(
    kind: str,
    items: Sequence[Item],
    judged: Sequence[Judgement],
    expected: Verdict,
    pool: VerifierPool,
) -> None:
    pairs = [
        (item, judgement)
        for item, judgement in zip(items, judged, strict=True)
        # A demonstration may fail a check (a miscalculation in the data): the answer was right.
        if judgement.verdict is not expected and not judgement.reason.startswith("failed ")
    ]
    if not pairs:
        return
    item, judgement = pairs[0]
    if judgement.reason.startswith(ERROR):
        raise VerifierError(
            f"verification.verifier is {pool.name!r}: on an output of the data known to be {kind}, "
            f"{_end(item.output)!r} with the reference {_end(item.reference)!r}, it failed: "
            f"{judgement.reason.removeprefix(ERROR)}. Fix it, or set verification.canary to 'off' "
            "if it cannot judge the data's own solutions."
        )
    raise VerifierError(
        f"verification.verifier is {pool.name!r}: of {len(items)} outputs of the data known to be "
        f"{kind}, {len(pairs)} are judged otherwise. The first, {_end(item.output)!r} with the "
        f"reference {_end(item.reference)!r}, is {judgement.verdict} ({judgement.reason}). Choose "
        "the rule that reads such answers, or set verification.canary to 'answers' if the model "
        "states its answer in another form than the data does, to 'off' if it cannot be known."
    )


def _end(text: str) -> str:
    return text if len(text) <= 80 else "..." + text[-77:]
