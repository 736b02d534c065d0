"""An experiment with methods, and a checker, of its own, as a user has it: test_own_methods.py."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import tiny_experiment

from rft_jax.config import Config, CriticConfig, Method
from rft_jax.types import Facts, Judgement, Verdict


def plus_minus_one(facts: Facts) -> np.ndarray:
    """+1 for a correct output, -1 for an incorrect one."""
    return np.where(facts.correct, 1.0, -1.0)


def minus_mean(facts: Facts) -> np.ndarray:
    """The reward minus the mean of its question's."""
    _, group = np.unique(facts.question_ids, return_inverse=True)
    means = np.bincount(group, facts.rewards) / np.bincount(group)
    return facts.rewards - means[group]


def by_character(question: str, reference: object, output: str) -> Judgement:
    """Right where the length is even; every second character ends a step, whose reward is that of
    the character, and what is left after the last pair is of no step."""
    verdict = Verdict.CORRECT if len(output) % 2 == 0 else Verdict.INCORRECT
    ends = range(2, len(output) + 1, 2)
    steps = [(end, ord(output[end - 1]) % 7 / 3 - 1) for end in ends]
    return Judgement(verdict, "by character", steps=steps)


centred = Method("policy", "decided", minus_mean, about="reward minus the group's mean")


def experiment(questions: str) -> dict[str, Config]:
    """SFT, the three from it, and rows of the table that ask for log pi_ref or values."""
    online = tiny_experiment.online_rft(questions, steps=4)
    in_reward = replace(
        online.objective, denominator=None, kl_coefficient=0.1, kl_in="reward", kl_estimator="k1"
    )
    return {
        "sft": tiny_experiment.sft(questions),
        "signed": replace(online, method=Method("policy", "decided", plus_minus_one)),
        "centred": replace(online, method="own_methods:centred"),
        "online_dpo": replace(online, method="online_dpo"),
        "ppo": replace(online, method="ppo", critic=CriticConfig(learning_rate=0.01)),
        "rloo": replace(online, method="rloo", objective=in_reward),
        "process": replace(
            online,
            method="grpo_process",
            verification=replace(online.verification, verifier="own_methods:by_character"),
        ),
    }
