"""Facts the host knows about questions and sampled outputs. Imports no jax."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NamedTuple


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
    answer: the bare reference answer, e.g. `72` (what follows the last `####`).
    solution: the worked demonstration that ends in the answer, or None where the source has none.
    """

    id: int
    text: str
    answer: str
    solution: str | None = None


@dataclass(frozen=True)
class Judgement:
    """A verdict with its reason, e.g. (INCORRECT, "no answer")."""

    verdict: Verdict
    reason: str


@dataclass(frozen=True)
class Sample:
    """One sampled output o and all that is known of it.

    step: the rollout that sampled it; with question_id and sample_index the address of its keys.
    tokens: the completion, EOS included when there is one.
    log_probs: log pi(o_t | q, o_<t) of the sampling distribution, in nats, one per token.
    finished: True when the output ended with EOS; False when it was cut at the length limit.
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

    @property
    def accepted(self) -> bool:
        """I(o) = 1."""
        return self.verdict is Verdict.CORRECT

    @property
    def num_tokens(self) -> int:
        """|o|."""
        return len(self.tokens)


@dataclass(frozen=True)
class Remote(Sample):
    """What other processes know of an output that is not trained on: its text and tokens, empty
    here, stay with the process that verified it.

    length: its tokens; reason: the first characters of it.
    """

    length: int = 0

    @property
    def num_tokens(self) -> int:
        """|o|."""
        return self.length


class Decoded(NamedTuple):
    """What one call of the sampler had to do.

    prompts: tokens of each question's prompt. outputs: tokens of each output, EOS included, those
    of a question together. steps: that the decode loop ran, summed over the shards of the batch.
    """

    prompts: tuple[int, ...]
    outputs: tuple[tuple[int, ...], ...]
    steps: int
