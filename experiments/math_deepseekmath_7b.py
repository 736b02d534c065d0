r"""RFT and Online RFT from DeepSeekMath-Instruct 7B on MATH, on 4 TPU chips or 8 GPUs of 80 GB.

Both arms sample 1.8 million outputs and make 1,800 updates.

Reproduces: the two arms of DeepSeekMath's analysis (arXiv 2402.03300, section 5.2 and equations 8
    to 11) with its published settings. Those exist only for GRPO at 7B (section 4.2) and are
    used here; the paper gives none for RFT and Online RFT, and its training questions (144K from
    GSM8K and MATH) are not public. Each value below names its source or says "not published".
Expect: not measured. The start is published at 46.8 % greedy on the 5,000 test questions of MATH
    (95 % interval over questions 45.4 to 48.2), GRPO with a learned reward ends at 51.7 % (50.3 to
    53.1). For RFT and Online RFT there are curves at 1.3B only: read off Figure 5, from 26.4 % to
    27.9 % and 29.1 % (each 1.3 either way), and the arms part late, after 2,500 steps or more. On
    the 1,319 of GSM8K the start is at 82.9 % (80.9 to 84.9), GRPO at 88.2 % (86.5 to 89.9).
Time: not measured; estimated for either arm by rft-jax plan --device (GiB a device of
    sampling / the update / evaluation; outputs of 512 tokens on average, half of them accepted; on
    GSM8K, with 250 tokens and 83 % accepted, 46 hours on v5p-8):
    TPU v5p-8        64.0 / 45.9 / 65.4 of 95.7 GiB, 134 s a step, 79.5 hours
    8 GPUs A100 80GB 37.3 / 21.8 / 38.0 of 72.8 GiB, 122 s a step, 72.3 hours
    8 GPUs H100 80GB 37.3 / 21.8 / 38.0 of 72.8 GiB, 67 s a step, 40.2 hours
Command: rft-jax run experiments/math_deepseekmath_7b.py

Environment variables:
    QUESTIONS_DIR     folder of train.jsonl and test.jsonl; data/math if unset
    DEEPSEEKMATH_DIR  folder of the model; deepseek-ai/deepseek-math-7b-instruct of the hub if unset

MATH as JSONL, of the official folder MATH, without the problems of more than 1,200 characters,
whose drawings would not fit data.max_prompt_tokens:

    python experiments/math_data.py MATH data/math --leave-out-unread --longest 1200

For GSM8K, QUESTIONS_DIR=data/gsm8k is enough. As far as is known, the hub's main branch holds the
weights as pickles, which are never loaded here. With transformers installed, this writes them as
safetensors, reading only tensors from the pickles:

    python -c "from transformers import AutoModelForCausalLM as M; M.from_pretrained(
        'deepseek-ai/deepseek-math-7b-instruct', dtype='auto', weights_only=True
        ).save_pretrained('models/deepseek-math-7b-instruct')"

The tokenizer's files are copied as they are, since transformers 5 takes this tokenizer for another
kind and loses its spaces (its issue 48206):

    hf download deepseek-ai/deepseek-math-7b-instruct --include "tokenizer*" \
        --local-dir models/deepseek-math-7b-instruct
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

QUESTIONS_DIR = os.environ.get("QUESTIONS_DIR", "data/math")
START = f"hf:{os.environ.get('DEEPSEEKMATH_DIR', 'deepseek-ai/deepseek-math-7b-instruct')}"

ONLINE_RFT = Config(
    method="online_rft",
    init_from=START,
    # Not published; chosen: four passes over some 7,200 questions, 16 a step.
    steps=1800,
    data=DataConfig(
        # The paper keeps the GSM8K and MATH questions of its SFT data; of these GSM8K's own and
        # MATH's own are public.
        train=f"jsonl:{QUESTIONS_DIR}/train.jsonl[:-256]",
        # Not published; chosen: the last 256 train rows, so that no choice is made on the test.
        validation=f"jsonl:{QUESTIONS_DIR}/train.jsonl[-256:]",
        test=f"jsonl:{QUESTIONS_DIR}/test.jsonl",
        # The zero-shot prompt of the authors' evaluation code (deepseek-ai/DeepSeek-Math), which
        # writes the turns of the chat as text.
        prompt_template="User: {question}\nPlease reason step by step, "
        "and put your final answer within \\boxed{}.\n\nAssistant:",
        # Not published; chosen for problems of 1,200 characters.
        max_prompt_tokens=768,
        # Section 4.2: "max length" 1,024, read as the output's, as in the evaluation code.
        max_completion_tokens=1024,
    ),
    tokenizer=TokenizerConfig(path=START),
    # The published config.json; the run compares them before it loads a weight.
    model=ModelConfig(
        num_layers=30,
        d_model=4096,
        num_heads=32,
        num_kv_heads=32,
        head_dim=128,
        mlp_dim=11008,
        vocab_size=102_400,
        rope_theta=10_000.0,
        norm_eps=1e-6,
        # Not published; chosen: halves the cache, and float32 masters are kept anyway.
        compute_dtype="bfloat16",
        # Not published; chosen: the activations of 30 blocks do not fit with the rest.
        remat="full",
    ),
    # Not published; chosen: every device has a share of masters and moments, and samples by itself.
    mesh=MeshConfig(data=1, fsdp=-1, tensor=1),
    # Section 4.2: training batch 1,024, 64 samples a question, so 16 questions. The paper says
    # "naive nucleus sampling" with no number; 1.0 samples from pi_theta, as equation 11 has it.
    # Slots: not published; they change only memory and speed.
    rollout=RolloutConfig(
        questions_per_step=16, samples_per_question=64, temperature=1.0, slots=128
    ),
    # Equations 9 and 11 take every correct output: no deduplication, no cap.
    selection=SelectionConfig(dedupe="none", max_per_question=0),
    # Equations 8 and 11 are expectations over all sampled outputs, and have no KL term (GRPO's
    # coefficient is 0.04).
    objective=ObjectiveConfig(denominator="sampled", kl_coefficient=0.0),
    # Section 4.2: a single update per exploration stage, so the whole rollout in one update.
    update=UpdateConfig(
        row_length=2048,
        # Not published; neither changes the result. The logits of a quarter of each row at once.
        rows_per_microbatch=8,
        logits_at_once=8 * 512 * 102_400,
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
    # The canary boxes the answers, which holds for MATH and for GSM8K.
    verification=VerificationConfig(
        verifier="boxed", canary="answers", workers=8, timeout_seconds=10.0
    ),
    evaluation=EvaluationConfig(
        every_steps=100,  # not published; chosen
        # Figure 7: maj@K and pass@K up to 64 samples at temperature 0.7; accuracy is greedy.
        test_samples_per_question=64,
        temperature=0.7,
        questions_per_batch=2,  # 128 slots, as in training
    ),
    checkpoint=CheckpointConfig(every_steps=50),  # not published; chosen
)

RFT = replace(
    ONLINE_RFT,
    method="rft",
    # Not published; chosen: as many outputs as Online RFT samples.
    pool=PoolConfig(rollout_steps=1800),
    # The batch of 1,024 in section 4.2 counts sampled outputs. Chosen: about as many as are correct
    # among them, which is what Online RFT trains on.
    update=replace(ONLINE_RFT.update, sequences_per_step=512),
)


def experiment() -> dict[str, Config]:
    """The runs in order."""
    return {"rft": RFT, "online_rft": ONLINE_RFT}
