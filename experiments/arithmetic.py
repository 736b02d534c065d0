"""Quickstart: SFT, then RFT and Online RFT, on generated arithmetic word problems.

A transformer of 0.5 million parameters learns from 2,000 worked problems, then from its own correct
answers to 5,120 drawn from 8,192 others. Both arms sample 40,960 outputs and make 160 updates.

Reproduces: the methods of DeepSeekMath (arXiv 2402.03300), section 5.2, in small; no published
    figure.
Expect: on 1,024 test questions greedy accuracy of 64.4 ± 1.5 % after SFT, 69.8 ± 1.4 % after RFT
    and 69.3 ± 1.4 % after Online RFT (± one standard error). Another kind of CPU rounds
    differently and ends some points away; both arms stay above SFT.
Time: 3.3 minutes on 2 CPU cores (AMD EPYC).
Command: rft-jax run experiments/arithmetic.py
"""

from __future__ import annotations

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

SOURCE = "tfds:arithmetic_problems"

SFT = Config(
    method="sft",
    steps=1000,
    data=DataConfig(
        train=f"{SOURCE}/demonstrations",
        validation=f"{SOURCE}/validation",
        test=f"{SOURCE}/test[:1024]",
        max_prompt_tokens=48,
        max_completion_tokens=40,
    ),
    tokenizer=TokenizerConfig(corpus=f"{SOURCE}/demonstrations", vocab_size=512),
    model=ModelConfig(
        num_layers=3, d_model=128, num_heads=4, num_kv_heads=4, head_dim=32, mlp_dim=256
    ),
    update=UpdateConfig(row_length=128, rows_per_microbatch=4, sequences_per_step=32),
    optimizer=OptimizerConfig(learning_rate=2e-3, schedule="cosine", warmup_steps=50, b2=0.98),
    evaluation=EvaluationConfig(
        every_steps=250, num_questions=256, test_samples_per_question=8, questions_per_batch=64
    ),
    checkpoint=CheckpointConfig(every_steps=250),
)

RFT = replace(
    SFT,
    method="rft",
    init_from="run:sft",
    steps=160,
    data=replace(SFT.data, train=f"{SOURCE}/train"),
    rollout=RolloutConfig(questions_per_step=32, samples_per_question=8),
    pool=PoolConfig(rollout_steps=160),
    selection=SelectionConfig(dedupe="text"),
    update=replace(SFT.update, sequences_per_step=128),
    optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=10, b2=0.99),
    evaluation=replace(SFT.evaluation, every_steps=40),
    checkpoint=CheckpointConfig(every_steps=40),
)

ONLINE_RFT = replace(
    RFT,
    method="online_rft",
    pool=None,
    selection=SelectionConfig(),
    update=replace(SFT.update, sequences_per_step=0),
)


def experiment() -> dict[str, Config]:
    """The runs in order."""
    return {"sft": SFT, "rft": RFT, "online_rft": ONLINE_RFT}
