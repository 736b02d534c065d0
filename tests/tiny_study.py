"""A study that takes seconds: RFT and Online RFT over two seeds and two learning rates."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import tiny_experiment
from synthetic_workdir import write_lines

from rft_jax.config import Config, PoolConfig, Study
from rft_jax.observe.statistics import pass_at_k


def arms(questions: str) -> dict[str, Config]:
    """RFT and Online RFT with equal samples and updates."""
    evaluation = replace(tiny_experiment.sft(questions).evaluation, every_steps=2)
    steps = 4
    return {
        "rft": tiny_experiment.rft(
            questions, steps=steps, pool=PoolConfig(rollout_steps=steps), evaluation=evaluation
        ),
        "online_rft": tiny_experiment.online_rft(questions, steps=steps, evaluation=evaluation),
    }


def study(questions: str = "jsonl:questions.jsonl", **changes: Any) -> Study:
    """Two arms, two seeds, two learning rates; changes: fields."""
    values: dict[str, Any] = {
        "arms": arms(questions),
        "starts": {"sft": tiny_experiment.sft(questions)},
        "baseline": "rft",
        "grid": {"optimizer.learning_rate": (1e-3, 1e-2)},
        "score": "pass_at/1",
        "seeds": 2,
    }
    return Study(**values | changes)


def write_study(folder: Path) -> Path:
    """FOLDER/study.py, to be run with this folder on PYTHONPATH, and its questions."""
    path = folder / "study.py"
    source = tiny_experiment.write_questions(folder)
    path.write_text(
        f"import tiny_study\n\n\ndef study():\n    return tiny_study.study({source!r})\n",
        encoding="utf-8",
    )
    return path


def finish(
    folder: Path,
    config: Config,
    right: Sequence[int],
    *,
    seconds: float = 1.0,
    tokens: int = 100,
    samples: bool = True,
) -> None:
    """What a run leaves whose policy has so many correct outputs of 4 for each question, after
    steps of so many seconds and sampled tokens; before the first step it has one fewer.

    samples: whether its evaluations sample beside the greedy output.
    """
    outputs, pooled = 32 if config.rollout else 0, config.pool is not None
    lines: list[dict[str, Any]] = []
    evaluated = 0.0

    def line(kind: str, step: int, **more: Any) -> dict[str, Any]:
        sampling = config.steps if pooled else step
        return {
            "step": step, "kind": kind, "cost/updates": step,
            "cost/sampled_outputs": sampling * outputs,
            "cost/sampled_tokens": sampling * tokens if outputs else 0,
            "seconds/elapsed": seconds * (step + (config.steps if pooled else 0)) + evaluated,
        } | more  # fmt: skip

    def evaluate(kind: str, step: int, file: str, of: Sequence[int]) -> None:
        nonlocal evaluated
        evaluated += 10.0
        rows = [
            {"question_id": number, "greedy_correct": correct > 2, "num_samples": 4,
             "num_correct": correct, "num_distinct_correct": min(correct, 2)}
            for number, correct in enumerate(of)
        ]  # fmt: skip
        write_lines(folder / "evaluation" / file, rows)
        rates = {f"pass_at/{k}": float(pass_at_k(4, list(of), k).mean()) for k in (1, 2, 4)}
        greedy = sum(row["greedy_correct"] for row in rows) / len(rows)
        distinct = sum(row["num_distinct_correct"] for row in rows) / len(rows)
        sampled = rates | {"questions/distinct_correct": distinct} if samples else {}
        more = {"greedy/accuracy": greedy, "policy/entropy": 0.5, "seconds/evaluating": 10.0}
        more |= sampled
        further = config.data.more_test if kind == "test" else config.data.more_validation
        for name in (value.partition("=")[0] for value in further):
            write_lines(folder / "evaluation" / file.replace(kind, f"{kind}-{name}"), rows)
            more |= {f"{name}/{measure}": value for measure, value in more.items()}
        lines.append(line(kind, step, **more))

    if pooled:
        lines.append(line("train", 0, **{"funnel/sampled": 128, "funnel/correct": 64}))
    for step in range(config.steps + 1):
        if step and config.rollout and not pooled:
            lines.append(line("train", step, **{"funnel/sampled": 32, "funnel/correct": 8}))
        every = config.evaluation.every_steps
        if every and step % every == 0:
            of = right if step else [max(correct - 1, 0) for correct in right]
            evaluate("validation", step, f"validation-{step:06d}.jsonl", of)
    if config.data.test:
        evaluate("test", config.steps, "test.jsonl", right)
    write_lines(folder / "metrics.jsonl", lines)
    (folder / "finished.json").write_text(json.dumps({}), encoding="utf-8")
