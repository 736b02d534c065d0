"""The SFT run that studies start from: 0.15 million parameters, so that a run takes minutes."""

from __future__ import annotations

from dataclasses import replace

from arithmetic import SFT

from rft_jax.config import CheckpointConfig

START = replace(
    SFT,
    steps=1600,
    data=replace(SFT.data, test=SFT.data.test.replace("1024", "512")),
    model=replace(SFT.model, num_layers=2, d_model=64, head_dim=16, mlp_dim=128),
    update=replace(SFT.update, rows_per_microbatch=16),
    optimizer=replace(SFT.optimizer, learning_rate=4e-3),
    evaluation=replace(SFT.evaluation, every_steps=800, test_samples_per_question=16),
    checkpoint=CheckpointConfig(every_steps=800),
)
