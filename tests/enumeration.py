"""A world so small that all outputs can be listed: two questions, three tokens, outputs of up to 3.

Its tokens are EOS (id 0, which is also what fills shapes), `1` and `2`; BOS is spelt like `1`. An
output is correct when it is finished and its digits sum to the question's answer. A tabular policy
has one row of scores, theta[question, prefix], for each place where a token is drawn.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from unittest.mock import create_autospec

import numpy as np
import tiny

from rft_jax.config import (
    Config,
    DataConfig,
    Denominator,
    MeshConfig,
    ObjectiveConfig,
    SelectionConfig,
)
from rft_jax.data.tokenizers.base import Tokenizer
from rft_jax.distributed.mesh import make_mesh
from rft_jax.rollout.engine import Sampling
from rft_jax.types import Question, Sample, Verdict
from rft_jax.verification.pool import VerifierPool

EOS, LIMIT, VOCABULARY = 0, 3, 3

QUESTIONS = (
    Question(id=0, text="1", answer="2", solution="11"),
    Question(id=1, text="22", answer="3", solution="21"),
)
PROMPTS = {0: (1, 1), 1: (1, 2, 2)}
"""BOS and the question's digits."""


@dataclass(frozen=True, eq=False)
class DigitTokenizer(Tokenizer):
    """Each digit is its own id."""

    def files(self) -> dict[str, bytes]:
        raise AssertionError("no test writes it")

    def _encode(self, text: str, *, marked: bool) -> list[int]:
        return [int(digit) for digit in text]

    def _decode(self, ids: list[int]) -> str:
        return "".join(map(str, ids))


class Output(NamedTuple):
    """tokens: EOS included where finished."""

    tokens: tuple[int, ...]
    finished: bool

    @property
    def text(self) -> str:
        return "".join(map(str, self.tokens[:-1] if self.finished else self.tokens))


OUTPUTS = [
    Output((*digits, EOS), True)
    for length in range(LIMIT)
    for digits in itertools.product((1, 2), repeat=length)
] + [Output(digits, False) for digits in itertools.product((1, 2), repeat=LIMIT)]

PREFIXES = [
    digits for length in range(LIMIT) for digits in itertools.product((1, 2), repeat=length)
]


def sample(
    question: Question, output: Output, index: int = 0, verdict: Verdict | None = None
) -> Sample:
    """The output as a verified sample; verdict: in place of the rule's."""
    right = output.finished and sum(output.tokens) == int(question.answer)
    return Sample(
        question_id=question.id,
        sample_index=index,
        step=0,
        text=output.text,
        tokens=output.tokens,
        log_probs=(0.0,) * len(output.tokens),
        finished=output.finished,
        verdict=verdict or (Verdict.CORRECT if right else Verdict.INCORRECT),
        reason="",
    )


@functools.cache
def sampling() -> Sampling:
    """What choosing and prompting need; its verifier is never asked."""
    return Sampling(
        model=tiny.model(),
        data=DataConfig(train="a", validation="a", prompt_template="{question}"),
        mesh=make_mesh(MeshConfig()),
        tokenizer=DigitTokenizer(
            path=Path("digits"),
            vocab_size=VOCABULARY,
            prefix_ids=(1,),
            eos_ids=(EOS,),
            pad_id=0,
            unk_id=None,
            special={EOS: "EOS"},
            chat_template=None,
        ),
        verifier=create_autospec(VerifierPool, instance=True),
        seed=0,
    )


def config(
    method: str,
    denominator: Denominator | None = "sampled",
    *,
    kl_coefficient: float = 0.0,
    selection: SelectionConfig | None = None,
) -> Config:
    """A run of this world."""
    base = {"sft": tiny.sft, "rft": tiny.rft, "online_rft": tiny.online_rft}[method]
    data = DataConfig(
        train="a",
        validation="a",
        prompt_template="{question}",
        max_prompt_tokens=3,
        max_completion_tokens=LIMIT,
    )
    objective = ObjectiveConfig(denominator=denominator, kl_coefficient=kl_coefficient)
    changes = {} if method == "sft" else {"selection": selection or SelectionConfig()}
    return base(data=data, objective=objective, **changes)


def random_theta(seed: int) -> np.ndarray:
    """Scores of a tabular policy [question, prefix, token]."""
    shape = (len(QUESTIONS), len(PREFIXES), VOCABULARY)
    return np.random.default_rng(seed).normal(size=shape)


def table(theta: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """log pi(token | question, prefix) of the tempered policy."""
    scores = theta / temperature
    return scores - np.log(np.exp(scores).sum(-1, keepdims=True))


def places(tokens: Sequence[int]) -> Iterable[tuple[int, int]]:
    """(prefix, token) of each token of an output."""
    for t, token in enumerate(tokens):
        yield PREFIXES.index(tuple(tokens[:t])), token


def probability(
    theta: np.ndarray, question: int, tokens: Sequence[int], temperature: float = 1.0
) -> float:
    """pi(o | q) of the tempered policy."""
    rows = table(theta, temperature)[question]
    return float(np.exp(sum(rows[place] for place in places(tokens))))


def token_score(
    theta: np.ndarray, question: int, place: tuple[int, int], temperature: float = 1.0
) -> np.ndarray:
    """grad log pi(o_t | q, o_<t), shaped like theta: (one-hot - pi) / temperature."""
    prefix, token = place
    score = np.zeros_like(theta)
    score[question, prefix] = -np.exp(table(theta, temperature)[question, prefix])
    score[question, prefix, token] += 1.0
    return score / temperature


def score(
    theta: np.ndarray, question: int, tokens: Sequence[int], temperature: float = 1.0
) -> np.ndarray:
    """1/|o| * sum_t grad log pi(o_t | q, o_<t)."""
    return token_scores(theta, question, tokens, temperature).sum(0)


def token_scores(
    theta: np.ndarray, question: int, tokens: Sequence[int], temperature: float = 1.0
) -> np.ndarray:
    """1/|o| * grad log pi(o_t | q, o_<t) of each token [t, ...]."""
    parts = [token_score(theta, question, place, temperature) for place in places(tokens)]
    return np.stack(parts) / len(tokens)


def formula_weights(samples: Sequence[Sample], denominator: Denominator) -> np.ndarray:
    """I(o) over the denominator for each sample, in float64: the formula, without selection."""
    decided = [s for s in samples if s.verdict is not Verdict.UNDECIDED]
    correct = [s for s in decided if s.verdict is Verdict.CORRECT]
    weights = np.zeros(len(samples))
    for row, one in enumerate(samples):
        if one.verdict is Verdict.CORRECT:
            same = sum(other.question_id == one.question_id for other in correct)
            weights[row] = {
                "sampled": 1 / len(decided),
                "accepted": 1 / len(correct),
                "accepted_per_question": 1 / same / len({s.question_id for s in decided}),
                "tokens": len(one.tokens) / sum(len(other.tokens) for other in decided),
                "constant": len(one.tokens) / len(decided) / LIMIT,
            }[denominator]
    return weights


def random_samples(rng: np.random.Generator, per_question: int) -> list[Sample]:
    """Outputs drawn evenly from the list, one in eight of them undecided."""
    return [
        sample(
            question,
            OUTPUTS[rng.integers(len(OUTPUTS))],
            index,
            Verdict.UNDECIDED if rng.random() < 1 / 8 else None,
        )
        for question in QUESTIONS
        for index in range(per_question)
    ]


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """|found - expected| / |expected|, in the Euclidean norm."""
    return float(np.linalg.norm(np.asarray(found) - expected) / np.linalg.norm(expected))
