"""The smallest valid settings, for any test that needs a Config or an experiment."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from rft_jax.config import (
    Config,
    DataConfig,
    ModelConfig,
    PoolConfig,
    RolloutConfig,
    SelectionConfig,
    TokenizerConfig,
    UpdateConfig,
)


def model(**changes: Any) -> ModelConfig:
    """Two layers of width 16, with two query heads to a key/value head."""
    base = ModelConfig(
        num_layers=2, d_model=16, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=24
    )
    return dataclasses.replace(base, **changes)


def sft(questions: str = "jsonl:questions.jsonl", **changes: Any) -> Config:
    """Three updates on demonstrations; changes: fields or whole sections."""
    base = Config(
        method="sft",
        data=DataConfig(
            train=questions, validation=questions, max_prompt_tokens=24, max_completion_tokens=40
        ),
        tokenizer=TokenizerConfig(corpus=questions, vocab_size=284),
        steps=3,
        model=model(),
        update=UpdateConfig(
            row_length=64, rows_per_microbatch=8, sequences_per_step=4, logits_at_once=2**14
        ),
    )
    return dataclasses.replace(base, **changes)


def rft(questions: str = "jsonl:questions.jsonl", **changes: Any) -> Config:
    """RFT from run `sft` with a pool of two rollouts of 4 questions x 2 samples."""
    base = dataclasses.replace(
        sft(questions),
        method="rft",
        init_from="run:sft",
        rollout=RolloutConfig(questions_per_step=4, samples_per_question=2),
        pool=PoolConfig(rollout_steps=2),
        selection=SelectionConfig(),
    )
    return dataclasses.replace(base, **changes)


def online_rft(questions: str = "jsonl:questions.jsonl", **changes: Any) -> Config:
    """Online RFT from run `sft`: three rollouts of 4 questions x 2 samples."""
    base = rft(questions)
    update = dataclasses.replace(base.update, sequences_per_step=0)
    return dataclasses.replace(
        base, **({"method": "online_rft", "pool": None, "update": update} | changes)
    )


def experiment(questions: str = "jsonl:questions.jsonl") -> dict[str, Config]:
    """The three methods, RFT and Online RFT from the same SFT run."""
    return {
        "sft": sft(questions),
        "rft": rft(questions),
        "online_rft": online_rft(questions),
    }


def write_questions(path: Path, count: int = 16) -> str:
    """Write a JSONL file of sums with solutions; returns its source, `jsonl:PATH`."""
    rows = []
    for row in range(count):
        a, b = row % 7, row // 7 + 1
        total = a + b
        rows.append(
            {
                "question": f"{a} and {b}?",
                "answer": str(total),
                "solution": f"{a} + {b} = {total}\n#### {total}",
            }
        )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return f"jsonl:{path}"
