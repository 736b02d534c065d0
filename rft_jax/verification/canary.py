"""The verifiers of a run: opened from its settings, tried on known answers, and watched."""

from __future__ import annotations

import contextlib
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rft_jax.config import Config
from rft_jax.errors import DataError, VerifierError
from rft_jax.io.jsonl import data_rows
from rft_jax.types import Judgement, Question, Remote, Sample, Verdict
from rft_jax.verification import reasoning
from rft_jax.verification.compare import may_be_equal
from rft_jax.verification.extract import FORMS
from rft_jax.verification.functions import (
    AS_EXPECTED,
    MOST_EXAMPLES,
    Example,
    KnownItem,
    disagreement,
    known_item,
)
from rft_jax.verification.pool import Item, VerifierPool
from rft_jax.verification.rules import ERROR, NO_VERDICT, RANDOM, Limits, VerifierSpec

REASONS_SHOWN = 3
"""Of undecided outputs, in a warning; the most frequent ones."""
EXAMPLES_SHOWN = 3
"""Of those that are judged otherwise."""
PROBES = 4
"""Questions with which it is seen, whatever verification.canary is, that a function of the user's
returns verdicts."""
CANARY_QUESTIONS = 256
"""Questions whose known answers are judged before the first step, evenly spread over the data."""
STOP_FIRST_UNDECIDED = 0.5
"""Share of the first outputs above which a run stops."""

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
        try_examples(training, config.verification.examples)
        try_verifier(training, questions, config)
        if (spec := evaluation_spec(config)) is not None:
            evaluation = stack.enter_context(VerifierPool(spec, limits_of(config)))
            try_examples(evaluation)
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
        threshold=settings.threshold,
        weights=settings.weights,
    )


def evaluation_spec(config: Config) -> VerifierSpec | None:
    """The verifier of evaluations, or None where it is that of training."""
    if not config.evaluation.verifier:
        return None
    settings = config.verification
    return VerifierSpec(
        config.evaluation.verifier, settings.comparison, threshold=settings.threshold
    )


def try_examples(pool: VerifierPool, path: str = "") -> None:
    """Judge outputs whose verdicts are known: those of a file, and `examples` of the module that
    the verifier is a function of.

    Args:
        pool: of the verifier.
        path: a JSONL file of rows as functions.known_item takes them; empty for none.

    Raises:
        VerifierError: any gets another verdict.
        DataError: the file cannot be read.
    """
    known = _known_items(path) if path else {}
    judged = pool.verify([Item(*item[:2], True, *item[2:4]) for item in known.values()])
    told = [
        f"{where}: {disagreement(item.expected, judgement, item.output)}"
        for (where, item), judgement in zip(known.items(), judged, strict=True)
        if judgement.verdict is not item.expected
    ]
    if ":" in pool.name:
        judged = pool.verify([Item(Example(n), "", True) for n in range(MOST_EXAMPLES)])
        told += [
            f"{pool.name.partition(':')[0]}.examples[{number}]: {judgement.reason}"
            for number, judgement in enumerate(judged)
            if judgement != AS_EXPECTED
        ]
    if told:
        raise VerifierError(
            f"verification.verifier is {pool.name!r}: {len(told)} of its examples are judged "
            f"otherwise than they say: {'; '.join(told[:EXAMPLES_SHOWN])}"
            f"{'; ...' if len(told) > EXAMPLES_SHOWN else ''}: fix the verifier or the examples."
        )


