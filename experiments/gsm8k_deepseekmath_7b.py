"""RFT and Online RFT from DeepSeekMath-Instruct 7B on GSM8K, on a TPU pod.

Reproduces: the two arms of DeepSeekMath's analysis (arXiv 2402.03300, section 5.2 and equations 8
    to 11) with its published settings. Those exist for GRPO at 7B alone (section 4.2) and are
    taken over; the paper gives none for RFT and Online RFT, and its training questions (144K from
    GSM8K and MATH) are not public. Each value below names its source or says "not published".
Expect: not measured yet. The start is published at 82.9 % greedy on the 1,319 test questions (95 %
    interval over questions 80.9 to 84.9), GRPO with a learned reward ends at 88.2 % (86.5 to
    89.9). For RFT and Online RFT there are curves at 1.3B only: read off Figure 5, from 56.4 % to
    59.8 % and 62.1 % (each 2.6 either way), and the arms part late, after 3,000 steps or more.
Time: not measured; written for 64 TPU chips with 32 GB of memory or more each.
Command: rft-jax run experiments/gsm8k_deepseekmath_7b.py

The environment says where things are:
    GSM8K_DIR         folder of the official train.jsonl and test.jsonl; data/gsm8k if unset
    DEEPSEEKMATH_DIR  folder of the imported model; models/deepseek-math-7b-instruct if unset

Importing the released checkpoint is work to come, so this experiment cannot start yet. It needs
the folder of a finished run whose checkpoint holds the released weights in this project's layout
(with the embedding's 102,400 rows), and beside it a tokenizer.model. The released tokenizer is in
the format of Hugging Face tokenizers, which this project does not read yet.
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
    ObjectiveConfig,
    OptimizerConfig,
    PoolConfig,
    RolloutConfig,
    SelectionConfig,
    TokenizerConfig,
    UpdateConfig,
    VerificationConfig,
)

GSM8K_DIR = os.environ.get("GSM8K_DIR", "data/gsm8k")
MODEL_DIR = os.environ.get("DEEPSEEKMATH_DIR", "models/deepseek-math-7b-instruct")

ONLINE_RFT = Config(
    method="online_rft",
    init_from=f"workdir:{MODEL_DIR}",
    # Not published; chosen: four passes over the questions, 16 a step.
    steps=1804,
    data=DataConfig(
        # The paper keeps the GSM8K and MATH questions of its SFT data; of these GSM8K is public.
        train=f"jsonl:{GSM8K_DIR}/train.jsonl[:7217]",
        # Not published; chosen: the last 256 train rows, so that no choice is made on the test.
        validation=f"jsonl:{GSM8K_DIR}/train.jsonl[7217:]",
        test=f"jsonl:{GSM8K_DIR}/test.jsonl",
        # The zero-shot prompt of the authors' evaluation code (deepseek-ai/DeepSeek-Math).
        prompt_template="{question}\nPlease reason step by step, "
        "and put your final answer within \\boxed{}.",
        # Not published; chosen: twice what the longest question (985 characters) should take.
        max_prompt_tokens=512,
        # Section 4.2: "max length" 1,024, read as the output's, as in the evaluation code.
        max_completion_tokens=1024,
    ),
    tokenizer=TokenizerConfig(path=f"{MODEL_DIR}/tokenizer.model"),
    # The released checkpoint's config.json; the vocabulary (102,400) comes with the tokenizer.
    model=ModelConfig(
        num_layers=30,
        d_model=4096,
        num_heads=32,
        num_kv_heads=32,
        head_dim=128,
        mlp_dim=11008,
        rope_theta=10_000.0,
        norm_eps=1e-6,
        # Not published; chosen: halves the cache, and float32 masters are kept anyway.
        compute_dtype="bfloat16",
        # Not published; chosen: the activations of 30 blocks do not fit beside the rest.
        remat="full",
    ),
    # 16 x 4 = 64 chips: one question of a step to each group of 4. Per chip about 1.8 GB of
    # float32 masters, moments and gradients, 3.5 GB of bfloat16 weights while sampling, and at
    # most 8.1 GB of cache (64 outputs of 1,024 tokens and a prompt to 4 chips).
    mesh=MeshConfig(data=-1, fsdp=16, tensor=4),
    # Section 4.2: training batch 1,024, 64 samples a question, hence 16 questions. The paper says
    # "naive nucleus sampling" with no number; 1.0 samples from pi_theta, as equation 11 has it.
    rollout=RolloutConfig(questions_per_step=16, samples_per_question=64, temperature=1.0),
    # Equations 9 and 11 take every correct output: no deduplication, no cap.
    selection=SelectionConfig(dedupe="none", max_per_question=0),
    # Equations 8 and 11 are expectations over all sampled outputs, and have no KL term (GRPO's
    # coefficient is 0.04).
    objective=ObjectiveConfig(denominator="sampled", kl_coefficient=0.0),
    # Section 4.2: a single update per exploration stage, hence the whole rollout in one update.
    update=UpdateConfig(
        row_length=1536,
        # One row to each of the 16 groups of chips, and the logits of all rows at once: 160 MB a
        # chip. Not published; neither changes the result.
        rows_per_microbatch=16,
        logits_at_once=16 * 1536 * 102_400,
        sequences_per_step=0,
    ),
    optimizer=OptimizerConfig(
        learning_rate=1e-6,  # section 4.2
        # Not published; chosen: with no schedule named, none.
        schedule="constant",
        # The paper's AdamW in pre-training (section 2.2.1); for this stage not published.
        b1=0.9,
        b2=0.95,
        # Not published; chosen: at this learning rate pre-training's 0.1 would do nothing either.
        weight_decay=0.0,
        # Not published; chosen: the usual guard.
        clip_norm=1.0,
    ),
    # Table 10: a rule decides for RFT and Online RFT. The number of workers and the limit: chosen.
    # The prompt asks for a box, the data's solutions end in ####: the canary boxes the answers.
    verification=VerificationConfig(
        verifier="boxed", canary="answers", workers=8, timeout_seconds=10.0
    ),
    evaluation=EvaluationConfig(
        every_steps=100,  # not published; chosen
        # Figure 7: maj@K and pass@K up to 64 samples at temperature 0.7; accuracy is greedy.
        test_samples_per_question=64,
        temperature=0.7,
        questions_per_batch=16,  # as in training, so that the cache is no larger
    ),
    checkpoint=CheckpointConfig(every_steps=50),  # not published; chosen
)

RFT = replace(
    ONLINE_RFT,
    method="rft",
    # Not published; chosen: one pass over the questions fills the pool, 64 samples each.
    pool=PoolConfig(rollout_steps=451),
    # The training batch of section 4.2.
    update=replace(ONLINE_RFT.update, sequences_per_step=1024),
)


def experiment() -> dict[str, Config]:
    """The runs in order."""
    return {"rft": RFT, "online_rft": ONLINE_RFT}
