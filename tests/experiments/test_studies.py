"""Studies of experiments/ in a short form: their arms run, and give tables and a figure."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from rft_jax.commands import study as command
from rft_jax.config import Config, Study, VerificationConfig
from rft_jax.config import experiment as experiments

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
SHOWN = {
    "long_comparison": ("iterative_rft", "random"),
    "collapse": ("replay", "early_stop"),
    "drift": ("rft_start", "online_rft"),
}
"""Arms of each study that differ in more than a number; the settings of all are in golden/."""
STEPS = 4


def short(config: Config) -> Config:
    """Few steps on few questions; so short a start solves none, hence the random verdicts."""
    few, data = f"[:{2 * STEPS}]", config.data
    pool = config.pool and replace(
        config.pool, rollout_steps=2, every_steps=2 if config.pool.every_steps else 0
    )
    return replace(
        config,
        steps=STEPS,
        model=replace(config.model, num_layers=1, d_model=16, num_heads=1, num_kv_heads=1),
        data=replace(
            data,
            validation=data.validation + few,
            test=data.test.partition("[")[0] + few,
            more_validation=tuple(one + few for one in data.more_validation),
            more_test=tuple(one.partition("[")[0] + few for one in data.more_test),
        ),
        rollout=config.rollout and replace(config.rollout, questions_per_step=2),
        pool=pool,
        schedule=config.schedule and replace(config.schedule, weights=("0: 1, 0", "2: 0, 1")),
        replay=config.replay and replace(config.replay, sequences_per_step=2),
        update=replace(config.update, sequences_per_step=min(config.update.sequences_per_step, 4)),
        optimizer=replace(config.optimizer, warmup_steps=0),
        verification=VerificationConfig(verifier="random", first_outputs=0),
        evaluation=replace(
            config.evaluation,
            every_steps=2,
            samples_per_question=16,
            test_samples_per_question=2,
            verifier="auto",
        ),
        checkpoint=replace(config.checkpoint, every_steps=2),
    )


def learnt(config: Config) -> Config:
    """Enough steps that outputs end."""
    optimizer = replace(config.optimizer, learning_rate=1e-2, schedule="constant")
    every = replace(config.evaluation, every_steps=80)
    return replace(config, steps=80, optimizer=optimizer, evaluation=every)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHOWN)
def test_a_short_form(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    whole = experiments.load_study(EXPERIMENTS / f"{name}.py")
    arms = {arm: short(whole.arms[arm]) for arm in SHOWN[name]}
    starts = {start: learnt(short(config)) for start, config in whole.starts.items()}
    study = Study(arms=arms, starts=starts, score="pass_at/2", seeds=1, equal=("updates",))
    assert command.carry_out(study, name, tmp_path) is None