def _known_items(path: str) -> dict[str, KnownItem]:
    """The examples of a file by FILE:LINE."""
    known = {}
    try:
        with contextlib.closing(data_rows(Path(os.path.expanduser(path)))) as rows:
            for number, row in rows:
                try:
                    known[f"{path}:{number}"] = known_item(row)
                except ValueError as error:
                    raise DataError(f"{path}:{number}: {error}.") from None
    except OSError as error:
        raise DataError(
            f"verification.examples is {path!r}, which cannot be read ({error.strerror}): give the "
            "path of a JSONL file, relative to the working directory."
        ) from None
    return known


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
    right = [Item.of(question, output) for question, output in known]
    wrong = [
        Item.of(question, output)
        for (question, _), (other, output) in zip(known, known[1:] + known[:1], strict=True)
        if not _may_be_equal(other.answer, question.answer)
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


class FirstOutputs:
    """Looks at the first outputs of a run, verification.first_outputs of them, once: where the
    verifier pays for none, or leaves most undecided, the run stops before more is spent."""

    def __init__(self, config: Config, *, resumed: bool = False) -> None:
        """resumed: they were sampled by an earlier attempt; nothing is looked at."""
        self._config = config
        self._seen: list[Sample] = []
        self.done = resumed or not config.verification.first_outputs

    def see(self, samples: Sequence[Sample]) -> None:
        """Take the next outputs, the same in every process of a job.

        Raises VerifierError in all of them.
        """
        if self.done:
            return
        self._seen += samples
        self.done = len(self._seen) >= self._config.verification.first_outputs
        if self.done:
            self._judge(self._seen)
            self._seen = []

    def _judge(self, samples: Sequence[Sample]) -> None:
        decided = [sample for sample in samples if sample.verdict is not Verdict.UNDECIDED]
        accepted = sum(sample.accepted for sample in samples)
        # A method that reads rewards may learn from those below the threshold.
        by_reward = self._config.row.rewards
        paid = sum(sample.value for sample in decided) if by_reward else accepted
        by_step = self._config.row.steps
        if by_step:
            paid = sum(reward != 0 for sample in decided for _, reward in sample.steps)
        counts = Counter(f"{sample.verdict}: {sample.reason}" for sample in samples)
        reasons = "; ".join(f"{n} {what}" for what, n in counts.most_common(REASONS_SHOWN))
        # Of other processes' outputs the text is not known here.
        own = [sample for sample in samples if not isinstance(sample, Remote)]
        shown = (own[0], own[-1]) if own else ()
        outputs = " and ".join(f"{_end(sample.text)!r} ({sample.reason})" for sample in shown)
        shown_with = f"({reasons}), such as {outputs}"
        first, undecided = f"of the first {len(samples)} outputs", len(samples) - len(decided)
        mostly_undecided = undecided > STOP_FIRST_UNDECIDED * len(samples)
        unpaid = "none has a step with a reward" if by_step else "none is accepted"
        what = f"{undecided} are undecided" if mostly_undecided else unpaid
        if mostly_undecided or not paid:
            raise VerifierError(
                f"{first} {what} {shown_with}: see that verification.verifier reads what the model "
                "writes, or start from a better model; verification.first_outputs=0 turns "
                "this off."
            )
        if accepted == len(decided):
            logger.warning(
                "%s every decided one is accepted %s: see that verification.verifier tells right "
                "from wrong; there is nothing to learn where it accepts all.", first, shown_with,
            )  # fmt: skip


def _may_be_equal(first: Any, second: Any) -> bool:
    texts = isinstance(first, str) and isinstance(second, str)
    return first == second or (texts and may_be_equal(first, second))


def _require_verdicts(questions: Sequence[Question], pool: VerifierPool) -> None:
    items = [Item.of(question, question.solution or str(question.answer)) for question in questions]
    for item, judgement in zip(items, pool.verify(items), strict=True):
        if judgement.reason.startswith(NO_VERDICT):
            raise VerifierError(
                f"verification.verifier is {pool.name!r}: with the reference "
                f"{_end(item.reference)!r} and the output {_end(item.output)!r} "
                f"{judgement.reason.removeprefix(NO_VERDICT)}."
            )


def _known_output(question: Question, verifier: str, mode: str) -> str:
    """An output that reaches the question's answer, or an empty text where none is known."""
    if mode == "solutions" and question.solution:
        return question.solution
    form = reasoning.FORM if verifier == reasoning.NAME else FORMS.get(verifier)
    return form.format(answer=question.answer) if form and question.answer is not None else ""


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
        if judgement.verdict is not expected and not pool.spec.is_of_check(judgement.reason)
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


def _end(value: Any) -> Any:
    """The end of a text; another value whole."""
    return "..." + value[-77:] if isinstance(value, str) and len(value) > 80 else value
