"""What flows through a run: facts of the host about questions and outputs, and device pytrees.

Importing it loads neither jax nor numpy. Shape letters, the one list of them: B samples,
Q questions, G samples per question, P prompt length, T completion length, S positions, L layers,
N query heads, K key/value heads, H head width, D model width, F MLP width, V vocabulary;
M micro-batches of an update, R packed rows of a micro-batch.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from jax import Array
    from jaxtyping import Bool, Float, Int


class Verdict(enum.StrEnum):
    """What the verifier says of one output; I(o) = 1 only for CORRECT.

    UNDECIDED (a timeout, a crash) is neither: it is masked out of the loss and of every pass rate.
    """

    CORRECT = "correct"
    INCORRECT = "incorrect"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Question:
    """One question q with its reference answer.

    id: row number in its source, unique within one source and stable between runs.
    text: the question as the source states it.
    answer: the bare reference answer, e.g. `72` (what follows the last `####`); under a checker of
    the user's own any JSON value.
    solution: the worked demonstration that ends in the answer, or None where the source has none.
    columns: what else the source's row holds, for such a checker; nothing under a rule.
    """

    id: int
    text: str
    answer: Any
    solution: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Judgement:
    """A verdict with its reason, e.g. (INCORRECT, "no answer").

    slow: it took over half of the time that one output may take; the pool says so.
    answer: what the output states, and reward: in [0, 1]; each only where a checker says it.
    steps: (characters of the output up to the step's end, reward) of each step, likewise.
    """

    verdict: Verdict
    reason: str
    slow: bool = field(default=False, compare=False)
    answer: str | None = None
    reward: float | None = None
    steps: Sequence[tuple[int, float]] = ()

    @property
    def value(self) -> float:
        """The reward; 1 for correct and else 0 where none is said."""
        return float(self.verdict is Verdict.CORRECT) if self.reward is None else self.reward


@dataclass(frozen=True)
class Sample:
    """One sampled output o and all that is known of it.

    step: the rollout that sampled it; with question_id and sample_index the address of its keys.
    tokens: the completion, EOS included when there is one.
    log_probs: log pi(o_t | q, o_<t) of the sampling distribution, in nats, one per token.
    finished: True when the output ended with EOS; False when it was cut at the length limit.
    stated, reward: the answer it states and its reward, as a checker says them.
    steps: (index of the step's last token, reward) of each of its steps, likewise.
    reference: log pi_ref(o_t | q, o_<t) in nats, one per token, where the run asks for it; values:
    V(q, o_<t), likewise.
    """

    question_id: int
    sample_index: int
    step: int
    text: str
    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]
    finished: bool
    verdict: Verdict
    reason: str
    stated: str | None = None
    reward: float | None = None
    steps: tuple[tuple[int, float], ...] = ()
    reference: tuple[float, ...] = ()
    values: tuple[float, ...] = ()

    @property
    def accepted(self) -> bool:
        """I(o) = 1."""
        return self.verdict is Verdict.CORRECT

    @property
    def value(self) -> float:
        """The reward; I(o) where none is said."""
        return float(self.accepted) if self.reward is None else self.reward

    @property
    def num_tokens(self) -> int:
        """|o|."""
        return len(self.tokens)

    @property
    def log_prob(self) -> float:
        """log pi(o | q) of the sampling distribution, in nats; nan where it is not known."""
        return sum(self.log_probs) if self.log_probs else math.nan


@dataclass(frozen=True)
class Remote(Sample):
    """What other processes know of an output that is not trained on: its text and tokens, empty
    here, stay with the process that verified it.

    length: its tokens; sum_log_probs: over them, in nats; reason: the first characters of it.
    """

    length: int = 0
    sum_log_probs: float = 0.0

    @property
    def num_tokens(self) -> int:
        """|o|."""
        return self.length

    @property
    def log_prob(self) -> float:
        """log pi(o | q) of the sampling distribution, in nats."""
        return self.sum_log_probs


class Facts(NamedTuple):
    """What a method's coefficient sees of the B decided outputs of a step or a pool, on the host.

    question_ids: outputs of one question are a group. correct: I(o) = 1. rewards: in [0, 1], as a
    checker says them, else 1.0 where correct and 0.0 where not. lengths: |o| in tokens, EOS
    included. finished: ended with EOS.
    log_probs: log pi(o | q) of the sampling distribution in nats; nan for demonstrations.
    limit: the most tokens that an output may have, data.max_completion_tokens.
    log_ratios: log pi_theta(o | q) / pi_ref(o | q) in nats, where the method asks for it.
    penalties: what is already taken from the rewards at each token, with a KL in the reward.
    advantages: of each token over a value function, where the method asks for it.
    step_rewards: of the step that ends at the token, nan at every other token; an output without
    steps is one. None for a method that does not read them.
    """

    question_ids: Int[np.ndarray, "B"]
    correct: Bool[np.ndarray, "B"]
    rewards: Float[np.ndarray, "B"]
    lengths: Int[np.ndarray, "B"]
    finished: Bool[np.ndarray, "B"]
    log_probs: Float[np.ndarray, "B"]
    limit: int = 0
    log_ratios: Float[np.ndarray, "B"] | None = None
    penalties: Float[np.ndarray, "B T"] | None = None
    advantages: Float[np.ndarray, "B T"] | None = None
    step_rewards: Float[np.ndarray, "B T"] | None = None


class Decoded(NamedTuple):
    """What one call of the sampler had to do.

    prompts: tokens of each question's prompt. outputs: tokens of each output, EOS included, those
    of a question together. steps: that the decode loop ran, summed over the shards of the batch.
    """

    prompts: tuple[int, ...]
    outputs: tuple[tuple[int, ...], ...]
    steps: int


Params = Any
"""A nested dict of float arrays: the parameters of a policy."""


class Prompts(NamedTuple):
    """Right-padded prompts of Q questions.

    lengths: real tokens of each row; ids: question ids, -1 for a row that only fills the shape.
    """

    tokens: Int[Array, "Q P"]
    lengths: Int[Array, "Q"]
    ids: Int[Array, "Q"]


class Completions(NamedTuple):
    """G outputs for each of Q prompts.

    tokens: completion tokens, EOS included, zero after `lengths`.
    log_probs: log-probability in nats of each token under the sampling distribution, zero after
        `lengths`; entropies: of that distribution, in nats, likewise.
    finished: whether the output ended with EOS.
    """

    tokens: Int[Array, "Q G T"]
    log_probs: Float[Array, "Q G T"]
    entropies: Float[Array, "Q G T"]
    lengths: Int[Array, "Q G"]
    finished: Bool[Array, "Q G"]


class PackedBatch(NamedTuple):
    """Sequences (prompt + output) packed into rows; slot s of a row predicts targets[s].

    segments: number of the sequence within its row from 1; 0 marks padding.
    weights: the objective is sum(weights * log_probs), or the surrogate of an importance ratio:
        GC(q, o, t) / |o| over the denominator at output tokens, 0 elsewhere.
    kl_weights: the same for the KL term; sampler_log_probs: what the sampler reported, NaN where an
        output is replayed.
    num_microbatches: micro-batches in use; the rest of M is padding and is not computed.
    """

    inputs: Int[Array, "M R S"]
    targets: Int[Array, "M R S"]
    positions: Int[Array, "M R S"]
    segments: Int[Array, "M R S"]
    weights: Float[Array, "M R S"]
    kl_weights: Float[Array, "M R S"]
    sampler_log_probs: Float[Array, "M R S"]
    num_microbatches: Int[Array, ""]


class TrainState(NamedTuple):
    """What an update changes. step: updates made so far."""

    step: Int[Array, ""]
    params: Params
    optimizer: Any
