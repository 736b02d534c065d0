"""What each step trains on: the three sources of samples of the methods' table.

Demonstrations and RFT's pool are fixed sets; Online RFT samples anew.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rft_jax import refill, rollout_log
from rft_jax.batches import Params
from rft_jax.config import Config
from rft_jax.data.prompts import check_lengths, completion_tokens, prompt_tokens
from rft_jax.data.questions import Position, take
from rft_jax.funnel import funnel
from rft_jax.keys import Purpose
from rft_jax.progress import Progress
from rft_jax.records import Question, Sample, Verdict
from rft_jax.rollouts import Rollout, Sampling, rollout
from rft_jax.training.objective import METHODS, output_weights
from rft_jax.training.packing import TrainingSequence
from rft_jax.training.selection import select

Facts = dict[str, Any]


class SupplyError(ValueError):
    """There is nothing to train on; the message says why."""


class Supplied(NamedTuple):
    """sequences: empty when nothing was accepted; position: of the stream after this step;
    surplus: what the next step may train on (refill)."""

    sequences: list[TrainingSequence]
    position: Position
    facts: Facts
    surplus: refill.Surplus = ()


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


def _sample_round(
    params: Params, questions: Sequence[Question], config: Config, sampling: Sampling, step: int
) -> Rollout:
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
    )


def _seconds(rounds: Sequence[Rollout]) -> dict[str, float]:
    return {
        "seconds/sampling": sum(drawn.seconds_sampling for drawn in rounds),
        "seconds/verifying": sum(drawn.seconds_verifying for drawn in rounds),
        "seconds/verifying_hidden": sum(drawn.seconds_verifying_hidden for drawn in rounds),
    }


def _next_questions(
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
    folder: Path,
) -> Supply:
    """Outputs of the current policy, sampled at each step and logged in `folder` (Online RFT).

    One round a step; with refill, rounds until enough outputs are kept (rft_jax/refill.py).
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
        while not rounds or refill.wants_another_round(
            samples, surplus, config, num_unasked=len(questions) - len(asked)
        ):
            new, position = _next_questions(questions, config, position, asked)
            asked |= {question.id: question for question in new}
            rounds.append(_sample_round(params, new, config, sampling, step))
            samples += rounds[-1].samples
        rollout_log.write(folder, step, samples, list(asked.values()), seed=config.seed)
        facts: Facts = {}
        if config.refill is None:
            chosen = choose(samples, list(asked.values()), config, sampling)
        else:
            filled = refill.fill(samples, surplus, config, step=step, num_rounds=len(rounds))
            sequences = _filled_sequences(filled, by_id, config, sampling)
            chosen = Chosen(sequences, filled.num_distinct, filled.num_kept)
            facts, surplus = dict(filled.facts), filled.surplus
        facts |= funnel(samples, num_distinct=chosen.num_distinct, num_kept=chosen.num_kept)
        facts |= _seconds(rounds) | {
            "policy/entropy": float(np.concatenate([drawn.entropies for drawn in rounds]).mean()),
            "sampled_tokens": sum(drawn.num_tokens for drawn in rounds),
            "sampled_outputs": len(samples),
        }
        return Supplied(chosen.sequences, position, facts, surplus)

    return supply


def sample_pool(
    params: Params,
    questions: Sequence[Question],
    config: Config,
    sampling: Sampling,
    folder: Path,
    stopped: Callable[[], int],
) -> dict[str, float] | None:
    """Fill rollouts/ with RFT's pool from the frozen start; None when stopped before the end.

    A rollout whose file exists is not repeated, so a killed run goes on where it was.
    """
    assert config.pool is not None
    assert config.rollout is not None
    position = Position(0, 0)
    steps = range(config.pool.rollout_steps)
    there = sum(rollout_log.path_of(folder, step).exists() for step in steps)
    seconds: dict[str, float] = {}
    with Progress(len(steps), there, f"{folder.parent.name} pool") as progress:
        for step in steps:
            asked, position = _next_questions(questions, config, position)
            if rollout_log.path_of(folder, step).exists():
                continue
            if stopped():
                return None
            drawn = _sample_round(params, asked, config, sampling, step)
            rollout_log.write(folder, step, drawn.samples, asked, seed=config.seed)
            new = _seconds([drawn])
            seconds = {name: seconds.get(name, 0.0) + value for name, value in new.items()}
            progress.update(
                step + 1,
                acceptance=float(np.mean([sample.accepted for sample in drawn.samples])),
                tokens_per_second=drawn.num_tokens / sum(new.values()),
            )
    return seconds


def pool(config: Config, sampling: Sampling, folder: Path) -> tuple[list[TrainingSequence], Facts]:
    """RFT's fixed set, from the log in `folder` or from pool.from_rollouts, and its funnel.

    Raises SupplyError when no output of the pool is accepted, or when the log is not one of this
    run's tokenizer and shapes; DataError when a prompt is too long.
    """
    assert config.pool is not None
    sources = config.pool.from_rollouts or (str(folder),)
    if config.pool.from_rollouts:
        pairs = rollout_log.read_folders(sources)
    else:
        steps = range(config.pool.rollout_steps)
        pairs = [p for step in steps for p in rollout_log.read(rollout_log.path_of(folder, step))]
    questions = list({question.id: question for question, _ in pairs}.values())
    samples = [sample for _, sample in pairs]
    _check_log(", ".join(sources), questions, samples, config, sampling)
    chosen = choose(samples, questions, config, sampling)
    if not chosen.sequences:
        raise SupplyError(
            f"{', '.join(sources)}: none of {len(samples)} sampled outputs is correct, so there is "
            "nothing to train on; look at them in the report, start from a better model, or sample "
            "more (pool.rollout_steps, rollout.samples_per_question)."
        )
    facts = funnel(samples, num_distinct=chosen.num_distinct, num_kept=chosen.num_kept)
    return chosen.sequences, facts | {
        "sampled_tokens": sum(len(sample.tokens) for sample in samples),
        "sampled_outputs": len(samples),
    }


def _check_log(
    source: str,
    questions: Sequence[Question],
    samples: Sequence[Sample],
    config: Config,
    sampling: Sampling,
) -> None:
    """Raise unless the outputs fit the run's shapes and their tokens are their text."""
    data, tokenizer = config.data, sampling.tokenizer
    rows = config.model.vocab_size or tokenizer.vocab_size
    check_lengths(
        questions,
        source=source,
        data=data,
        tokenizer=tokenizer,
        demonstrations=False,
    )
    for sample in samples:
        tokens, place = sample.tokens, f"step {sample.step}, question {sample.question_id}"
        if not 0 < len(tokens) <= data.max_completion_tokens:
            raise SupplyError(
                f"{source}: an output of {place} has {len(tokens)} tokens and "
                f"data.max_completion_tokens is {data.max_completion_tokens}: set it to that of "
                "the run that sampled."
            )
        ids = all(0 <= token < rows for token in tokens)
        ends = not sample.finished or tokens[-1] in tokenizer.eos_ids
        shown = tokens[:-1] if sample.finished else tokens
        if not ids or not ends or tokenizer.decode(shown) != sample.text:
            raise SupplyError(
                f"{source}: the tokens of an output of {place} are not its text under "
                f"{tokenizer.path}: name the tokenizer it was sampled with as tokenizer.path."
            )
