"""The objective: weights over a denominator, and one formula for every method.

Every method (rft_jax/training/methods.py) ascends DeepSeekMath's eq. 5 (arXiv 2402.03300)

    grad J = E_{(q, o) ~ D} [ 1/|o| * sum_t GC(q, o, t) * grad log pi_theta(o_t | q, o_<t) ]

|o| counts the EOS token, which is trained like any other. The expectation becomes a sum over
outputs with explicit weights (`output_weights`); the device then computes
sum(weights * log_probs), nothing else (`objective`), or, where a rollout is for several updates,
what the method makes of pi_theta / pi_old (`surrogate`).

Deviations from the paper, each off or neutral by default, each the name of a test:
 1. duplicates and outputs beyond a cap may be dropped (selection.dedupe, max_per_question);
 2. the denominator may be other than the number of sampled outputs (objective.denominator);
 3. an undecided output is masked: it counts neither as sampled nor as incorrect;
 4. a truncated output is never correct, whatever it says;
 5. at a rollout temperature other than 1, pi_theta is the tempered policy that was sampled from;
 6. an estimate of the KL to the run's start may be subtracted (eq. 4: k3), over sampled outputs;
 7. AdamW with clipping takes the place of plain ascent;
 8. a step may sample until enough outputs are kept, and fill up with those of older policies
    (refill; rft_jax/training/batch_filling.py states what that biases);
 9. an entropy bonus, and outputs that are replayed, may be added to the objective
    (objective.entropy_coefficient, replay).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from rft_jax.config import Denominator
from rft_jax.config.method import Ratio


def output_weights(
    question_ids: Int[np.ndarray, "B"],
    lengths: Int[np.ndarray, "B"],
    *,
    denominator: Denominator,
    num_sampled: float,
    num_questions: float,
    num_tokens: float,
    constant_length: int,
) -> Float[np.ndarray, "B"]:
    """1 over the denominator for each kept output, so that the sum over them estimates the
    expectation. The output's tokens share it, 1/|o| each.

    sampled: 1 / num_sampled, the unbiased estimate of eq. 11, in which rejected outputs count;
    accepted: 1 / kept, the mean over what is trained on;
    accepted_per_question: the mean over each question's kept outputs, then over all questions. With
        GC = I(o) and G outputs a question it ascends MaxRL's objective of order G (arXiv
        2602.02710), sum over k <= G of (1 - (1 - p)^k) / k in place of the pass rate p;
    tokens: |o| / num_tokens, so that each token has one weight (DAPO, arXiv 2503.14476, eq. 8);
    constant: |o| / (num_sampled * constant_length), likewise, and no output's weight depends on the
        others' lengths (Dr. GRPO, arXiv 2503.20783).

    Args:
        question_ids: the question of each of B kept outputs.
        lengths: |o| of each.
        denominator: one of the five.
        num_sampled: decided outputs, kept or not. With batch filling, those that the kept ones
            stand for, which need not be a whole number (rft_jax/training/batch_filling.py).
        num_questions: questions with a decided output, kept or not; likewise.
        num_tokens: of all decided outputs, kept or not; likewise.
        constant_length: tokens that stand for |o|.

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
    if denominator == "tokens":
        return (lengths / num_tokens).astype(np.float32)
    if denominator == "constant":
        return (lengths / (num_sampled * constant_length)).astype(np.float32)
    _, inverse, counts = np.unique(question_ids, return_inverse=True, return_counts=True)
    return (1.0 / (counts[inverse] * num_questions)).astype(np.float32)


def objective(log_probs: Float[Array, "..."], weights: Float[Array, "..."]) -> Float[Array, ""]:
    """J up to terms without gradient: sum over tokens of weight * log pi_theta(o_t | q, o_<t)."""
    return jnp.sum(weights * log_probs)


class Surrogate(NamedTuple):
    """The objective of outputs of an older policy. value: to be ascended; ratios: rho of each slot;
    clipped: whether the slot's gradient is 0, or its weight a bound's."""

    value: Float[Array, ""]
    ratios: Float[Array, "R S"]
    clipped: Bool[Array, "R S"]


