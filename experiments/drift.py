"""RFT against Online RFT when the questions change: from one family of word problems to another.

The start has learnt family A. After 160 of 480 updates the questions are those of B, the same
events told in words that no demonstration has. Arms that do not say otherwise ask the questions of
their time and sample as many outputs:

    rft            one pool, of the start, on A only
    rft_both       one pool, of the start, on A and B from the beginning: who knows what will come
    rft_start      a pool every 40 updates, of the start
    iterative_rft  a pool every 40 updates, of the policy as it is then
    online_rft     the policy of each step; rloo and replay are changes of it
    *_ramp         from A to B in a straight line over updates 80 to 240
    *_reversed     from B to A
    online_rft_a   no shift

What was expected before the first run: after the shift `online_rft` is at or above `rft_start` on
B, as what the start solves of B is little and stays so; `iterative_rft` is near `online_rft`, so
that what counts is a fresh pool; `rft_both` may lead in so few updates.

Reproduces: nothing published; a test of the claim that Online RFT adapts to questions that change.
Expect: docs/findings.md, once it is carried out; a start of this kind solves 41 to 59 % of A and 9
    to 16 % of B (pass@1).
Time: about 3 hours on 2 CPU cores, reckoned from 0.4 seconds an update.
Command: rft-jax study experiments/drift.py --at_once 2
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from arithmetic import ONLINE_RFT, RFT, SOURCE
from small_start import START

from rft_jax.config import (
    CheckpointConfig,
    Config,
    ObjectiveConfig,
    PoolConfig,
    ReplayConfig,
    ScheduleConfig,
    Study,
)

STEPS, SHIFT, EVERY = 480, 160, 40
A, B = f"{SOURCE}/train", f"{SOURCE}/reworded_train"
# What is evaluated is B, the family that comes, and A as well.
DATA = replace(
    START.data,
    validation=f"{SOURCE}/reworded_validation",
    test=f"{SOURCE}/reworded_test[:512]",
    more_validation=(f"a={SOURCE}/validation",),
    more_test=(f"a={SOURCE}/test[:512]",),
    max_prompt_tokens=64,
)
EVALUATION = replace(
    START.evaluation,
    every_steps=EVERY,
    samples_per_question=4,
    test_samples_per_question=16,
    questions_per_batch=32,
)


def _schedule(*weights: str, change: Literal["step", "linear"] = "step") -> ScheduleConfig:
    return ScheduleConfig((f"b={B}",), weights, change=change)


ABRUPT = _schedule("0: 1, 0", f"{SHIFT}: 0, 1")
RAMP = _schedule("0: 1, 0", f"{SHIFT // 2}: 1, 0", f"{3 * SHIFT // 2}: 0, 1", change="linear")
REVERSED = _schedule("0: 0, 1", f"{SHIFT}: 1, 0")


def _arm(base: Config) -> Config:
    return replace(
        base,
        steps=STEPS,
        model=START.model,
        data=replace(DATA, train=A),
        schedule=ABRUPT,
        update=replace(base.update, rows_per_microbatch=START.update.rows_per_microbatch),
        evaluation=EVALUATION,
        checkpoint=CheckpointConfig(every_steps=EVERY),
    )


def study() -> Study:
    """Arms over one shift, and controls."""
    rft = replace(_arm(RFT), pool=PoolConfig(rollout_steps=STEPS))
    fresh = PoolConfig(rollout_steps=EVERY, every_steps=EVERY)
    iterative = replace(rft, pool=fresh)
    of_start = replace(rft, pool=replace(fresh, sampled_from="start"))
    online = replace(_arm(ONLINE_RFT), objective=ObjectiveConfig(kl_outputs=16))
    replay = ReplayConfig(32, weight=0.1, source=f"{SOURCE}/demonstrations")
    return Study(
        starts={"sft": replace(START, data=DATA, evaluation=replace(EVALUATION, every_steps=800))},
        arms={
            "rft": replace(rft, schedule=None),
            "rft_both": replace(rft, schedule=_schedule("0: 1, 1")),
            "rft_start": of_start,
            "iterative_rft": iterative,
            "online_rft": online,
            "rloo": replace(online, method="rloo"),
            "replay": replace(online, replay=replay),
            "rft_start_ramp": replace(of_start, schedule=RAMP),
            "iterative_rft_ramp": replace(iterative, schedule=RAMP),
            "online_rft_ramp": replace(online, schedule=RAMP),
            "rft_start_reversed": replace(of_start, schedule=REVERSED),
            "online_rft_reversed": replace(online, schedule=REVERSED),
            "online_rft_a": replace(online, schedule=None),
        },
        baseline="rft_start",
        score="pass_at/1",
        seeds=5,
    )
