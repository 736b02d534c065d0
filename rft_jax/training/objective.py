"""The objective: weights over a denominator, and one formula for every method.

Every method (rft_jax/training/methods.py) ascends DeepSeekMath's eq. 5 (arXiv 2402.03300)

    grad J = E_{(q, o) ~ D} [ 1/|o| * sum_t GC(q, o, t) * grad log pi_theta(o_t | q, o_<t) ]

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

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from rft_jax.config import Denominator


def output_weights(
    question_ids: Int[np.ndarray, "B"],
    *,
    denominator: Denominator,
    num_sampled: float,
    num_questions: float,
) -> Float[np.ndarray, "B"]:
    """1 over the denominator for each kept output, so that the sum over them estimates the
    expectation.

    sampled: 1 / num_sampled, the unbiased estimate of eq. 11, in which rejected outputs count;
    accepted: 1 / kept, the mean over what is trained on;
    accepted_per_question: the mean over each question's kept outputs, then over all questions.

    Args:
        question_ids: the question of each of B kept outputs.
        denominator: one of the three.
        num_sampled: decided outputs, kept or not. With batch filling, those that the kept ones
            stand for, which need not be a whole number (rft_jax/training/batch_filling.py).
        num_questions: questions with a decided output, kept or not; likewise.

    Returns:
        float32 [B].
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
