"""The objective: one table of methods, three denominators, one formula.

Every method ascends (DeepSeekMath, arXiv 2402.03300, eq. 5)

    grad J = E_{(q, o) ~ D} [ 1/|o| * sum_t GC(q, o, t) * grad log pi_theta(o_t | q, o_<t) ]

and differs in D, where outputs come from, and in GC, the gradient coefficient:

    method      D                                 GC     equations
    sft         demonstrations                    1      6, 7
    rft         pi_sft, frozen, sampled once      I(o)   8 to 10
    online_rft  pi_theta, now                     I(o)   11

|o| counts the EOS token, which is trained like any other. The expectation becomes a sum over
outputs with explicit weights (`output_weights`); the device then computes
sum(weights * log_probs), nothing else (`objective`).

Deviations from the paper, each off or neutral by default, each the name of a test:
 1. duplicates and outputs beyond a cap may be dropped (selection.dedupe, max_per_question);
 2. the denominator may be other than the number of sampled outputs (objective.denominator);
 3. an undecided output is masked: it counts neither as sampled nor as incorrect;
 4. a truncated output is never correct, whatever it says;
 5. at a rollout temperature other than 1, pi_theta is the tempered policy that was sampled from;
 6. a k3 estimate of the KL to the run's start may be subtracted (eq. 4), over sampled outputs;
 7. AdamW with clipping takes the place of plain ascent;
 8. a step may sample until enough outputs are kept, and fill up with those of older policies
    (refill; rft_jax/training/batch_filling.py states what that biases).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from rft_jax.config import Denominator, Method

Coefficient = Callable[[Bool[np.ndarray, "B"]], Float[np.ndarray, "B"]]
"""Which outputs are correct -> the gradient coefficient of each, the same at all its tokens."""


def one(correct: Bool[np.ndarray, "B"]) -> Float[np.ndarray, "B"]:
    """GC = 1 (eq. 7): every output is imitated."""
    return np.ones(correct.shape, np.float32)


def indicator(correct: Bool[np.ndarray, "B"]) -> Float[np.ndarray, "B"]:
    """GC = I(o) (eq. 10 and 11): correct outputs are reinforced alike, others not at all."""
    return correct.astype(np.float32)


class MethodRow(NamedTuple):
    """A method is a source of samples and a gradient coefficient."""

    source: Literal["demonstrations", "pool", "policy"]
    coefficient: Coefficient


METHODS: dict[Method, MethodRow] = {
    "sft": MethodRow("demonstrations", one),
    "rft": MethodRow("pool", indicator),
    "online_rft": MethodRow("policy", indicator),
}


def output_weights(
    question_ids: Int[np.ndarray, "B"],
    *,
    denominator: Denominator,
    num_sampled: float,
    num_questions: float,
) -> Float[np.ndarray, "B"]:
    """The weight of each kept output, so that the sum over them estimates the expectation.

    question_ids: the question of each kept output; num_sampled: decided outputs, kept or not;
    num_questions: questions with a decided output, kept or not. Under refill both are what the
    kept outputs stand for, and need not be whole (rft_jax/training/batch_filling.py).
    sampled: 1 / num_sampled, the unbiased estimate of eq. 11, in which rejected outputs count;
    accepted: 1 / kept, the mean over what is trained on;
    accepted_per_question: the mean over each question's kept outputs, then over all questions.
    """
    kept = len(question_ids)
    if kept == 0:
        return np.zeros(0, np.float32)
    if denominator == "sampled":
        return np.full(kept, 1.0 / num_sampled, np.float32)
    if denominator == "accepted":
        return np.full(kept, 1.0 / kept, np.float32)
    _, inverse, counts = np.unique(question_ids, return_inverse=True, return_counts=True)
    return (1.0 / (counts[inverse] * num_questions)).astype(np.float32)


def objective(log_probs: Float[Array, "..."], weights: Float[Array, "..."]) -> Float[Array, ""]:
    """J up to terms without gradient: sum over tokens of weight * log pi_theta(o_t | q, o_<t)."""
    return jnp.sum(weights * log_probs)


def k3(
    log_probs: Float[Array, "..."], reference_log_probs: Float[Array, "..."]
) -> Float[Array, "..."]:
    """pi_ref/pi_theta - log(pi_ref/pi_theta) - 1 per token: never negative, unbiased for
    KL(pi_theta || pi_ref) on samples of pi_theta (DeepSeekMath, eq. 4).

    Differentiated as it stands it adds beta * (pi_ref/pi_theta - 1) to GC (eq. 21).
    """
    log_ratio = reference_log_probs - log_probs
    return jnp.exp(log_ratio) - log_ratio - 1.0
