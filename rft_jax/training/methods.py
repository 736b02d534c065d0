"""THE table of methods: each a row of DeepSeekMath's eq. 5 (rft_jax/config/method.py).

    method      D                                 GC     equations
    sft         demonstrations                    1      6, 7
    rft         pi_sft, frozen, sampled once      I(o)   8 to 10
    online_rft  pi_theta, now                     I(o)   11

What the sum over outputs is divided by is objective.denominator (rft_jax/training/objective.py).
Loads no jax.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rft_jax.config.method import Method
from rft_jax.errors import UserError
from rft_jax.types import Facts, Sample, Verdict


def one(facts: Facts) -> np.ndarray:
    """GC = 1 (eq. 7): every output is imitated."""
    return np.ones(len(facts.correct), np.float32)


def indicator(facts: Facts) -> np.ndarray:
    """GC = I(o) (eq. 10 and 11): correct outputs are reinforced alike, others not at all."""
    return facts.correct.astype(np.float32)


METHODS: dict[str, Method] = {
    "sft": Method(
        "demonstrations", "accepted", one, "sft",
        "supervised fine-tuning on demonstrations (DeepSeekMath, eq. 6 and 7)",
    ),
    "rft": Method(
        "pool", "accepted", indicator, "rft",
        "rejection-sampling fine-tuning (RFT), on outputs of the frozen start that reach the "
        "reference answer (DeepSeekMath, eq. 8 to 10)",
    ),
    "online_rft": Method(
        "policy", "accepted", indicator, "online_rft",
        "online rejection-sampling fine-tuning (Online RFT), on outputs of the current policy "
        "that reach the reference answer (DeepSeekMath, eq. 11)",
    ),
}  # fmt: skip


def facts_of(samples: Sequence[Sample]) -> Facts:
    """The facts of decided samples, in order."""
    correct = np.array([sample.accepted for sample in samples], bool)
    return Facts(
        question_ids=np.array([sample.question_id for sample in samples], np.int64),
        correct=correct,
        rewards=correct.astype(np.float32),
        lengths=np.array([sample.num_tokens for sample in samples], np.int64),
        finished=np.array([sample.finished for sample in samples], bool),
        log_probs=np.array([sample.log_prob for sample in samples], np.float64),
    )


def coefficients(method: Method, facts: Facts) -> np.ndarray:
    """GC of each output, checked.

    Args:
        method: the row.
        facts: of B decided outputs.

    Returns:
        float64 [B].

    Raises:
        UserError: the row's coefficient is not B finite numbers, or not 0 for an output that the
            row does not train on.
    """
    size = len(facts.correct)
    found = np.asarray(method.coefficient(facts))
    name = f"method {method.name}: its coefficient"
    if found.shape != (size,) or found.dtype.kind not in "fiub":
        raise UserError(
            f"{name} gave {found.dtype} of shape {found.shape}: a number for each of {size} "
            "outputs is expected."
        )
    found = found.astype(np.float64)
    if not np.isfinite(found).all():
        raise UserError(
            f"{name} gave {found[~np.isfinite(found)][0]}: finite numbers are expected."
        )
    unseen = found[~facts.correct] if method.trains_on == "accepted" else found[:0]
    if unseen.any():
        raise UserError(
            f"{name} gave {unseen[unseen != 0][0]:g} for an output that is not accepted and "
            "trains_on is 'accepted': give 0, or set trains_on to 'decided'."
        )
    return found


def is_trained(method: Method, sample: Sample) -> bool:
    """Whether the method may train on an output: what crosses hosts whole."""
    if method.trains_on == "accepted":
        return sample.accepted
    return sample.verdict is not Verdict.UNDECIDED
