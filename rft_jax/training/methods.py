"""THE table of methods: each a row of DeepSeekMath's eq. 5 (rft_jax/config/method.py).

    method      D                                 GC     equations
    sft         demonstrations                    1      6, 7
    rft         pi_sft, frozen, sampled once      I(o)   8 to 10
    online_rft  pi_theta, now                     I(o)   11

What the sum over outputs is divided by is objective.denominator (rft_jax/training/objective.py).
Loads neither jax nor numpy: a config asks for its row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rft_jax.config.method import Method
from rft_jax.types import Facts, Sample, Verdict

if TYPE_CHECKING:
    import numpy as np


def one(facts: Facts) -> np.ndarray:
    """GC = 1 (eq. 7): every output is imitated."""
    import numpy as np

    return np.ones(len(facts.correct), np.float32)


def indicator(facts: Facts) -> np.ndarray:
    """GC = I(o) (eq. 10 and 11): correct outputs are reinforced alike, others not at all."""
    return facts.correct.astype("float32")


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


def is_trained(method: Method, sample: Sample) -> bool:
    """Whether the method may train on an output: what crosses hosts whole."""
    if method.trains_on == "accepted":
        return sample.accepted
    return sample.verdict is not Verdict.UNDECIDED
