"""Which outputs are sampled, and which of them are trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rft_jax.config.fields import LEAST_TEMPERATURE, at_least, both_or_none, require


@dataclass(frozen=True)
class RolloutConfig:
    """One sampling phase: questions x samples from a policy (RFT and Online RFT)."""

    questions_per_step: int = 32
    """Questions of one rollout (Q)."""
    samples_per_question: int = 8
    """Outputs sampled per question (G)."""
    temperature: float = 1.0
    """Divides the logits; 1 samples from pi_theta itself."""
    temperature_target: float = 0.0
    """Entropy of the tempered policy, in nats a token, that the temperature is moved towards from
    rollout to rollout (training/control.py); 0 keeps the temperature."""
    temperature_step: float = 0.0
    """What it rises by after a rollout of less entropy than that, and falls by after one of more;
    also the lowest that it falls to."""
    slots: int = 0
    """Outputs decoded at a time, over all devices; one that ends makes room for the next. 0 decodes
    all outputs of a step at once."""

    def __post_init__(self) -> None:
        at_least(1, self, "questions_per_step", "samples_per_question")
        at_least(0, self, "slots")
        both_or_none(self, "temperature_target", "temperature_step")
        require(
            not 0 < self.temperature_step < LEAST_TEMPERATURE,
            f"rollout.temperature_step is {self.temperature_step}: it is also the lowest "
            f"temperature, and must be at least {LEAST_TEMPERATURE}.",
        )
        require(
            self.temperature >= LEAST_TEMPERATURE,
            f"rollout.temperature is {self.temperature}: training samples need one of at least "
            f"{LEAST_TEMPERATURE} (greedy outputs explore nothing).",
        )


@dataclass(frozen=True)
class PoolConfig:
    """The fixed pool of RFT: rollouts of the frozen start, or the log of earlier runs."""

    rollout_steps: int = 0
    """Rollouts that fill the pool, each of rollout.questions_per_step questions."""
    from_rollouts: tuple[str, ...] = ()
    """Folders `WORKDIR/RUN/rollouts` of earlier runs, united, in place of sampling."""
    every_steps: int = 0
    """Updates after which another pool of as many rollouts takes its place (iterative RFT, RAFT);
    0 keeps the first one."""
    sampled_from: Literal["policy", "start"] = "policy"
    """What samples the later pools: the policy as it is then, or the frozen start."""

    def __post_init__(self) -> None:
        at_least(0, self, "every_steps")
        require(
            not (self.every_steps and self.from_rollouts),
            f"pool.every_steps is {self.every_steps} and pool.from_rollouts is "
            f"{list(self.from_rollouts)}: a log is read once; set pool.every_steps to 0.",
        )
        require(
            bool(self.every_steps) or self.sampled_from == "policy",
            f"pool.sampled_from is {self.sampled_from!r} and does nothing, as the only pool is "
            "always the start's (pool.every_steps is 0): remove it.",
        )
        require(
            (self.rollout_steps >= 1) != bool(self.from_rollouts),
            f"pool.rollout_steps is {self.rollout_steps} and pool.from_rollouts is "
            f"{list(self.from_rollouts)}: give exactly one of them.",
        )


@dataclass(frozen=True)
class ReplayConfig:
    """Outputs that a method of the policy's own samples rehearses in every update: the objective is
    J + weight * the mean over them of 1/|o| sum_t log pi_theta(o_t | q, o_<t)."""

    sequences_per_step: int
    """Replayed outputs of an update (M), drawn epoch after epoch."""
    weight: float
    """Of their mean log-prob per token in the objective."""
    source: str = ""
    """Where the demonstrations are from, as in data.train; empty for data.train itself."""
    from_rollouts: tuple[str, ...] = ()
    """Folders `WORKDIR/RUN/rollouts` of earlier runs whose accepted outputs, less what selection
    drops, are replayed in place of demonstrations."""

    def __post_init__(self) -> None:
        at_least(1, self, "sequences_per_step")
        require(
            self.weight > 0,
            f"replay.weight is {self.weight}: it must be a positive number; without replay leave "
            "the section out.",
        )
        require(
            not self.source or not self.from_rollouts,
            f"replay.source is {self.source!r} and replay.from_rollouts is "
            f"{list(self.from_rollouts)}: give one of them, or none for the demonstrations of "
            "data.train.",
        )


@dataclass(frozen=True)
class SelectionConfig:
    """Which accepted outputs are trained on."""

    dedupe: Literal["none", "text", "equations"] = "none"
    """Keep one output of each question's outputs with equal text, or with equal equation lists."""
    max_per_question: int = 0
    """Keep at most this many outputs of a question; 0 for all."""

    def __post_init__(self) -> None:
        require(
            self.max_per_question >= 0,
            f"selection.max_per_question is {self.max_per_question}: 0 (no cap) or more is needed.",
        )


@dataclass(frozen=True)
class RefillConfig:
    """A step of Online RFT samples until enough outputs are kept (training/batch_filling.py)."""

    max_sampled: int
    """Most outputs a step samples, whole rounds; then it trains on what it has."""
    accepted: int = 0
    """Kept outputs a step trains on (N); it samples rounds of the rollout until it has them."""
    mixed_groups: int = 0
    """In place of `accepted`: questions a step trains on, each with a correct and an incorrect
    output; the others are left out."""
    max_staleness: int = 0
    """Updates an output kept beyond `accepted` may wait for one; 0 drops it at once, so that
    every output is of the policy that it trains."""

    def __post_init__(self) -> None:
        at_least(0, self, "accepted", "mixed_groups", "max_staleness")
        require(
            bool(self.accepted) != bool(self.mixed_groups),
            f"refill.accepted is {self.accepted} and refill.mixed_groups is {self.mixed_groups}: "
            "give one of them, at least 1.",
        )
        at_least(1, self, "max_sampled")
        require(
            not self.mixed_groups or not self.max_staleness,
            f"refill.max_staleness is {self.max_staleness}: only outputs kept beyond "
            "refill.accepted are carried over, and refill.mixed_groups is given: set it to 0.",
        )
