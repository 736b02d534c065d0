"""Batch filling (config section `refill`): a step samples until N outputs are kept, or a cap.

What follows is about refill.accepted; refill.mixed_groups is below.

**A step** samples rounds of rollout.questions_per_step questions from the stream, all with one
policy and one `step` in the address of their keys. A question is asked once in a step: asked again
it would give the same samples. After each round its verdicts are waited for, and the step samples
another while fewer than N = refill.accepted outputs are kept by `selection` (dedupe and cap per
question, over the whole step), one more round fits under refill.max_sampled, and a question is left
to ask. A step samples at least one round: each update sees the policy it changes, and no step is
without metrics.

**The batch** holds at most N outputs: this step's in the order they were sampled, and then, where
these do not suffice, outputs of earlier steps that are carried over, oldest first. A carried output
counts towards N from the start, so it saves sampling; but it never takes the place of a fresh one.
Selection looks at both together: no question exceeds its cap within a batch.

**Surplus**, what is kept beyond N, is carried over with the step that sampled it, which is the
version of the policy: while anything is carried, every step makes an update. At most
refill.max_staleness updates lie between the policy that sampled an output and the one it trains;
after that it is dropped. With 0, the default, nothing is carried and training is on-policy. kept +
carried in = trained + carried out + dropped, in every step.

**Cap reached**, or nothing left to ask: the step trains on what there is, a short batch. With
nothing at all the update is skipped, as without batch filling.

**Weights.** A kept output stands for D / K outputs: the D decided outputs of the step that sampled
it over the K that were kept. `sampled` divides by what the batch stands for. Hence surplus that is
dropped or carried takes its share of the rejected outputs with it, and the weights of an on-policy
batch add up to K / D, as if all K were trained on; a batch with carried outputs is the mean of the
estimates of several policies, each weighted by the outputs it stands for; and a step of one round
with no surplus is a step without batch filling, bit by bit. `accepted_per_question` counts
questions likewise; `accepted` divides by the outputs trained on.

**Mixed groups.** With refill.mixed_groups in place of refill.accepted a step samples until that
many questions have a correct and an incorrect output (DAPO's dynamic sampling, arXiv 2503.14476,
section 3.2), trains on these groups whole, and drops all others. The batch then stands for its own
outputs only: `sampled` and `tokens` divide by these, so that a step's gradient does not shrink as
questions are solved. That weighs a question by the chance of a mixed group, 1 - p^G - (1 - p)^G,
over the mean of that chance: rows with a baseline lose nothing by what is dropped, whose
coefficients are 0 (with rewards of 0 and 1), and only their scale changes; rows without one (Online
RFT, RAFT++) lose the questions that are always solved, which then are no longer reinforced.

**Bias.** (a) Kept outputs come in proportion to pass rates, as in eq. 11: easy questions fill the
batch, and the rounds that batch filling adds bring more of the same. (b) The stopping rule looks at
what was accepted. Steps with easy questions stop early and share their batch with few others, hard
ones are diluted by the rounds after them: K / D is too large on average, by a factor of 1 + O(1 /
N) (one output a round, N = 1: it is -p log p / (1 - p) in place of p), and leans to easy questions.
With `accepted` every batch pulls equally, so that an output sampled in a lucky step counts for
more. (c) The one question that N cuts through loses outputs; as questions come in random order, the
cut favours no other. (d) Carried outputs are of an older policy, and no importance weight corrects
it; their coefficients are those of the step that sampled them. selection.max_per_question counters
(a) and (b): an easy question fills no more than its cap, and the step samples other questions.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from rft_jax.config import Config
from rft_jax.errors import CheckpointError, UserError
from rft_jax.training.packing import Weight
from rft_jax.training.selection import Kept, reduced
from rft_jax.types import Sample, Verdict


@dataclass(frozen=True)
class Carried:
    """A kept output that is not trained on yet.

    sample: its step is the version of the policy; its log_probs are empty, as no policy of a later
    step has them.
    outputs: decided outputs of its step for each kept one (D / K); tokens: theirs, likewise.
    questions: questions with a decided output in its step for each question with a kept one.
    coefficient: GC, of the facts of its step.
    """

    sample: Sample
    outputs: float
    questions: float
    coefficient: float = 1.0
    tokens: float = 0.0


Surplus = tuple[Carried, ...]
"""What is carried from one step to the next, oldest first."""


def _beside(kept: Kept, surplus: Surplus, config: Config) -> list[Carried]:
    """What selection keeps of the surplus beside this step's outputs, which come first."""
    together = reduced([*kept.samples, *(one.sample for one in surplus)], config.selection)[1]
    chosen = {id(sample) for sample in together}
    return [one for one in surplus if id(one.sample) in chosen]


