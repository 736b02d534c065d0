"""RFT against Online RFT on equal terms: seeds, a learning-rate grid, paired differences.

Each seed has its own SFT start. From it both arms sample the same number of outputs (RFT all of
them from the frozen start, Online RFT at each step) and make the same number of updates. The
learning rate of each arm is chosen on the validation questions with a seed of its own; the test
questions are evaluated once, when a run of the chosen rate ends.

Reproduces: DeepSeekMath (arXiv 2402.03300), section 5.2.1 and figure 5, in small: whether Online
    RFT pulls away from RFT late, and what it costs in diversity.
Expect: see the figure in README.md and the tables in docs/results.md; the numbers behind them are
    in experiments/arithmetic_study.json.
Time: about 75 minutes on 2 CPU cores, by the times of its runs.
Command: rft-jax study experiments/arithmetic_study.py --at_once 2
"""

from __future__ import annotations

from dataclasses import replace

from arithmetic import ONLINE_RFT, RFT, SFT

from rft_jax.config import CheckpointConfig, Config, PoolConfig, Study

STEPS = 320


def _longer(base: Config) -> Config:
    """An arm of the quickstart with more updates, and evaluations that see smaller differences."""
    evaluation = replace(
        base.evaluation,
        every_steps=40,
        num_questions=512,
        samples_per_question=4,
        test_samples_per_question=16,
    )
    checkpoint = CheckpointConfig(every_steps=40)
    return replace(base, steps=STEPS, evaluation=evaluation, checkpoint=checkpoint)


def study() -> Study:
    """Two arms, each with its own SFT start a seed."""
    tested = replace(SFT.evaluation, test_samples_per_question=16)
    return Study(
        starts={"sft": replace(SFT, evaluation=tested)},
        arms={
            "rft": replace(_longer(RFT), pool=PoolConfig(rollout_steps=STEPS)),
            "online_rft": _longer(ONLINE_RFT),
        },
        grid={"optimizer.learning_rate": (1e-4, 2e-4)},
        score="pass_at/1",
        last=3,
        seeds=3,
        equal=("samples", "updates"),
    )
