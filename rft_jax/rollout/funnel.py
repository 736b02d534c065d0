"""The acceptance funnel of a rollout: what became of every sampled output. Imports no jax."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from rft_jax.types import Judgement, Sample, Verdict
from rft_jax.verification.rules import is_parsed

MOST_BINS, BINS_OF_MANY = 17, 10
"""Equal bins of a question's pass rate over [0, 1]; 1 falls in the last. Of G samples a question
there are G + 1, which k correct outputs fill each; of more than MOST_BINS values BINS_OF_MANY."""


def pass_rates(samples: Sequence[Sample]) -> dict[int, float]:
    """Correct outputs over decided outputs of each question that has a decided one."""
    verdicts: dict[int, list[bool]] = defaultdict(list)
    for sample in samples:
        if sample.verdict is not Verdict.UNDECIDED:
            verdicts[sample.question_id].append(sample.accepted)
    return {question: sum(known) / len(known) for question, known in verdicts.items()}


def _log_prob(samples: Sequence[Sample]) -> float | None:
    """Mean log-prob per token in nats; None where the sampler's are not known."""
    known = [sample.log_prob / sample.num_tokens for sample in samples]
    mean = float(np.mean(known)) if known else math.nan
    return None if math.isnan(mean) else mean


def _reward_deviation(samples: Sequence[Sample]) -> float | None:
    """The standard deviation of rewards within a question, the mean over questions with at least
    two decided outputs: what a baseline leaves."""
    rewards: dict[int, list[float]] = defaultdict(list)
    for sample in samples:
        rewards[sample.question_id].append(sample.value)
    spread = [np.std(group) for group in rewards.values() if len(group) > 1]
    return float(np.mean(spread)) if spread else None


def _mean_length(samples: Sequence[Sample]) -> float | None:
    return float(np.mean([sample.num_tokens for sample in samples])) if samples else None


def funnel(
    samples: Sequence[Sample], *, num_distinct: int, num_kept: int
) -> dict[str, float | list[int] | None]:
    """Metrics of one rollout, or of a whole pool, by name; None where nothing is there to average.

    sampled >= finished >= parsed >= correct, and distinct >= kept, which are of the correct ones
    where the method trains on accepted outputs; undecided stand beside. reward: the mean over
    decided outputs, where a checker says rewards.
    """
    decided = [sample for sample in samples if sample.verdict is not Verdict.UNDECIDED]
    correct = [sample for sample in decided if sample.accepted]
    rates = np.array(list(pass_rates(samples).values()))
    values = 1 + max(Counter(sample.question_id for sample in samples).values(), default=0)
    bins = values if values <= MOST_BINS else BINS_OF_MANY
    histogram, _ = np.histogram(rates, bins=bins, range=(0.0, 1.0))
    sampled_tokens = sum(sample.num_tokens for sample in samples)
    accepted_tokens = sum(sample.num_tokens for sample in correct)
    rewards = [sample.value for sample in decided]
    said = any(sample.reward is not None for sample in decided)
    return ({"reward": float(np.mean(rewards))} if said else {}) | {
        "funnel/sampled": len(samples),
        "funnel/finished": sum(sample.finished for sample in samples),
        "funnel/parsed": sum(
            sample.finished and is_parsed(Judgement(sample.verdict, sample.reason))
            for sample in samples
        ),
        "funnel/correct": len(correct),
        "funnel/distinct": num_distinct,
        "funnel/kept": num_kept,
        "funnel/undecided": len(samples) - len(decided),
        "pass_rate": len(correct) / len(decided) if decided else None,
        "questions/pass_rate_histogram": histogram.tolist(),
        "questions/all_correct": float(np.mean(rates == 1.0)) if rates.size else None,
        "questions/none_correct": float(np.mean(rates == 0.0)) if rates.size else None,
        "questions/reward_deviation": _reward_deviation(decided),
        "policy/log_prob_correct": _log_prob(correct),
        "policy/log_prob_incorrect": _log_prob([s for s in decided if not s.accepted]),
        "lengths/correct": _mean_length(correct),
        "lengths/incorrect": _mean_length([s for s in decided if not s.accepted]),
        "lengths/truncated": _mean_length([s for s in samples if not s.finished]),
        "cost/sampled_per_accepted_token": (
            sampled_tokens / accepted_tokens if accepted_tokens else None
        ),
    }