def is_full(kept: Kept, surplus: Surplus, config: Config, *, num_unasked: int) -> bool:
    """Whether a step has sampled enough; after one round without batch filling.

    Args:
        kept: of all that the step has sampled so far.
        surplus: what the step before left.
        config: its refill and rollout count.
        num_unasked: questions of the whole set that the step has not asked.
    """
    if config.refill is None:
        return True
    assert config.rollout is not None
    one_round = config.rollout.questions_per_step * config.rollout.samples_per_question
    if not num_unasked or kept.num_outputs + one_round > config.refill.max_sampled:
        return True
    if config.refill.mixed_groups:
        return len(_mixed(kept)) >= config.refill.mixed_groups
    return len(kept.samples) + len(_beside(kept, surplus, config)) >= config.refill.accepted


def fill(
    kept: Kept, surplus: Surplus, config: Config, *, step: int, num_rounds: int
) -> tuple[Kept, Surplus, dict[str, int]]:
    """The batch of a step that has kept all of `kept`, the surplus after it, and metrics.

    Without batch filling the batch is `kept`.

    Args:
        kept: of all that the step has sampled.
        surplus: what the step before left, none of it older than refill.max_staleness.
        config: its refill and selection count.
        step: of the run, from 0.
        num_rounds: that the step has sampled.
    """
    if config.refill is None:
        return kept, surplus, {}
    if config.refill.mixed_groups:
        return _fill_with_groups(kept, config.refill.mixed_groups, num_rounds)
    most, max_staleness = config.refill.accepted, config.refill.max_staleness
    carried = _beside(kept, surplus, config)
    fresh, rest = kept.samples[:most], kept.samples[most:]
    used, waiting = carried[: most - len(fresh)], carried[most - len(fresh) :]

    num_sampled, num_questions, num_tokens = kept.num_sampled, kept.num_questions, kept.num_tokens
    new: list[Carried] = []
    if kept.samples:
        sampled, of_kept = kept.num_sampled, len(kept.samples)
        asked, with_kept = kept.num_questions, len(_questions(kept.samples))
        # Multiplied first: with no surplus these are whole numbers, exactly.
        num_sampled = sampled * len(fresh) / of_kept
        num_tokens = kept.num_tokens * len(fresh) / of_kept
        num_questions = asked * len(_questions(fresh)) / with_kept
        new = [
            Carried(
                sample=replace(sample, log_probs=()),
                outputs=sampled / of_kept,
                questions=asked / with_kept,
                coefficient=_one_number(value),
                tokens=kept.num_tokens / of_kept,
            )
            for sample, value in zip(rest, kept.coefficients[most:], strict=True)
            if max_staleness
        ]
    num_sampled += sum(one.outputs for one in used)
    num_tokens += sum(one.tokens for one in used)
    counted = _questions(fresh)
    for one in used:
        if one.sample.question_id not in counted:
            counted.add(one.sample.question_id)
            num_questions += one.questions

    left = tuple(one for one in (*waiting, *new) if step + 1 - one.sample.step <= max_staleness)
    num_stale = sum(step + 1 - one.sample.step > max_staleness for one in waiting)
    trained = [*fresh, *(one.sample for one in used)]
    batch = kept._replace(
        samples=trained,
        coefficients=[*kept.coefficients[:most], *(one.coefficient for one in used)],
        num_sampled=num_sampled,
        num_questions=num_questions,
        num_tokens=num_tokens,
    )
    return (
        batch,
        left,
        {
            "refill/rounds": num_rounds,
            "refill/trained": len(trained),
            "refill/trained_carried": len(used),
            "refill/carried_in": len(surplus),
            "refill/carried_out": len(left),
            "refill/dropped_stale": num_stale,
            "refill/dropped_surplus": (
                len(surplus) + len(kept.samples) - len(trained) - len(left) - num_stale
            ),
            "refill/cap_reached": int(len(trained) < most),
        },
    )


def _mixed(kept: Kept) -> list[int]:
    """Questions with a correct and an incorrect output, in the order they were asked."""
    verdicts: dict[int, set[Verdict]] = {}
    for sample in kept.decided:
        verdicts.setdefault(sample.question_id, set()).add(sample.verdict)
    return [question for question, found in verdicts.items() if len(found) > 1]


