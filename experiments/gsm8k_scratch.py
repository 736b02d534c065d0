"""SFT, then RFT and Online RFT, on the real GSM8K text, from random parameters on a CPU.

Reproduces: the data, the solutions with their calculator marks (`<<48/2=24>>`) and the rule of
    GSM8K (Cobbe et al., arXiv 2110.14168) under the methods of DeepSeekMath (arXiv 2402.03300,
    section 5.2). No published result: 1.9 million parameters and one pass over the questions.
Expect: not measured to the end yet. Greedy accuracy of 0 to 5 % on 256 test questions (95 %
    interval about 2.5 points either way), too little to order the methods by. The point is the
    path from text to accepted outputs, which the report's funnel shows.
Time: not measured as a whole; an SFT update takes about 1.6 CPU-seconds, so 7 minutes of SFT and
    about 20 in all on 2 idle CPU cores.
Command: rft-jax run experiments/gsm8k_scratch.py

The environment variable GSM8K_DIR names the folder of the official train.jsonl and test.jsonl
(public repository openai/grade-school-math, MIT licence); without it data/gsm8k in the working
directory. TFDS has the same rows as `tfds:gsm8k/train` and `tfds:gsm8k/test`, for which TensorFlow
must be installed; override data.train and the others, or edit the sources below.
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

# The last 256 train rows are for validation; of the test rows the first 256, for speed.
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
        # With this tokenizer the longest question has 321 tokens, the longest solution 489.
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
    # 19 of 20 solutions have at most 248 tokens. A longer output is truncated, so incorrect;
    # both arms are sampled and tested so, while SFT trains on the long solutions too.
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
