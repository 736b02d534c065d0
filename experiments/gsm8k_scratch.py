"""SFT, then RFT and Online RFT, on GSM8K from random parameters.

Reproduces: x
Expect: x
Time: x
Command: x
"""

from __future__ import annotations

import os
from dataclasses import replace

from rft_jax.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    OptimizerConfig,
    PoolConfig,
    RolloutConfig,
    SelectionConfig,
    TokenizerConfig,
    UpdateConfig,
)

GSM8K_DIR = os.environ.get("GSM8K_DIR", "data/gsm8k")
"""Folder of train.jsonl and test.jsonl, relative to the working directory."""

TRAIN = f"jsonl:{GSM8K_DIR}/train.jsonl[:7217]"
VALIDATION = f"jsonl:{GSM8K_DIR}/train.jsonl[7217:]"
TEST = f"jsonl:{GSM8K_DIR}/test.jsonl[:256]"

SFT = Config(
    method="sft",
    steps=500,
    data=DataConfig(
        train=TRAIN,
        validation=VALIDATION,
        test=TEST,
        max_prompt_tokens=336,
        max_completion_tokens=496,
    ),
    tokenizer=TokenizerConfig(corpus=TRAIN, vocab_size=2000),
    model=ModelConfig(
        num_layers=3, d_model=192, num_heads=2, num_kv_heads=1, head_dim=64, mlp_dim=512
    ),
    # Attention fills squares of row_length, so rows are as short as the longest question allows.
    update=UpdateConfig(row_length=832, rows_per_microbatch=1, sequences_per_step=16),
    optimizer=OptimizerConfig(learning_rate=2e-3, schedule="cosine", warmup_steps=50),
    evaluation=EvaluationConfig(
        every_steps=250, num_questions=64, test_samples_per_question=4, questions_per_batch=64
    ),
    checkpoint=CheckpointConfig(every_steps=100),
)

RFT = replace(
    SFT,
    method="rft",
    init_from="run:sft",
    steps=20,
    # 19 of 20 solutions have at most 248 tokens; a longer output counts as truncated.
    data=replace(SFT.data, max_completion_tokens=256),
    rollout=RolloutConfig(questions_per_step=32, samples_per_question=8),
    pool=PoolConfig(rollout_steps=20),
    selection=SelectionConfig(dedupe="equations"),
    update=UpdateConfig(row_length=592, rows_per_microbatch=1, sequences_per_step=8),
    optimizer=OptimizerConfig(learning_rate=1e-4),
    evaluation=replace(SFT.evaluation, every_steps=10),
    checkpoint=CheckpointConfig(every_steps=5),
)

ONLINE_RFT = replace(
    RFT,
    method="online_rft",
    pool=None,
    selection=SelectionConfig(),
    update=replace(RFT.update, sequences_per_step=0),
)


def experiment() -> dict[str, Config]:
    """The runs in order."""
    return {"sft": SFT, "rft": RFT, "online_rft": ONLINE_RFT}