def _fill_with_groups(
    kept: Kept, most: int, num_rounds: int
) -> tuple[Kept, Surplus, dict[str, int]]:
    """The batch of the first `most` mixed groups; it stands for their outputs only."""
    mixed = _mixed(kept)
    chosen = {*mixed[:most]}
    of_chosen = [sample.question_id in chosen for sample in kept.samples]
    decided = [sample for sample in kept.decided if sample.question_id in chosen]
    batch = kept._replace(
        samples=[sample for sample, used in zip(kept.samples, of_chosen, strict=True) if used],
        coefficients=[c for c, used in zip(kept.coefficients, of_chosen, strict=True) if used],
        num_sampled=len(decided),
        num_questions=len(chosen),
        num_tokens=sum(sample.num_tokens for sample in decided),
        decided=decided,
    )
    metrics = {
        "refill/rounds": num_rounds,
        "refill/trained": len(batch.samples),
        "refill/mixed_groups": len(chosen),
        "refill/dropped_groups": len(mixed) - len(chosen),
        "refill/cap_reached": int(len(chosen) < most),
    }
    return batch, (), metrics


def _one_number(coefficient: Weight) -> float:
    """Of an output that waits for a later batch."""
    if isinstance(coefficient, float):
        return coefficient
    raise UserError(
        "the method's coefficients differ from token to token, and refill carries outputs over "
        "with one number each: set refill.max_staleness to 0."
    )


def _questions(samples: Sequence[Sample]) -> set[int]:
    return {sample.question_id for sample in samples}


def to_json(surplus: Surplus) -> list[dict[str, Any]]:
    """The surplus as a checkpoint holds it; `from_json` gives it back exactly."""
    return [
        {"outputs": one.outputs, "questions": one.questions, "coefficient": one.coefficient}
        | {"decided_tokens": one.tokens}
        | {name: value for name, value in asdict(one.sample).items() if name in _FIELDS}
        | {"verdict": one.sample.verdict.value}
        for one in surplus
    ]


_FIELDS: Mapping[str, type] = {
    "question_id": int,
    "sample_index": int,
    "step": int,
    "text": str,
    "tokens": list,
    "finished": bool,
    "reason": str,
    "verdict": str,
    "outputs": float,
    "questions": float,
    "coefficient": float,
    "decided_tokens": float,
}
"""What is saved of a Carried; none has log-probs."""

_BEFORE = {"verdict": "correct", "coefficient": 1.0, "decided_tokens": 0.0}
"""What a surplus was that was saved without these."""


def from_json(
    values: object, config: Config, *, step: int, question_ids: Collection[int], source: str
) -> Surplus:
    """The surplus that the checkpoint named `source`, of `step` steps, holds.

    Raises CheckpointError for what is no surplus, an output that is too old under
    refill.max_staleness or of the future, and a question that the data do not have.
    """
    assert config.refill is not None
    if not isinstance(values, list):
        raise _error(source, f"surplus is {values!r}, expected a list")
    restored = []
    for number, value in enumerate(values):
        where = f"surplus[{number}]"
        if not isinstance(value, dict) or set(_BEFORE | value) != set(_FIELDS):
            raise _error(source, f"{where} must have the fields {', '.join(_FIELDS)} only")
        fields: dict[str, Any] = _BEFORE | value
        for name, kind in _FIELDS.items():
            if type(fields[name]) is not kind:
                raise _error(
                    source, f"{where}.{name} is {fields[name]!r}, expected {kind.__name__}"
                )
        tokens, outputs, questions, coefficient, decided_tokens = (
            fields.pop(name)
            for name in ("tokens", "outputs", "questions", "coefficient", "decided_tokens")
        )
        if fields["verdict"] not in ("correct", "incorrect") or not math.isfinite(coefficient):
            raise _error(
                source,
                f"{where} is {fields['verdict']!r} with coefficient {coefficient}, expected a "
                "decided output with a finite one",
            )
        if not tokens or not all(type(token) is int for token in tokens):
            raise _error(source, f"{where}.tokens is {tokens}, expected token ids")
        if not (1 <= outputs < math.inf and 1 <= questions < math.inf):
            raise _error(
                source,
                f"{where} stands for {outputs} outputs and {questions} questions, expected at "
                "least 1 of each",
            )
        fields["verdict"] = Verdict(fields["verdict"])
        sample = Sample(**fields, tokens=tuple(tokens), log_probs=())
        if not 1 <= step - sample.step <= config.refill.max_staleness:
            raise _error(
                source,
                f"{where} is of step {sample.step}, to be trained on in step {step} or later, and "
                f"refill.max_staleness is {config.refill.max_staleness}",
            )
        if sample.question_id not in question_ids:
            raise _error(
                source,
                f"{where} answers question {sample.question_id}, which {config.data.train} does "
                "not have",
            )
        restored.append(Carried(sample, outputs, questions, coefficient, decided_tokens))
    return tuple(restored)


def _error(source: str, found: str) -> CheckpointError:
    return CheckpointError(
        f"{source}: {found}: bring back the data or the version that wrote it, or start over with "
        "another --workdir."
    )
