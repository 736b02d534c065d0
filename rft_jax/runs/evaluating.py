"""The evaluation of a run after a step: every set of questions, its rows and its metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rft_jax.config import EvaluationConfig
from rft_jax.distributed.collectives import is_main
from rft_jax.evaluation.evaluate import evaluate, turnover, write_rows
from rft_jax.io.jsonl import read_jsonl
from rft_jax.io.paths import Folder
from rft_jax.observe.log import Kind
from rft_jax.rollout.engine import Sampling
from rft_jax.types import Params, Question


def rows_file(kind: Kind, name: str, step: int) -> str:
    """The file of the rows of a set. name: of the set, empty for data.validation and data.test."""
    stem = f"{kind}-{name}" if name else kind
    return f"{stem}.jsonl" if kind == "test" else f"{stem}-{step:06d}.jsonl"


def evaluate_sets(
    params: Params,
    sets: Mapping[str, Sequence[Question]],
    sampling: Sampling,
    config: EvaluationConfig,
    *,
    kind: Kind,
    step: int,
    folder: Folder,
) -> dict[str, Any]:
    """Evaluate on each set and write its rows to the folder; metrics, `NAME/...` of a named set.

    Args:
        params: of the policy, laid out for sampling.
        sets: questions by the name of their set, empty for the main one.
        sampling: as of `evaluate`.
        config: of the evaluation.
        kind: validation or test.
        step: of the run.
        folder: RUN/evaluation.
    """
    validation, told = kind == "validation", dict[str, Any]()
    for name, questions in sets.items():
        metrics, rows = evaluate(
            params,
            questions,
            sampling,
            config,
            num_samples=(
                config.samples_per_question if validation else config.test_samples_per_question
            ),
        )
        if is_main():
            write_rows(folder / rows_file(kind, name, step), rows)
            start = folder / rows_file(kind, name, 0)
            if validation and step and start.is_file():
                metrics |= turnover(read_jsonl(start, {"question_id": int}), rows)
        told |= {f"{name}/{metric}" if name else metric: one for metric, one in metrics.items()}
    return told
