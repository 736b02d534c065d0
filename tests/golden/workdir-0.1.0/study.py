"""Three tiny runs; the code of version 0.1.0 finished `sft` and stopped `online_rft` in workdir."""

from dataclasses import replace

from rft_jax.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    OptimizerConfig,
    PoolConfig,
    RefillConfig,
    RolloutConfig,
    SelectionConfig,
    TokenizerConfig,
    UpdateConfig,
    VerificationConfig,
)

QUESTIONS = "jsonl:questions.jsonl"


def even_length(reference: str, output: str) -> bool:
    """A verifier that accepts about half of an unskilled policy's finished outputs."""
    return len(output) % 2 == 0


def experiment() -> dict[str, Config]:
    sft = Config(
        method="sft",
        data=DataConfig(
            train=QUESTIONS, validation=QUESTIONS, max_prompt_tokens=12, max_completion_tokens=8
        ),
        tokenizer=TokenizerConfig(corpus=QUESTIONS, vocab_size=274),
        steps=24,
        model=ModelConfig(
            num_layers=2, d_model=8, num_heads=2, num_kv_heads=1, head_dim=4, mlp_dim=12,
            tie_embeddings=True,
        ),
        update=UpdateConfig(
            row_length=24, rows_per_microbatch=8, sequences_per_step=8, logits_at_once=2**14
        ),
        optimizer=OptimizerConfig(learning_rate=3e-2, schedule="cosine", warmup_steps=2),
        verification=VerificationConfig(verifier="study:even_length", canary="off", workers=1),
        evaluation=EvaluationConfig(every_steps=12, num_questions=4, samples_per_question=2),
        checkpoint=CheckpointConfig(every_steps=4, keep=1),
    )  # fmt: skip
    rft = replace(
        sft,
        method="rft",
        init_from="run:sft",
        steps=8,
        rollout=RolloutConfig(questions_per_step=8, samples_per_question=4),
        pool=PoolConfig(rollout_steps=2),
        selection=SelectionConfig(dedupe="text", max_per_question=3),
        optimizer=OptimizerConfig(learning_rate=1e-2),
    )
    online_rft = replace(
        rft,
        method="online_rft",
        pool=None,
        refill=RefillConfig(accepted=6, max_sampled=64, max_staleness=2),
        update=replace(sft.update, sequences_per_step=0),
    )
    return {"sft": sft, "rft": rft, "online_rft": online_rft}
