"""SFT, RFT and Online RFT that take seconds: for tests that carry runs out."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import tiny

from rft_jax.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    EvaluationConfig,
    OptimizerConfig,
    PoolConfig,
    RolloutConfig,
    TokenizerConfig,
    UpdateConfig,
    VerificationConfig,
)

NUM_QUESTIONS = 16
TIMING = re.compile(r"(seconds|system|speed)/.*")
"""Names of metrics that no two attempts share."""


def even_length(reference: str, output: str) -> bool:
    """A verifier that accepts about half of an unskilled policy's finished outputs."""
    return len(output) % 2 == 0


def everything(reference: str, output: str) -> bool:
    """A verifier that is fooled by all."""
    return True


def half(question: str, reference: int, output: str, goal: int) -> tuple[float, str]:
    """A checker of a user's own that reads a column; longer outputs are half right."""
    return (1.0 if len(output) % 2 == goal else 0.5), output[:1]


def nothing(reference: str, output: str) -> bool:
    """A verifier that accepts no output."""
    return False


def broken(reference: str, output: str) -> bool:
    """A verifier that decides nothing."""
    raise KeyError(output)


def write_questions(folder: Path) -> str:
    """Sums with solutions of few tokens, in FOLDER/questions.jsonl; returns the source."""
    rows = []
    for row in range(NUM_QUESTIONS):
        a, b = row % 4, row // 4
        rows.append({"question": f"{a}+{b}?", "answer": str(a + b), "solution": f"#### {a + b}"})
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return f"jsonl:{path}"


def sft(questions: str, **changes: Any) -> Config:
    """Eight updates on demonstrations; changes: fields or whole sections."""
    base = tiny.sft(
        questions,
        data=DataConfig(
            train=questions,
            validation=questions,
            test=f"{questions}[:6]",
            max_prompt_tokens=12,
            max_completion_tokens=8,
        ),
        tokenizer=TokenizerConfig(corpus=questions, vocab_size=274),
        steps=8,
        model=tiny.model(num_kv_heads=2),
        update=UpdateConfig(
            row_length=24, rows_per_microbatch=8, sequences_per_step=8, logits_at_once=2**14
        ),
        optimizer=OptimizerConfig(learning_rate=3e-2, schedule="cosine", warmup_steps=2),
        verification=VerificationConfig(
            verifier="tiny_experiment:even_length", canary="off", workers=1
        ),
        evaluation=EvaluationConfig(
            every_steps=3, num_questions=5, samples_per_question=2, test_samples_per_question=4,
            questions_per_batch=8,
        ),
        checkpoint=CheckpointConfig(every_steps=2),
    )  # fmt: skip
    return replace(base, **changes)


def rft(questions: str, **changes: Any) -> Config:
    """Eight updates on a pool of four rollouts of 8 questions x 4 samples."""
    base = replace(
        sft(questions),
        method="rft",
        init_from="run:sft",
        rollout=RolloutConfig(questions_per_step=8, samples_per_question=4),
        pool=PoolConfig(rollout_steps=4),
        selection=tiny.rft().selection,
        optimizer=OptimizerConfig(learning_rate=1e-2),
    )
    return replace(base, **changes)


def online_rft(questions: str, **changes: Any) -> Config:
    """Eight rollouts of 8 questions x 4 samples, each with an update."""
    base = rft(questions)
    update = replace(base.update, sequences_per_step=0)
    return replace(base, **({"method": "online_rft", "pool": None, "update": update} | changes))


def experiment(questions: str) -> dict[str, Config]:
    """The three methods, RFT and Online RFT from the same SFT run."""
    return {"sft": sft(questions), "rft": rft(questions), "online_rft": online_rft(questions)}


def write_experiment(folder: Path) -> Path:
    """FOLDER/study.py, to be run with this folder on PYTHONPATH, and its questions."""
    path = folder / "study.py"
    source = write_questions(folder)
    path.write_text(
        "import tiny_experiment\n\n\ndef experiment():\n"
        f"    return tiny_experiment.experiment({source!r})\n",
        encoding="utf-8",
    )
    return path


def lasting(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Metrics lines without what depends on the machine."""
    return [{k: v for k, v in line.items() if not TIMING.fullmatch(k)} for line in lines]
