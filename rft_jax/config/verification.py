"""How outputs are verified and the policy is evaluated."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from rft_jax.config.fields import LEAST_TEMPERATURE, MAY_CHANGE, at_least, require


@dataclass(frozen=True)
class VerificationConfig:
    """How it is decided whether an output is correct, I(o)."""

    verifier: str = "auto"
    """A built-in rule: `hash` (a `####` line), `boxed` (`\\boxed{}`), `tagged`
    (`<answer></answer>`), `auto` (`hash`, else `boxed`), `random` (a control: random verdicts),
    `reasoning_gym` (the scores of its tasks); or a function of yours as `module:function`."""
    comparison: Literal["exact", "math"] = "exact"
    """How answers are compared: exactly, or also by math-verify where that cannot decide."""
    checks: tuple[str, ...] = ()
    """What a correct output must pass in addition: `equations` (every `<<a=b>>` holds exactly),
    `ends_with_answer`, or functions of yours as `module:function`."""
    weights: tuple[float, ...] = ()
    """Weights of the verifier and of each check: the reward is the weighted mean of theirs. Empty:
    each must accept."""
    threshold: float = 1.0
    """Least reward with which an output is correct, where a function of yours, reasoning_gym or
    weights give rewards."""
    examples: str = field(default="", metadata=MAY_CHANGE)
    """JSONL file of outputs that the verifier is tried on before the first step: `reference`,
    `output`, `expected` (correct, incorrect, undecided) and what else it reads; empty for none."""
    random_rate: float = 0.5
    """Share of outputs that the verifier `random` accepts."""
    canary: Literal["solutions", "answers", "off"] = "solutions"
    """What the verifier is tried on before the first step: the data's own solutions (where there
    are none, answers in the rule's form), answers in the rule's form, or nothing."""
    workers: int = field(default=2, metadata=MAY_CHANGE)
    """Verifier processes."""
    timeout_seconds: float = 10.0
    """Longest time for one output; beyond it the verdict is undecided."""
    memory_mb: int = 2048
    """Memory that a verifier process may use beyond what it starts with, in MiB; an output that
    needs more is undecided."""
    max_characters: int = 200_000
    """Longest output that is judged; a longer one is undecided."""
    warn_undecided: float = field(default=0.05, metadata=MAY_CHANGE)
    """Share of undecided outputs in a step above which a warning is logged."""
    stop_undecided: float = field(default=1.0, metadata=MAY_CHANGE)
    """Share of undecided outputs in a step above which the run stops; 1 for never."""
    first_outputs: int = field(default=256, metadata=MAY_CHANGE)
    """The first N sampled outputs of a run stop it where none is accepted or more than half are
    undecided, and are warned of where all are accepted; 0 for never."""

    def __post_init__(self) -> None:
        at_least(1, self, "workers", "memory_mb", "max_characters")
        at_least(0, self, "first_outputs")
        require(
            self.timeout_seconds > 0,
            f"verification.timeout_seconds is {self.timeout_seconds}: it must be positive.",
        )
        for name in ("warn_undecided", "stop_undecided", "random_rate"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"verification.{name} is {value}: it must lie in [0, 1].")
        require(
            self.verifier != "lenient_last_number",
            "verification.verifier is 'lenient_last_number', which accepts guesses: it is for "
            "evaluation only (evaluation.verifier); choose auto, hash, boxed or tagged.",
        )
        require(
            0 < self.threshold <= 1,
            f"verification.threshold is {self.threshold}: it must lie above 0 and at most at 1.",
        )
        rewarding = any(":" in name for name in (self.verifier, *self.checks))
        require(
            self.threshold == 1
            or rewarding
            or self.verifier == "reasoning_gym"
            or bool(self.weights),
            "verification.threshold does nothing where no verifier gives rewards: remove it.",
        )
        require(
            len(self.weights) in (0, 1 + len(self.checks))
            and all(0 < w < math.inf for w in self.weights),
            f"verification.weights is {self.weights}: a positive number for the verifier and for "
            f"each of {len(self.checks)} checks is expected.",
        )
        if self.verifier in ("random", "reasoning_gym") or ":" in self.verifier:
            require(
                self.comparison == "exact",
                f"verification.comparison does nothing beside verifier {self.verifier!r}, which "
                "compares by itself: remove it.",
            )
        require(
            self.verifier == "random" or self.random_rate == 0.5,
            "verification.random_rate acts only with the verifier 'random': remove it.",
        )


@dataclass(frozen=True)
class EvaluationConfig:
    """Held-out evaluation: greedy accuracy, pass@k and maj@k."""

    every_steps: int = 0
    """Evaluate on data.validation every N steps, and before the first; 0 for never."""
    num_questions: int = 0
    """Use the first N validation questions; 0 for all. The whole test set is always used."""
    samples_per_question: int = 0
    """Outputs per question for pass@k and maj@k on validation; 0 for greedy only."""
    test_samples_per_question: int = 0
    """The same on the test set."""
    temperature: float = 1.0
    """Temperature of those samples."""
    questions_per_batch: int = 64
    """Questions whose outputs are decoded at a time; one that ends makes room for the next."""
    verifier: str = ""
    """Verifier of the evaluation, compared as verification.comparison says: a name as in
    verification.verifier, or `lenient_last_number`; empty for verification.verifier."""

    def __post_init__(self) -> None:
        require(
            self.verifier != "random",
            "evaluation.verifier is 'random': an evaluation with random verdicts says nothing; "
            "name a rule.",
        )
        at_least(
            0,
            self,
            "every_steps",
            "num_questions",
            "samples_per_question",
            "test_samples_per_question",
        )
        at_least(1, self, "questions_per_batch")
        require(
            self.temperature >= LEAST_TEMPERATURE,
            f"evaluation.temperature is {self.temperature}: it must be at least "
            f"{LEAST_TEMPERATURE} (greedy accuracy is always measured).",
        )