def surrogate(
    log_probs: Float[Array, "R S"],
    old_log_probs: Float[Array, "R S"],
    weights: Float[Array, "R S"],
    segments: Int[Array, "R S"],
    ratio: Ratio,
) -> Surrogate:
    """J where pi_old sampled the outputs: rft_jax/config/method.py states it for each `ratio`.

    It is linear in A but for its sign, so A's share of the denominator may be in it already.

    Args:
        log_probs: log pi_theta(o_t | q, o_<t) in nats.
        old_log_probs: of the policy that sampled, 0 where there is no output.
        weights: GC / |o| over the denominator; 0 at slots that are not trained on.
        segments: the sequence of each slot in its row, 0 for none.
        ratio: of the method.
    """
    trained = weights != 0
    # A token of coefficient 0 is part of its output's ratio; only outputs' tokens have log-probs.
    of_output = trained | (old_log_probs != 0)
    log_ratios = jnp.where(of_output, log_probs - old_log_probs, 0.0)
    if ratio.per != "token":

        def of_row(values: Array, sequences: Array) -> Array:
            sums = jax.ops.segment_sum(values, sequences, num_segments=len(sequences) + 1)
            return sums[sequences]

        totals = jax.vmap(of_row)(log_ratios, segments)
        sizes = jax.vmap(of_row)(of_output.astype(totals.dtype), segments)
        sizes = jnp.maximum(sizes, 1.0)
        log_ratios = totals / sizes if ratio.per == "sequence" else totals
        if ratio.per == "output" and ratio.how == "clipped":
            weights = weights / sizes  # every token's slope is that of the whole output's ratio
    log_ratios = jnp.where(trained, log_ratios, 0.0)
    if ratio.of == "negatives":
        log_ratios = jnp.where(weights < 0, log_ratios, 0.0)
    ratios = jnp.exp(log_ratios)
    bounded = jnp.clip(ratios, 1.0 - ratio.low, 1.0 + ratio.high)
    if ratio.how == "weight":
        value = jnp.sum(jax.lax.stop_gradient(bounded) * weights * log_probs)
        return Surrogate(value, ratios, trained & (bounded != ratios))
    ascended = jnp.minimum(ratios * weights, bounded * weights)
    clipped = trained & (ratios * weights > bounded * weights)
    if ratio.dual:
        least = ratio.dual * weights
        clipped |= (weights < 0) & (ascended < least)
        ascended = jnp.where(weights < 0, jnp.maximum(ascended, least), ascended)
    return Surrogate(jnp.sum(ascended), ratios, clipped)


def importance(
    log_probs: Float[Array, "..."], sampler_log_probs: Float[Array, "..."], cap: float
) -> Float[Array, "..."]:
    """sg[min(pi_theta / pi_sampler, cap)] per token: the weight that makes outputs of the sampler's
    numbers those of the trainer's, truncated."""
    ratios = jnp.exp(jax.lax.stop_gradient(log_probs) - sampler_log_probs)
    return jnp.minimum(ratios, cap)


def k1(
    log_probs: Float[Array, "..."], reference_log_probs: Float[Array, "..."]
) -> Float[Array, "..."]:
    """log(pi_theta/pi_ref) per token: unbiased for KL(pi_theta || pi_ref) on samples of pi_theta.

    In the loss its gradient is 0 in expectation (with 1/|o|: that of no KL at all).
    """
    return log_probs - reference_log_probs


def k2(
    log_probs: Float[Array, "..."], reference_log_probs: Float[Array, "..."]
) -> Float[Array, "..."]:
    """(log(pi_theta/pi_ref))^2 / 2 per token: biased, and on samples of pi_theta its gradient is
    that of KL(pi_theta || pi_ref) of each token's distribution."""
    return 0.5 * jnp.square(log_probs - reference_log_probs)


def k3(
    log_probs: Float[Array, "..."], reference_log_probs: Float[Array, "..."]
) -> Float[Array, "..."]:
    """pi_ref/pi_theta - log(pi_ref/pi_theta) - 1 per token: never negative, unbiased for
    KL(pi_theta || pi_ref) on samples of pi_theta (DeepSeekMath, eq. 4).

    Differentiated as it stands it adds beta * (pi_ref/pi_theta - 1) to GC (eq. 21), which on
    samples of pi_theta is the gradient of KL(pi_ref || pi_theta) of each token's distribution.
    """
    log_ratio = reference_log_probs - log_probs
    return jnp.exp(log_ratio) - log_ratio - 1.0


KL = {"k1": k1, "k2": k2, "k3": k3}
"""Estimators of the KL per token, by objective.kl_estimator."""
