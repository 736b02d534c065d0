"""The objective, the shapes of the update, and the optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rft_jax.config.fields import BELOW_ONE, FLOAT32_MAX, FLOAT32_TINY, at_least, require
from rft_jax.config.method import Denominator


@dataclass(frozen=True)
class ObjectiveConfig:
    """The denominator of the objective, its importance ratio and its optional KL term
    (rft_jax/training/objective.py). None: as the method's row has it."""

    denominator: Denominator | None = None
    """What the sum over kept outputs is divided by: every sampled output (eq. 11, unbiased), the
    kept ones, each question's kept ones and then the number of questions, or, without 1/|o|, the
    tokens of all sampled outputs, or their number times constant_length."""
    constant_length: int = 0
    """Tokens that stand for |o| under the denominator constant; 0 for
    data.max_completion_tokens."""
    clip_low: float | None = None
    """The importance ratio is clipped at 1 - clip_low; 1 for no lower bound."""
    clip_high: float | None = None
    """The importance ratio is clipped at 1 + clip_high."""
    dual_clip: float | None = None
    """Bound on the ratio of outputs with a negative coefficient; 0 for none."""
    importance_cap: float = 0.0
    """Tokens are weighed by min(pi_theta / pi_sampler, importance_cap), a constant, which corrects
    what sampler and trainer compute differently; 0 for no weight."""
    kl_coefficient: float = 0.0
    """Weight of the KL to pi_ref, the run's start."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """Of KL(pi_theta || pi_ref), per token. In the loss their gradients differ in expectation: k1's
    is 0, k2's that of KL(pi_theta || pi_ref), k3's that of KL(pi_ref || pi_theta)."""
    kl_in: Literal["loss", "reward"] = "loss"
    """Where the KL is subtracted: from the objective (eq. 3), or, summed over an output's tokens,
    from its reward, before baselines (eq. 2). There k1 has the gradient of KL(pi_theta || pi_ref)
    of whole outputs."""
    kl_outputs: int = 0
    """Outputs of each rollout on which the KL to pi_ref is measured (policy/kl), with any weight;
    0 for none, as without a weight it keeps a copy of the start's parameters."""
    reference_every: int = 0
    """Updates after which pi_ref becomes the policy, once the rollout is through (iterative GRPO,
    algorithm 1); 0 keeps the start."""

    def __post_init__(self) -> None:
        at_least(0, self, "constant_length", "kl_outputs", "reference_every")
        require(
            self.kl_coefficient >= 0,
            f"objective.kl_coefficient is {self.kl_coefficient}: 0 or more is needed.",
        )
        require(
            self.kl_coefficient > 0 or self.kl_estimator == "k3",
            f"objective.kl_estimator is {self.kl_estimator!r} and does nothing, as "
            "objective.kl_coefficient is 0: raise it, or remove the estimator.",
        )
        require(
            self.kl_coefficient > 0 or self.kl_in == "loss",
            f"objective.kl_in is {self.kl_in!r} and does nothing, as objective.kl_coefficient is "
            "0: raise it, or remove kl_in.",
        )
        require(
            self.importance_cap == 0 or self.importance_cap >= 1,
            f"objective.importance_cap is {self.importance_cap}: it must be at least 1, the weight "
            "of a token on which sampler and trainer agree, or 0 for no weight.",
        )
        for name in ("clip_low", "clip_high", "dual_clip"):
            value = getattr(self, name)
            require(
                value is None or 0 <= value <= FLOAT32_MAX,
                f"objective.{name} is {value}: it must be 0 or more.",
            )

    @property
    def kl_loss(self) -> float:
        """The weight of the KL in the loss."""
        return self.kl_coefficient if self.kl_in == "loss" else 0.0


@dataclass(frozen=True)
class CriticConfig:
    """The value function of PPO (rft_jax/training/critic.py), which starts as the policy does."""

    learning_rate: float = 1e-5
    """Peak learning rate of the value function; the rest is as in optimizer."""
    gamma: float = 1.0
    """Discount of a token."""
    gae_lambda: float = 0.95
    """Of generalized advantage estimation: 1 for the return less the value."""
    value_clip: float = 0.2
    """How far a value counts away from what it was when the outputs were sampled; 0 for no
    bound."""

    def __post_init__(self) -> None:
        require(
            self.learning_rate > 0,
            f"critic.learning_rate is {self.learning_rate}: it must be a positive number.",
        )
        for name in ("gamma", "gae_lambda"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"critic.{name} is {value}: it must lie in [0, 1].")
        at_least(0, self, "value_clip")


@dataclass(frozen=True)
class UpdateConfig:
    """Static shapes of the update: packed rows, micro-batches and log-prob chunks."""

    row_length: int = 256
    """Tokens of one packed row; holds at least one longest prompt and output."""
    rows_per_microbatch: int = 16
    """Rows of one gradient-accumulation step; a multiple of the mesh's data x fsdp size."""
    sequences_per_step: int = 0
    """Outputs per update (SFT and RFT); 0 for Online RFT, whose rollout decides it."""
    minibatches: int = 1
    """Updates that one pass over a rollout is split into; 1 is on-policy."""
    epochs: int = 1
    """Passes over a rollout (mu)."""
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
        at_least(1, self, "minibatches", "epochs")

    @property
    def per_rollout(self) -> int:
        """Updates that are made on one rollout."""
        return self.minibatches * self.epochs


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
