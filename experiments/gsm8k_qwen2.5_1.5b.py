r"""RFT and Online RFT from Qwen2.5-1.5B-Instruct on GSM8K, on one GPU of 80 GB or four TPU chips.

Both arms sample 102,400 outputs and make 200 updates; every parameter is trained.

Reproduces: the two arms of DeepSeekMath's analysis (arXiv 2402.03300, section 5.2) with a
    published model; no published figure for RFT or Online RFT of it.
Expect: not measured. Published for the start: 73.2 % greedy on the 1,319 test questions (95 %
    interval over questions 70.8 to 75.6), with four examples before the question; verl's list of
    baselines has it end at 77.9 % with GRPO on adapters (75.7 to 80.1). Without examples and with
    a boxed answer asked for, the start may differ.
Time: not measured; estimated for Online RFT by rft-jax plan --device, RFT a little longer
    (GiB a device of sampling / the update / evaluation; outputs of 256 tokens on average, half of
    them accepted):
    GPU A100 80GB  27.0 / 37.6 / 30.9 of 72.8 GiB, 14 s a step, 0.8 hours
    GPU H100 80GB  27.0 / 37.6 / 30.9 of 72.8 GiB, 7 s a step, 0.4 hours
    TPU v5e-4      9.0 / 12.2 / 10.8 of 15.8 GiB, 19 s a step, 1.2 hours
Command: rft-jax run experiments/gsm8k_qwen2.5_1.5b.py

The start's own figures, by the same rule:

    rft-jax evaluate hf:Qwen/Qwen2.5-1.5B-Instruct --questions jsonl:data/gsm8k/test.jsonl \
        --system "Please reason step by step, and put your final answer within \boxed{}." \
        --verifier boxed --samples_per_question 8 --temperature 0.7 \
        --questions_per_batch 32 --out runs/start

Environment variables:
    GSM8K_DIR  folder of the official train.jsonl and test.jsonl; data/gsm8k if unset
    QWEN_DIR   folder of the model; the hub's Qwen/Qwen2.5-1.5B-Instruct if unset
"""

from __future__ import annotations

import os
from dataclasses import replace

from rft_jax.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    EvaluationConfig,
    MeshConfig,
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
START = f"hf:{os.environ.get('QWEN_DIR', 'Qwen/Qwen2.5-1.5B-Instruct')}"

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
        num_layers=28,
        d_model=1536,
        num_heads=12,
        num_kv_heads=2,
        head_dim=128,
        mlp_dim=8960,
        vocab_size=151_936,
        tie_embeddings=True,
        qkv_bias=True,
        rope_theta=1e6,
        compute_dtype="bfloat16",
    ),
    # One device holds everything; four hold a quarter of the masters and moments each.
    mesh=MeshConfig(data=1, fsdp=-1, tensor=1),
    rollout=RolloutConfig(questions_per_step=64, samples_per_question=8, slots=256),
    selection=SelectionConfig(),
    update=UpdateConfig(row_length=1024, rows_per_microbatch=4),
    # Not tuned.
    optimizer=OptimizerConfig(learning_rate=1e-6, warmup_steps=10, b2=0.99),
    # The data's solutions end in ####, the prompt asks for a box: the canary boxes the answers.
    verification=VerificationConfig(verifier="boxed", canary="answers", workers=4),
    evaluation=EvaluationConfig(
        every_steps=50,
        test_samples_per_question=8,
        temperature=0.7,
        # Prompts of 16 times as many are in memory at once.
        questions_per_batch=32,
    ),
    checkpoint=CheckpointConfig(every_steps=50),
)

RFT = replace(
    ONLINE_RFT,
    method="rft",
    pool=PoolConfig(rollout_steps=200),
    # A fixed pool would train on the same text again and again.
    selection=SelectionConfig(dedupe="text"),
    # About what Online RFT accepts of its 512.
    update=replace(ONLINE_RFT.update, sequences_per_step=384),
)


def experiment() -> dict[str, Config]:
    """The runs in order."""
    return {"rft": RFT, "online_rft": ONLINE_RFT}
