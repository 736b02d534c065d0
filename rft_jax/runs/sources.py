"""What each step trains on: the three sources of samples of the methods' table.

Demonstrations and RFT's pool are fixed sets; Online RFT samples anew.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from rft_jax.config import Config
from rft_jax.data.prompts import completion_tokens, prompt_tokens
from rft_jax.data.stream import Position, take
from rft_jax.io.paths import Folder
from rft_jax.keys import Purpose
from rft_jax.rollout import log as rollout_log
from rft_jax.rollout.engine import Rollout, Sampling, rollout
from rft_jax.rollout.funnel import funnel
from rft_jax.training import batch_filling as refill
from rft_jax.training.objective import METHODS, output_weights
from rft_jax.training.packing import TrainingSequence
from rft_jax.training.selection import select
from rft_jax.types import Decoded, Params, Question, Sample, Verdict

Facts = dict[str, Any]


class Supplied(NamedTuple):
    """sequences: empty when nothing was accepted; position: of the stream after this step;
    surplus: what the next step may train on (refill); decoded: what was sampled for it."""

    sequences: list[TrainingSequence]
    position: Position
    facts: Facts
    surplus: refill.Surplus = ()
    decoded: tuple[Decoded, ...] = ()


Supply = Callable[[int, Position, Callable[[], Params], refill.Surplus], Supplied]
"""(step, position, the policy in its rollout layout, when it is wanted, surplus of the step before)
-> what to train on."""


class Chosen(NamedTuple):
    """The outputs of a rollout or pool to train on, with their weights in the objective."""

    sequences: list[TrainingSequence]
    num_distinct: int
    num_kept: int


def choose(
    samples: Sequence[Sample], questions: Sequence[Question], config: Config, sampling: Sampling
) -> Chosen:
    """Coefficients, selection and denominator: from verified samples to weighted sequences.

    With a KL term every decided output is returned, as the KL is over all samples of the policy;
    otherwise only the kept ones are.
    """
    assert config.selection is not None
    decided = [sample for sample in samples if sample.verdict is not Verdict.UNDECIDED]
    correct = np.array([sample.accepted for sample in decided], bool)
    coefficients = METHODS[config.method].coefficient(correct)
    coefficient_of = {id(s): float(c) for s, c in zip(decided, coefficients, strict=True) if c}
    kept, num_distinct = select([s for s in decided if id(s) in coefficient_of], config.selection)
    weights = output_weights(
        np.array([sample.question_id for sample in kept], np.int64),
        denominator=config.objective.denominator,
        num_sampled=len(decided),
        num_questions=len({sample.question_id for sample in decided}),
    )
    weight_of = {
        id(sample): coefficient_of[id(sample)] * float(weight)
        for sample, weight in zip(kept, weights, strict=True)
    }
    with_kl = config.objective.kl_coefficient > 0
    prompts = {
        question.id: prompt_tokens(question.text, config.data, sampling.tokenizer)
        for question in questions
    }
    sequences = [
        TrainingSequence(
            prompt=prompts[sample.question_id],
            completion=sample.tokens,
            weight=weight_of.get(id(sample), 0.0),
            kl_weight=1.0 / len(decided) if with_kl else 0.0,
            log_probs=sample.log_probs,
        )
        for sample in (decided if with_kl else kept)
    ]
    return Chosen(sequences, num_distinct, len(kept))


def fixed(sequences: Sequence[TrainingSequence], config: Config) -> Supply:
    """Minibatches of a fixed set, in seeded random order, epoch after epoch.

    Weights are those of the whole set; a minibatch scales them so that its expectation is theirs.
    """
    size = config.update.sequences_per_step
    scale = len(sequences) / size

    def supply(
        step: int,
        position: Position,
        policy: Callable[[], Params],
        surplus: refill.Surplus,
    ) -> Supplied:
        rows, position = take(len(sequences), config.seed, position, size)
        batch = [
            sequences[row]._replace(weight=sequences[row].weight * scale, log_probs=())
            for row in rows
        ]
        return Supplied(batch, position, {})

    return supply


def demonstrations(
    questions: Sequence[Question], config: Config, sampling: Sampling
) -> list[TrainingSequence]:
    """The source's own solutions, each an accepted output (SFT)."""
    weights = output_weights(
        np.array([question.id for question in questions], np.int64),
        denominator=config.objective.denominator,
        num_sampled=len(questions),
        num_questions=len(questions),
    )
    coefficients = METHODS[config.method].coefficient(np.ones(len(questions), bool))
    return [
        TrainingSequence(
            prompt_tokens(question.text, config.data, sampling.tokenizer),
            completion_tokens(question.solution or "", sampling.tokenizer),
            float(weight * coefficient),
        )
        for question, weight, coefficient in zip(questions, weights, coefficients, strict=True)
    ]


