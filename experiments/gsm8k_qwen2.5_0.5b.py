r"""RFT, Online RFT and GRPO from Qwen2.5-0.5B-Instruct on GSM8K, on one 16 GB GPU or TPU chip.

Each arm samples 51,200 outputs and makes 200 updates; every parameter is trained.

Reproduces: the arms of DeepSeekMath's figure 5 (arXiv 2402.03300, section 5.2) whose rewards are
    of outcomes, with a small published model; no published figure for RFT or Online RFT of it.
Expect: not measured. Published for the start: 49.6 % greedy on the 1,319 test questions (95 %
    interval over questions 46.9 to 52.3), with four examples before the question; verl's list of
    baselines has it end at 56.7 % with PPO (54.0 to 59.4) and at 54.3 % with GRPO on adapters
    (51.6 to 57.0). Without examples and with a boxed answer asked for, the start may differ.
Time: not measured; estimated for Online RFT by rft-jax plan --device, RFT the same (GiB of
    sampling / the update / evaluation; outputs of 256 tokens on average, half of them accepted):
    GPU T4 in float32  10.3 / 11.8 / 12.0 of 13.6 GiB, 79 s a step, 4.9 hours
    GPU RTX A4000      7.9 / 11.2 / 8.8 of 14.4 GiB, 17 s a step, 1.1 hours
    TPU v5e-1          8.0 / 12.8 / 10.5 of 15.8 GiB, 9 s a step, 0.6 hours
    GRPO trains on incorrect outputs too (--pass_rate 1): 136, 26 and 14 s a step; 8.0, 1.6 and
    0.9 hours; the same memory.
Command: rft-jax run experiments/gsm8k_qwen2.5_0.5b.py

A T4 has no bfloat16 units: XLA converts such products to float32 and back, which costs time and
saves none. By default jax takes 75 % of a GPU. So there, for instance in Colab:

    XLA_PYTHON_CLIENT_MEM_FRACTION=0.92 rft-jax run experiments/gsm8k_qwen2.5_0.5b.py \
        --all.model.compute_dtype float32

Training adapters only takes less than half of the update's memory (not tuned either):

    rft-jax run experiments/gsm8k_qwen2.5_0.5b.py --only online_rft \
        --online_rft.model.lora_rank 32 --online_rft.model.lora_alpha 64 \
        --online_rft.model.lora_targets query key value output gate up down \
        --online_rft.optimizer.learning_rate 2e-5

The start's own figures, by the same rule:

    rft-jax evaluate hf:Qwen/Qwen2.5-0.5B-Instruct --questions jsonl:data/gsm8k/test.jsonl \
        --system "Please reason step by step, and put your final answer within \boxed{}." \
        --verifier boxed --samples_per_question 8 --temperature 0.7 \
        --questions_per_batch 16 --out runs/start

Environment variables:
    GSM8K_DIR  folder of the official train.jsonl and test.jsonl; data/gsm8k if unset
    QWEN_DIR   folder of the model; the hub's Qwen/Qwen2.5-0.5B-Instruct if unset
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
    VerificationConfig,
)

GSM8K_DIR = os.environ.get("GSM8K_DIR", "data/gsm8k")
START = f"hf:{os.environ.get('QWEN_DIR', 'Qwen/Qwen2.5-0.5B-Instruct')}"

ONLINE_RFT = Config(
    method="online_rft",
    init_from=START,
    steps=200,
    data=DataConfig(
        # The last 256 train rows are for validation, so that no choice is made on the test.
        train=f"jsonl:{GSM8K_DIR}/train.jsonl[:-256]",
        validation=f"jsonl:{GSM8K_DIR}/train.jsonl[-256:]",
        test=f"jsonl:{GSM8K_DIR}/test.jsonl",
        prompt_format="chat",
        prompt_template="{question}",
        # What Qwen's authors ask their mathematical models for (QwenLM/Qwen2.5-Math).
        system="Please reason step by step, and put your final answer within \\boxed{}.",
        max_prompt_tokens=320,
        max_completion_tokens=512,
    ),
    tokenizer=TokenizerConfig(path=START),
    # The published config.json; the run compares them before it loads a weight.
    model=ModelConfig(
        num_layers=24,
        d_model=896,
        num_heads=14,
        num_kv_heads=2,
        head_dim=64,
        mlp_dim=4864,
        vocab_size=151_936,
        tie_embeddings=True,
        qkv_bias=True,
        rope_theta=1e6,
        compute_dtype="bfloat16",
    ),
    rollout=RolloutConfig(questions_per_step=32, samples_per_question=8, slots=128),
    selection=SelectionConfig(),
    # One row at a time: its activations, kept whole, take less than the weights.
    update=UpdateConfig(row_length=1024, rows_per_microbatch=1),
    # Not tuned.
    optimizer=OptimizerConfig(learning_rate=2e-6, warmup_steps=10, b2=0.99),
    # The data's solutions end in ####, the prompt asks for a box: so the canary boxes the answers.
    verification=VerificationConfig(verifier="boxed", canary="answers"),
    evaluation=EvaluationConfig(
        every_steps=50,
        test_samples_per_question=8,
        temperature=0.7,
        # Prompts of 16 times as many are in memory at once.
        questions_per_batch=16,
    ),
    checkpoint=CheckpointConfig(every_steps=50),
)

RFT = replace(
    ONLINE_RFT,
    method="rft",
    pool=PoolConfig(rollout_steps=200),
    # A fixed pool would train on the same text again and again.
    selection=SelectionConfig(dedupe="text"),
    # About what Online RFT accepts of its 256.
    update=replace(ONLINE_RFT.update, sequences_per_step=128),
)


# Outcome rewards. Without the paper's KL (objective.kl_coefficient=0.04), which Online RFT has not
# either and whose reference would not fit a T4.
GRPO = replace(ONLINE_RFT, method="grpo")


def experiment() -> dict[str, Config]:
    """The runs in order."""
    return {"rft": RFT, "online_rft": ONLINE_RFT, "grpo": GRPO}
