"""RFT, iterative RFT, Online RFT and GRPO over 1,280 updates: five seeds, each with its own start.

Every arm samples 327,680 outputs and makes 1,280 updates. `rft` trains on the distinct outputs of
its pool, several epochs of them; `rft_fresh` on all accepted ones, about once each; `iterative_rft`
samples a pool from its policy every 160 updates. `random` is Online RFT whose verdicts say nothing.
The learning rate of each arm is chosen on validation questions with a seed of its own. The test has
256 outputs a question: which questions does an arm solve that its start never did?

Reproduces: DeepSeekMath (arXiv 2402.03300), section 5.2.1 and figure 5, in small: RFT and Online
    RFT alike early, Online RFT ahead late; and what that costs in diversity.
Expect: at 320 updates Online RFT less RFT is -3.2 to -0.0 points of greedy accuracy (README.md,
    arithmetic_study.py); docs/findings.md has what 1,280 give.
Time: about 4.5 hours on 2 CPU cores.
Command: rft-jax study experiments/long_comparison.py --at_once 2
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from arithmetic import ONLINE_RFT, RFT, SFT, SOURCE

from rft_jax.config import (
    CheckpointConfig,
    Config,
    ObjectiveConfig,
    PoolConfig,
    SelectionConfig,
    Study,
    VerificationConfig,
)

STEPS = 1280
PART = STEPS // 8
"""Updates between evaluations, and on one pool of iterative RFT."""
TESTED: dict[str, Any] = {
    "verifier": "auto",
    "num_questions": 256,
    "test_samples_per_question": 256,
    "questions_per_batch": 16,
}
DATA = replace(SFT.data, test=f"{SOURCE}/test[:512]")


def _long(base: Config, **changes: Any) -> Config:
    """An arm of the quickstart, longer."""
    evaluation = replace(base.evaluation, every_steps=PART, samples_per_question=16, **TESTED)
    data = replace(base.data, test=DATA.test)
    checkpoint = CheckpointConfig(every_steps=PART // 2)
    return replace(
        base, steps=STEPS, data=data, evaluation=evaluation, checkpoint=checkpoint, **changes
    )


def study() -> Study:
    """Six arms from SFT starts of their seeds."""
    rft = _long(RFT, pool=PoolConfig(rollout_steps=STEPS))
    online_rft = _long(ONLINE_RFT, objective=ObjectiveConfig(kl_outputs=16))
    sft = replace(SFT, data=DATA, evaluation=replace(SFT.evaluation, **TESTED))
    return Study(
        starts={"sft": sft},
        arms={
            "rft": rft,
            "rft_fresh": replace(rft, selection=SelectionConfig()),
            "iterative_rft": replace(rft, pool=PoolConfig(rollout_steps=PART, every_steps=PART)),
            "online_rft": online_rft,
            "grpo": replace(online_rft, method="grpo"),
            "random": replace(
                online_rft,
                verification=VerificationConfig(verifier="random"),
            ),
        },
        grid={"optimizer.learning_rate": (1e-4, 2e-4)},
        score="pass_at/1",
        last=2,
        seeds=5,
    )
