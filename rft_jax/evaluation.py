"""Held-out evaluation: greedy accuracy, unbiased pass@k, maj@k, entropy and diversity."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rft_jax.batches import Params
from rft_jax.config import EvaluationConfig
from rft_jax.keys import Purpose
from rft_jax.records import Question, Sample, Verdict
from rft_jax.rollouts import Rollout, Sampling, rollout
from rft_jax.statistics import majority_at_k, pass_at_k, pass_ks, standard_error
from rft_jax.training.selection import distinct
from rft_jax.verification.rules import vote


class Evaluation(NamedTuple):
    """Metrics by name, and one row of facts per question."""

    metrics: dict[str, float | None]
    rows: list[dict[str, Any]]


def _correct(sample: Sample) -> bool | None:
    return None if sample.verdict is Verdict.UNDECIDED else sample.accepted


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _sampled_row(samples: Sequence[Sample], verifier: str) -> dict[str, Any]:
    decided = [sample for sample in samples if sample.verdict is not Verdict.UNDECIDED]
    correct = [sample for sample in decided if sample.accepted]
    return {
        "num_samples": len(decided),
        "num_correct": len(correct),
        "num_distinct_correct": len(distinct(correct, "equations")),
        "majority_correct": majority_at_k(
            [vote(verifier, sample.text) if sample.finished else None for sample in samples],
            [_correct(sample) for sample in samples],
        ),
    }


def _sampled_metrics(
    rows: Sequence[dict[str, Any]], drawn: Rollout, num_samples: int
) -> dict[str, float | None]:
    """pass@k over the questions with at least k decided outputs, maj@K, entropy, diversity."""
    metrics: dict[str, float | None] = {}
    n = np.array([row["num_samples"] for row in rows])
    c = np.array([row["num_correct"] for row in rows])
    for k in pass_ks(num_samples):
        enough = n >= k
        known = enough.any()
        metrics[f"pass_at/{k}"] = (
            float(pass_at_k(n[enough], c[enough], k).mean()) if known else None
        )
    decided = n > 0
    metrics["sampled/standard_error"] = standard_error(c[decided] / n[decided])
    metrics[f"maj_at/{num_samples}"] = _mean([row["majority_correct"] for row in rows])
    metrics["questions/distinct_correct"] = _mean([row["num_distinct_correct"] for row in rows])
    metrics["policy/entropy"] = float(drawn.entropies.mean())
    return metrics


def evaluate(
    params: Params,
    questions: Sequence[Question],
    sampling: Sampling,
    config: EvaluationConfig,
    *,
    num_samples: int,
) -> Evaluation:
    """Greedy and, with num_samples > 0, sampled outputs for every question.

    The random numbers depend on seed, question and sample index, not on the training step, so two
    policies are compared on common random numbers. Undecided outputs are left out of every rate.
    Policy entropy is that of the sampled outputs, in nats per token (of the greedy ones without).
    """

    def draw(count: int, temperature: float) -> Rollout:
        return rollout(
            params,
            questions,
            sampling,
            step=0,
            num_samples=count,
            temperature=temperature,
            purpose=Purpose.EVALUATION,
            questions_per_batch=config.questions_per_batch,
            num_slots=config.questions_per_batch * count,
        )

    greedy = draw(1, 0.0)
    verdicts = [_correct(sample) for sample in greedy.samples]
    rows: list[dict[str, Any]] = [
        {"question_id": question.id, "greedy_correct": verdict, "greedy_text": sample.text}
        for question, verdict, sample in zip(questions, verdicts, greedy.samples, strict=True)
    ]
    metrics: dict[str, float | None] = {
        "greedy/accuracy": _mean(verdicts),
        "greedy/standard_error": standard_error(verdicts),
        "greedy/undecided": float(np.mean([verdict is None for verdict in verdicts])),
        "policy/entropy": float(greedy.entropies.mean()),
    }
    shown = greedy
    if num_samples:
        shown = draw(num_samples, config.temperature)
        for index, row in enumerate(rows):
            group = shown.samples[index * num_samples : (index + 1) * num_samples]
            row |= _sampled_row(group, sampling.verifier.name)
        metrics |= _sampled_metrics(rows, shown, num_samples)
    metrics["lengths/mean"] = float(np.mean([len(sample.tokens) for sample in shown.samples]))
    metrics["lengths/truncated"] = float(np.mean([not s.finished for s in shown.samples]))
    return Evaluation(metrics, rows)


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """One JSON object per question, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
