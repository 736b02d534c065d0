"""Held-out evaluation: greedy accuracy, unbiased pass@k, maj@k, entropy and diversity."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rft_jax.config import EvaluationConfig
from rft_jax.distributed.collectives import told_by_all
from rft_jax.evaluation.voting import Votes, cast_votes, correct
from rft_jax.io.paths import Folder, make, write_atomically
from rft_jax.keys import Purpose
from rft_jax.observe.statistics import majority_at_k, pass_at_k, pass_ks, standard_error
from rft_jax.rollout.engine import Part, Rollout, Sampling, blocks, sample, verify
from rft_jax.training.selection import distinct
from rft_jax.types import Params, Question, Sample, Verdict
from rft_jax.verification.pool import VerifierPool


class Evaluation(NamedTuple):
    """Metrics by name, and one row of facts per question."""

    metrics: dict[str, float | None]
    rows: list[dict[str, Any]]


class Outputs(NamedTuple):
    """Verified outputs of the same questions: one of each, and G of each or none at all."""

    greedy: Rollout
    sampled: Rollout | None

    @property
    def groups(self) -> list[list[Sample]]:
        """The sampled outputs of each question."""
        samples = self.sampled.samples if self.sampled else []
        size = len(samples) // len(self.greedy.samples)
        return [samples[first : first + size] for first in range(0, len(samples), size or 1)]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _sampled_row(samples: Sequence[Sample], votes: Votes | None) -> dict[str, Any]:
    decided = [sample for sample in samples if sample.verdict is not Verdict.UNDECIDED]
    accepted = [sample for sample in decided if sample.accepted]
    return {
        "num_samples": len(decided),
        "num_correct": len(accepted),
        "num_distinct_correct": len(distinct(accepted, "equations")),
        **({} if votes is None else _voted(votes)),
    }


def _voted(votes: Votes) -> dict[str, Any]:
    """What the answers of a question's decided outputs say: how many there are, and the share that
    the most frequent one has of all outputs."""
    answers = Counter(
        answer
        for answer, verdict in zip(*votes, strict=True)
        if verdict is not None and answer is not None
    )
    decided = sum(verdict is not None for verdict in votes.correct)
    return {
        "majority_correct": majority_at_k(*votes),
        "majority_share": max(answers.values(), default=0) / decided if decided else None,
        "num_answers": len(answers),
    }


BINS = 10
"""Equal bins of confidence in the calibration error."""


def calibration_error(confidence: Sequence[float], right: Sequence[float]) -> float:
    """Expected calibration error: |accuracy - confidence| of each bin of confidence, weighted by
    its questions (Guo et al., arXiv 1706.04599, eq. 3).

    Args:
        confidence: of each question, in [0, 1].
        right: whether it is right, in [0, 1].
    """
    sure, correct = np.asarray(confidence, float), np.asarray(right, float)
    bins = np.minimum((sure * BINS).astype(int), BINS - 1)
    apart = np.bincount(bins, correct - sure, minlength=BINS)
    return float(np.abs(apart).sum() / len(sure))


def _sampled_metrics(rows: Sequence[dict[str, Any]], num_samples: int) -> dict[str, float | None]:
    """pass@k over the questions with at least k decided outputs, maj@K, diversity."""
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
    if all("majority_correct" in row for row in rows):
        metrics[f"maj_at/{num_samples}"] = _mean([row["majority_correct"] for row in rows])
        voted = [row for row in rows if row["majority_share"] is not None]
        sure, right = (
            [row[name] for row in voted] for name in ("majority_share", "majority_correct")
        )
        metrics["calibration/confidence"] = _mean(sure)
        metrics["calibration/error"] = calibration_error(sure, right) if voted else None
        metrics["questions/answers"] = _mean([row["num_answers"] for row in rows])
    metrics["questions/distinct_correct"] = _mean([row["num_distinct_correct"] for row in rows])
    return metrics


def draw(
    params: Params,
    questions: Sequence[Question],
    sampling: Sampling,
    config: EvaluationConfig,
    *,
    num_samples: int,
    on_part: Callable[[Part], None] | None = None,
) -> Outputs:
    """Greedy and, with num_samples > 0, sampled outputs for every question, verified.

    The random numbers depend on seed, question and sample index, not on the training step, so two
    policies are compared on common random numbers.

    Args:
        params: of the policy, laid out for sampling.
        questions: to answer.
        sampling: model, data, mesh, tokenizer, verifier and seed.
        config: temperature and questions in a batch; the numbers of samples in it are not read.
        num_samples: G, outputs a question beside the greedy one.
        on_part: called as outputs of each part are verified.
    """

    def outputs(count: int, temperature: float) -> Rollout:
        drawn = [
            verify(
                sample(
                    params,
                    block.questions,
                    sampling,
                    step=0,
                    num_samples=count,
                    temperature=temperature,
                    purpose=Purpose.EVALUATION,
                    questions_per_batch=block.multiple,
                    num_slots=config.questions_per_batch * count,
                    on_part=on_part,
                )
            )
            for block in blocks(questions, config.questions_per_batch)
        ]
        return _joined(drawn)

    return Outputs(
        greedy=outputs(1, 0.0),
        sampled=outputs(num_samples, config.temperature) if num_samples else None,
    )


def _joined(parts: Sequence[Rollout]) -> Rollout:
    return Rollout(
        samples=[sample for part in parts for sample in part.samples],
        own=[sample for part in parts for sample in part.own],
        entropies=np.concatenate([part.entropies for part in parts]),
        seconds_sampling=sum(part.seconds_sampling for part in parts),
        seconds_verifying=sum(part.seconds_verifying for part in parts),
        seconds_verifying_hidden=sum(part.seconds_verifying_hidden for part in parts),
        decoded=tuple(decoded for part in parts for decoded in part.decoded),
    )


def _rows(
    questions: Sequence[Question], outputs: Outputs, votes: Sequence[Votes] | None
) -> list[dict[str, Any]]:
    """The facts of every question; each process makes the rows of those whose outputs it has."""
    own = {sample.question_id for sample in outputs.greedy.own}
    rows: list[dict[str, Any]] = []
    groups = outputs.groups
    for number, (question, greedy) in enumerate(
        zip(questions, outputs.greedy.samples, strict=True)
    ):
        if question.id not in own:
            continue
        row = {
            "question_id": question.id,
            "greedy_correct": correct(greedy),
            "greedy_text": greedy.text,
        }
        sampled = (
            _sampled_row(groups[number], votes[number] if votes is not None else None)
            if groups
            else {}
        )
        rows.append(row | sampled)
    told = {row["question_id"]: row for part in told_by_all(rows) for row in part}
    return [told[question.id] for question in questions]


def own_votes(
    questions: Sequence[Question], outputs: Outputs, verifier: VerifierPool
) -> list[Votes] | None:
    """The votes of the sampled outputs of each question; none of those that another process has."""
    own = {sample.question_id for sample in outputs.greedy.own}
    groups = [group if group[0].question_id in own else [] for group in outputs.groups]
    return cast_votes(groups, verifier, questions)


def measure(
    questions: Sequence[Question], outputs: Outputs, votes: Sequence[Votes] | None
) -> Evaluation:
    """The metrics and rows of an evaluation; without maj@k where there are no votes (own_votes).

    Undecided outputs are left out of every rate. Policy entropy is that of the sampled outputs, in
    nats per token (of the greedy ones without).
    """
    greedy, sampled = outputs
    verdicts = [correct(sample) for sample in greedy.samples]
    rows = _rows(questions, outputs, votes)
    metrics: dict[str, float | None] = {
        "greedy/accuracy": _mean(verdicts),
        "greedy/standard_error": standard_error(verdicts),
        "greedy/undecided": float(np.mean([verdict is None for verdict in verdicts])),
    }
    if any(sample.reward is not None for sample in greedy.samples):
        decided = [one for one in greedy.samples if one.verdict is not Verdict.UNDECIDED]
        metrics["greedy/reward"] = float(np.mean([sample.value for sample in decided]))
    shown = sampled or greedy
    if sampled is not None:
        metrics |= _sampled_metrics(rows, len(outputs.groups[0]))
    metrics["policy/entropy"] = float(shown.entropies.mean())
    metrics["lengths/mean"] = float(np.mean([sample.num_tokens for sample in shown.samples]))
    metrics["lengths/truncated"] = float(np.mean([not s.finished for s in shown.samples]))
    return Evaluation(metrics, rows)


def evaluate(
    params: Params,
    questions: Sequence[Question],
    sampling: Sampling,
    config: EvaluationConfig,
    *,
    num_samples: int,
) -> Evaluation:
    """Draw outputs for every question, and measure them; arguments as of `draw`."""
    assert sampling.verifier is not None, "an evaluation verifies"
    outputs = draw(params, questions, sampling, config, num_samples=num_samples)
    return measure(questions, outputs, own_votes(questions, outputs, sampling.verifier))


def turnover(
    start: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]
) -> dict[str, float | None]:
    """Of the questions that the start did not solve the share that is solved, and of those that it
    did the share that is not; solved: by any of the same number of outputs, those sampled or the
    greedy one, and nothing where that number has changed. Then the change of the share solved (with
    samples: of pass@G), and of distinct correct outputs where outputs are sampled, each with its
    standard error over questions.

    Args:
        start: the rows of the evaluation before the first step.
        rows: of this one, of the same questions.
    """
    before = {row["question_id"]: row for row in start}
    pairs = [(before[row["question_id"]], row) for row in rows if row["question_id"] in before]
    counts = [max((row.get("num_samples", 0) for row in of), default=0) for of in (start, rows)]
    if rows and counts[0] != counts[1]:
        return {}
    solved = [(_solved(old), _solved(new)) for old, new in pairs]
    known = [(old, new) for old, new in solved if old is not None and new is not None]
    found = {
        "questions/gained": _mean([float(new) for old, new in known if not old]),
        "questions/lost": _mean([float(not new) for old, new in known if old]),
    }
    changes = {"solved": [float(new) - float(old) for old, new in known]}
    if pairs and all("num_distinct_correct" in row for pair in pairs for row in pair):
        distinct = [[row["num_distinct_correct"] for row in pair] for pair in pairs]
        changes["distinct"] = [float(new - old) for old, new in distinct]
    for name, change in changes.items():
        found[f"questions/{name}_change"] = _mean(change)
        found[f"questions/{name}_change_error"] = standard_error(change)
    return found


def _solved(row: Mapping[str, Any]) -> bool | None:
    if "num_samples" in row:
        return bool(row["num_correct"]) if row["num_samples"] else None
    known: bool | None = row["greedy_correct"]
    return known


def write_rows(path: Folder, rows: Sequence[dict[str, Any]]) -> None:
    """One JSON object per question, whole or not at all."""
    make(path.parent)
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