def sample_round(
    params: Params, questions: Sequence[Question], config: Config, sampling: Sampling, step: int
) -> Rollout:
    """One round of the rollout's settings."""
    assert config.rollout is not None
    return rollout(
        params,
        questions,
        sampling,
        step=step,
        num_samples=config.rollout.samples_per_question,
        temperature=config.rollout.temperature,
        purpose=Purpose.ROLLOUT,
        questions_per_batch=config.rollout.questions_per_step,
        num_slots=config.rollout.slots,
        # With a KL term every decided output is trained on.
        shares=_is_decided if config.objective.kl_coefficient else _is_accepted,
    )


def _is_decided(sample: Sample) -> bool:
    return sample.verdict is not Verdict.UNDECIDED


def _is_accepted(sample: Sample) -> bool:
    return sample.accepted


def writer() -> rollout_log.Writer:
    """This process, as the one that writes its part of a log."""
    return rollout_log.Writer(jax.process_index(), jax.process_count())


def seconds_of(rounds: Sequence[Rollout]) -> dict[str, float]:
    """Seconds of rollouts, as metrics."""
    return {
        "seconds/sampling": sum(drawn.seconds_sampling for drawn in rounds),
        "seconds/verifying": sum(drawn.seconds_verifying for drawn in rounds),
        "seconds/verifying_hidden": sum(drawn.seconds_verifying_hidden for drawn in rounds),
    }


def next_questions(
    questions: Sequence[Question],
    config: Config,
    position: Position,
    asked: Container[int] = frozenset(),
) -> tuple[list[Question], Position]:
    """One round's questions. One that an epoch's end and the next one's start both name is
    asked once: the second time it would get the same samples (their keys are addressed).

    asked: ids of the questions that the step has asked before, not all of them; they are passed
    over for the same reason.
    """
    assert config.rollout is not None
    count, new = config.rollout.questions_per_step, list[Question]()
    while not new:
        rows, position = take(len(questions), config.seed, position, count)
        named = [questions[row] for row in dict.fromkeys(rows.tolist())]
        new = [question for question in named if question.id not in asked]
    return new, position


def _filled_sequences(
    filled: refill.Filled, questions: Mapping[int, Question], config: Config, sampling: Sampling
) -> list[TrainingSequence]:
    """`choose` for a step with refill; questions: by id."""
    weights = output_weights(
        np.array([sample.question_id for sample in filled.trained], np.int64),
        denominator=config.objective.denominator,
        num_sampled=filled.num_sampled,
        num_questions=filled.num_questions,
    )
    coefficients = METHODS[config.method].coefficient(
        np.array([sample.accepted for sample in filled.trained], bool)
    )
    return [
        TrainingSequence(
            prompt_tokens(questions[sample.question_id].text, config.data, sampling.tokenizer),
            sample.tokens,
            float(coefficient) * float(weight),
            log_probs=sample.log_probs,
        )
        for sample, weight, coefficient in zip(filled.trained, weights, coefficients, strict=True)
    ]


def online(
    questions: Sequence[Question],
    config: Config,
    sampling: Sampling,
    folder: Folder,
) -> Supply:
    """Outputs of the current policy, sampled at each step and logged in `folder` (Online RFT).

    One round a step; with refill, rounds until enough outputs are kept (training/batch_filling.py).
    """
    by_id = {question.id: question for question in questions}

    def supply(
        step: int,
        position: Position,
        policy: Callable[[], Params],
        surplus: refill.Surplus,
    ) -> Supplied:
        params = policy()
        asked: dict[int, Question] = {}
        rounds: list[Rollout] = []
        samples: list[Sample] = []
        own: list[Sample] = []
        while not rounds or refill.wants_another_round(
            samples, surplus, config, num_unasked=len(questions) - len(asked)
        ):
            new, position = next_questions(questions, config, position, asked)
            asked |= {question.id: question for question in new}
            rounds.append(sample_round(params, new, config, sampling, step))
            samples += rounds[-1].samples
            own += rounds[-1].own
        rollout_log.write(
            folder, step, own, list(asked.values()), seed=config.seed, writer=writer()
        )
        facts: Facts = {}
        if config.refill is None:
            chosen = choose(samples, list(asked.values()), config, sampling)
        else:
            filled = refill.fill(samples, surplus, config, step=step, num_rounds=len(rounds))
            sequences = _filled_sequences(filled, by_id, config, sampling)
            chosen = Chosen(sequences, filled.num_distinct, filled.num_kept)
            facts, surplus = dict(filled.facts), filled.surplus
        facts |= funnel(samples, num_distinct=chosen.num_distinct, num_kept=chosen.num_kept)
        facts |= seconds_of(rounds) | {
            "policy/entropy": float(np.concatenate([drawn.entropies for drawn in rounds]).mean()),
            "sampled_tokens": sum(drawn.num_tokens for drawn in rounds),
            "sampled_outputs": len(samples),
        }
        decoded = tuple(one for drawn in rounds for one in drawn.decoded)
        return Supplied(chosen.sequences, position, facts, surplus, decoded)

    return supply
