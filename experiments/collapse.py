"""Online RFT that collapses, and what helps: one setting an arm, three seeds from three starts.

`online_rft` trains on 512 questions over and over, at three times the quickstart's learning rate:
the policy grows sure of its own samples, and on other questions it loses answers that its start
had. Each other arm changes one setting (docs/collapse.md); all sample 81,920 outputs and make 320
updates, but `early_stop`, which an alarm may end. `more_questions` has 8,192 in place of 512.

Reproduces: the loss of pass@k and of diversity under training on one's own correct outputs (arXiv
    2504.13837, 2506.01347), in small, and published remedies against it.
Expect: in a trial with one seed pass@16 of `online_rft` fell from 76 to 72 % (256 questions, a 95 %
    interval of 5 points); docs/findings.md has the figures of the study.
Time: about 1.5 hours on 2 CPU cores, reckoned from 0.4 seconds an update.
Command: rft-jax study experiments/collapse.py --at_once 2
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from arithmetic import ONLINE_RFT, SOURCE
from small_start import START

from rft_jax.config import (
    AlarmsConfig,
    CheckpointConfig,
    ObjectiveConfig,
    ReplayConfig,
    SelectionConfig,
    Study,
)

STEPS = 320
EVALUATION = replace(
    START.evaluation,
    every_steps=STEPS // 8,
    samples_per_question=16,
    test_samples_per_question=16,
    questions_per_batch=32,
)
BASE = replace(
    ONLINE_RFT,
    steps=STEPS,
    model=START.model,
    data=replace(START.data, train=f"{SOURCE}/train[:512]"),
    objective=ObjectiveConfig(kl_outputs=16),
    update=replace(ONLINE_RFT.update, rows_per_microbatch=START.update.rows_per_microbatch),
    optimizer=replace(ONLINE_RFT.optimizer, learning_rate=3e-4),
    evaluation=EVALUATION,
    checkpoint=CheckpointConfig(every_steps=STEPS // 8),
)


def _objective(**changes: Any) -> ObjectiveConfig:
    return replace(BASE.objective, **changes)


def study() -> Study:
    """An arm that collapses, and the same with one setting each."""
    assert BASE.rollout is not None
    best = CheckpointConfig(every_steps=STEPS // 8, keep_best=1, measure="pass_at/1+pass_at/16")
    replay = ReplayConfig(32, weight=0.1, source=f"{SOURCE}/demonstrations")
    arms = {
        "online_rft": BASE,
        "more_questions": replace(BASE, data=replace(BASE.data, train=f"{SOURCE}/train")),
        "low_rate": replace(BASE, optimizer=replace(BASE.optimizer, learning_rate=7.5e-5)),
        "dedupe": replace(BASE, selection=SelectionConfig(dedupe="equations")),
        "rloo": replace(BASE, method="rloo"),
        "w_reinforce": replace(BASE, method="w_reinforce"),
        "kl": replace(BASE, objective=_objective(kl_coefficient=0.05, kl_estimator="k2")),
        "entropy_bonus": replace(BASE, objective=_objective(entropy_coefficient=0.01)),
        "replay": replace(BASE, replay=replay),
        "temperature": replace(BASE, rollout=replace(BASE.rollout, temperature=1.3)),
        "early_stop": replace(BASE, alarms=AlarmsConfig(action="best"), checkpoint=best),
    }
    start = replace(START, evaluation=replace(EVALUATION, every_steps=START.steps // 2))
    return Study(starts={"sft": start}, arms=arms, score="pass_at/16", seeds=3)
