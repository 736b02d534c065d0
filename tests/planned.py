"""A run to plan for: settings of every kind, and shapes that many meshes divide."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rft_jax.config import (
    Config,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    RolloutConfig,
    SelectionConfig,
    TokenizerConfig,
    UpdateConfig,
)
from rft_jax.planning.memory import Shards

ALONE = Shards(1, 1, 1)
MODEL = ModelConfig(
    num_layers=3, d_model=24, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=40, vocab_size=64
)
LORA = {"lora_rank": 5, "lora_alpha": 5.0, "lora_targets": ("query", "output", "gate", "down")}
MODELS = {
    "plain": MODEL,
    "tied": replace(MODEL, tie_embeddings=True, qkv_bias=True),
    "bfloat16": replace(MODEL, compute_dtype="bfloat16", qk_norm=True),
    "adapters": replace(MODEL, **LORA),
    "adapters in bfloat16": replace(MODEL, compute_dtype="bfloat16", tie_embeddings=True, **LORA),
}


def config(model: ModelConfig = MODEL, **changes: Any) -> Config:
    base = Config(
        method="online_rft",
        init_from="hf:model",
        steps=4,
        data=DataConfig(
            train="jsonl:q", validation="jsonl:q", test="jsonl:q",
            max_prompt_tokens=12, max_completion_tokens=100,
        ),
        tokenizer=TokenizerConfig(path="hf:model"),
        model=model,
        rollout=RolloutConfig(questions_per_step=16, samples_per_question=4, slots=32),
        selection=SelectionConfig(),
        update=UpdateConfig(row_length=128, rows_per_microbatch=8),
        evaluation=EvaluationConfig(test_samples_per_question=2, questions_per_batch=8),
    )  # fmt: skip
    return replace(base, **changes)
