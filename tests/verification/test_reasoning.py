"""reasoning-gym: its tasks as a source, and its scores as a verifier."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_experiment

from rft_jax.config import VerificationConfig
from rft_jax.data.sources import load
from rft_jax.errors import DataError
from rft_jax.types import Question, Verdict
from rft_jax.verification.canary import open_verifiers
from rft_jax.verification.pool import Item, VerifierPool
from rft_jax.verification.rules import Limits, VerifierSpec

pytest.importorskip("reasoning_gym")

SPEC = VerifierSpec("reasoning_gym")
LIMITS = Limits(1, 60.0)


def read(source: str) -> tuple[Question, ...]:
    return load(f"reasoning_gym:{source}", columns=True, any_answer=True)


def test_a_task_is_a_source() -> None:
    questions = read("chain_sum?size=6&seed=3&max_terms=3[1:3]")
    assert [question.id for question in questions] == [1, 2]
    first = questions[0]
    assert first.solution == f"<answer>{first.answer}</answer>"
    assert first.columns["task"] == "chain_sum"
    assert json.loads(first.columns["settings"]) == {"size": 6, "seed": 3, "max_terms": 3}
    assert load("reasoning_gym:chain_sum?size=6&seed=3&max_terms=3")[1].columns == {}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("chain_sums?size=1&seed=1", "has no task chain_sums; did you mean chain_sum?"),
        ("chain_sum?seed=1", "names no size: write size=NUMBER"),
        ("chain_sum?size=1", "names no seed: write seed=NUMBER"),
        ("chain_sum?size=1&seed=1&terms=3", "TypeError: .*unexpected keyword argument 'terms'"),
        ("chain_sum?size=1&seed=1&min_terms=0", "min_terms must be positive"),
        ("chain_sum?size=3&seed=1[:4]", "the slice names row 4 and there are 3 rows"),
    ],
)
def test_sources_that_are_none(source: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(source)


def test_its_scores_are_verdicts_and_rewards(tmp_path: Path) -> None:
    question = read("chain_sum?size=1&seed=3")[0]
    texts = [f"It is <answer>{question.answer}</answer>", "<answer>x</answer>", question.answer]
    with VerifierPool(SPEC, LIMITS) as pool:
        found = pool.verify([Item.of(question, text) for text in texts])
        other = pool.verify([Item("1", "<answer>1</answer>", True)])
        config = tiny_experiment.sft(
            tiny_experiment.write_questions(tmp_path),
            verification=VerificationConfig(verifier="reasoning_gym", workers=1),
        )
    assert [(one.verdict, one.answer) for one in found] == [
        (Verdict.CORRECT, question.answer), (Verdict.INCORRECT, "x"), (Verdict.INCORRECT, None),
    ]  # fmt: skip
    assert [one.reward for one in found] == [1.0, 0.0, 0.0]
    assert found[2].reason == "no answer"
    assert other[0].verdict is Verdict.UNDECIDED
    assert "the row is none of a source reasoning_gym" in other[0].reason
    with open_verifiers(config, read("gcd?size=20&seed=1")):
        pass


def test_a_score_that_evaluates_the_answer_starts_nothing(tmp_path: Path) -> None:
    question = read("countdown?size=1&seed=1")[0]
    path = tmp_path / "made"
    hostile = [f"__import__('os').system('touch {path}')", f"open('{path}', 'w').write('x')"]
    texts = [f"<answer>{text}</answer>" for text in (question.answer, *hostile)]
    with VerifierPool(SPEC, LIMITS) as pool:
        found = pool.verify([Item.of(question, text) for text in texts])
    assert found[0].verdict is Verdict.CORRECT
    assert not any(one.verdict is Verdict.CORRECT for one in found[1:])
    assert not path.exists()
