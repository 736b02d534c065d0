"""The objective, the shapes of the update, and the optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rft_jax.config.fields import BELOW_ONE, FLOAT32_TINY, at_least, require

Denominator = Literal["sampled", "accepted", "accepted_per_question"]


@dataclass(frozen=True)
class ObjectiveConfig:
    """The denominator of the objective and its optional KL term (rft_jax/training/objective.py)."""

    denominator: Denominator = "sampled"
    """What the sum over kept outputs is divided by: every sampled output (eq. 11, unbiased), the
    kept ones, or each question's kept ones and then the number of questions."""
    kl_coefficient: float = 0.0
    """Weight of the k3 estimate of KL(pi_theta || pi_ref), pi_ref being the run's start."""

    def __post_init__(self) -> None:
        require(
            self.kl_coefficient >= 0,
            f"objective.kl_coefficient is {self.kl_coefficient}: 0 or more is needed.",
        )


@dataclass(frozen=True)
class UpdateConfig:
    """Static shapes of the update: packed rows, micro-batches and log-prob chunks."""

    row_length: int = 256
    """Tokens of one packed row; holds at least one longest prompt and output."""
    rows_per_microbatch: int = 16
    """Rows of one gradient-accumulation step; a multiple of the mesh's data x fsdp size."""
    sequences_per_step: int = 0
    """Outputs per update (SFT and RFT); 0 for Online RFT, whose rollout decides it."""
    logits_at_once: int = 2**24
    """Logits (tokens x vocabulary) that exist at a time: memory that does not grow with the
    vocabulary. With more, the vocabulary's gradient is read and written less often."""

    def __post_init__(self) -> None:
        at_least(1, self, "row_length", "rows_per_microbatch")
        require(
            self.logits_at_once >= 1,
            f"update.logits_at_once is {self.logits_at_once}: it must be at least 1.",
        )
        at_least(0, self, "sequences_per_step")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with clipping and a learning-rate schedule."""

    learning_rate: float = 1e-4
    """Peak learning rate."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """Shape after warm-up; cosine and linear end at final_fraction of the peak."""
    warmup_steps: int = 0
    """Updates of linear warm-up from 0."""
    final_fraction: float = 0.0
    """Last learning rate as a share of the peak (cosine and linear only)."""
    b1: float = 0.9
    """Decay of the first moment."""
    b2: float = 0.999
    """Decay of the second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment; above 0, as what has no gradient divides by it."""
    weight_decay: float = 0.0
    """Decoupled weight decay of matrices; norms and biases are exempt."""
    clip_norm: float = 1.0
    """Largest global gradient norm; 0 for no clipping."""
    first_moment_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the first moment; bfloat16 halves its memory. The second stays float32, as its decay
    is too slow for bfloat16's steps."""

    def __post_init__(self) -> None:
        require(
            self.learning_rate > 0,
            f"optimizer.learning_rate is {self.learning_rate}: it must be a positive number.",
        )
        require(
            self.schedule != "constant" or self.final_fraction == 0,
            "optimizer.final_fraction does nothing under a constant schedule: remove it or choose "
            "cosine or linear.",
        )
        at_least(0, self, "warmup_steps", "weight_decay", "clip_norm")
        at_least(FLOAT32_TINY, self, "eps")
        for name in ("b1", "b2", "final_fraction"):
            value = getattr(self, name)
            require(
                0 <= value <= BELOW_ONE,
                f"optimizer.{name} is {value}: it must lie in [0, 1), in float32 too.",
            )
