"""Evaluation: every rate from known outputs, and the same outputs however it is batched."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tiny_experiment

import rft_jax.evaluation.evaluate as evaluation
from rft_jax.checkpoint.start import load_start
from rft_jax.config import EvaluationConfig, MeshConfig
from rft_jax.data.sources import load
from rft_jax.distributed.mesh import make_mesh
from rft_jax.evaluation.evaluate import (
    Evaluation,
    calibration_error,
    evaluate,
    turnover,
    write_rows,
)
from rft_jax.keys import Purpose
from rft_jax.rollout.engine import Rollout, Sampling
from rft_jax.runs import setup
from rft_jax.training.optimizer import make_optimizer
from rft_jax.training.state import make_layout
from rft_jax.types import Question, Sample, Verdict
from rft_jax.verification.pool import VerifierPool
from rft_jax.verification.rules import Limits, VerifierSpec

QUESTIONS = [Question(id, f"{id}?", str(id)) for id in (3, 5, 8)]
RIGHT, WRONG, UNKNOWN = Verdict.CORRECT, Verdict.INCORRECT, Verdict.UNDECIDED


def output(question: int, index: int, verdict: Verdict, text: str, finished: bool) -> Sample:
    tokens = tuple(range(len(text)))
    return Sample(question, index, 0, text, tokens, (-1.0,) * len(text), finished, verdict, "")


def evaluated(
    monkeypatch: pytest.MonkeyPatch,
    greedy: list[Verdict],
    sampled: list[list[tuple[Verdict, str]]] | None = None,
    *,
    finished: bool = True,
) -> Evaluation:
    """Evaluation of QUESTIONS whose outputs are these; greedy ones are 4 tokens long."""
    calls: list[dict[str, Any]] = []

    def rollout(params: Any, questions: Any, sampling: Any, **settings: Any) -> Rollout:
        calls.append(settings)
        assert settings["num_samples"] == (1 if len(calls) == 1 else len((sampled or [[]])[0]))
        drawn = (
            [[(verdict, "text")] for verdict in greedy]
            if settings["temperature"] == 0
            else (sampled or [])
        )
        samples = [
            output(question.id, index, *one, finished)
            for question, group in zip(questions, drawn, strict=True)
            for index, one in enumerate(group)
        ]
        entropies = np.full(len(samples), 0.25 if len(calls) == 1 else 0.5)
        return Rollout(samples, samples, entropies, 0.0, 0.0, 0.0, ())

    monkeypatch.setattr(evaluation, "sample", rollout)
    monkeypatch.setattr(evaluation, "verify", lambda outputs: outputs)
    settings = EvaluationConfig(temperature=0.7, questions_per_batch=2)
    sampling = Sampling.__new__(Sampling)  # not looked into but for the rule that votes
    verifier = VerifierPool.__new__(VerifierPool)
    verifier.name, verifier.spec = "hash", VerifierSpec("hash")
    object.__setattr__(sampling, "verifier", verifier)
    found = evaluate(
        {}, QUESTIONS, sampling, settings, num_samples=len(sampled[0]) if sampled else 0
    )
    assert [call["temperature"] for call in calls] == ([0.0, 0.7] if sampled else [0.0])
    for call in calls:  # the same random numbers at every training step
        assert call["step"] == 0
        assert call["purpose"] is Purpose.EVALUATION
        assert call["questions_per_batch"] == 2
    return found


def test_greedy_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics, rows = evaluated(monkeypatch, [RIGHT, WRONG, RIGHT])
    assert metrics == {
        "greedy/accuracy": pytest.approx(2 / 3),
        "greedy/standard_error": pytest.approx(1 / 3),  # sqrt(2/3 * 1/3 / (3 - 1))
        "greedy/undecided": 0.0,
        "policy/entropy": 0.25,
        "lengths/mean": 4.0,
        "lengths/truncated": 0.0,
    }
    assert rows == [
        {"question_id": id, "greedy_correct": correct, "greedy_text": "text"}
        for id, correct in ((3, True), (5, False), (8, True))
    ]


def test_undecided_outputs_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics, rows = evaluated(monkeypatch, [RIGHT, UNKNOWN, RIGHT])
    assert metrics["greedy/accuracy"] == 1.0
    assert metrics["greedy/undecided"] == pytest.approx(1 / 3)
    assert [row["greedy_correct"] for row in rows] == [True, None, True]


def test_nothing_is_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    group = [(UNKNOWN, "#### 1"), (UNKNOWN, "#### 1")]
    metrics, rows = evaluated(monkeypatch, [UNKNOWN] * 3, [group] * 3)
    for name in ("greedy/accuracy", "pass_at/1", "pass_at/2", "maj_at/2"):
        assert metrics[name] is None
    assert metrics["greedy/undecided"] == 1.0
    assert [row["num_samples"] for row in rows] == [0, 0, 0]


def test_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    sampled = [
        # Two equal ways and another: two distinct correct outputs; the majority says 3.
        [(RIGHT, "1+2=3\n#### 3"), (RIGHT, "1 + 2 = 3\n#### 3"), (RIGHT, "2+1=3\n#### 3"),
         (WRONG, "#### 4")],
        # One undecided: pass@4 is not defined here; 2 and 5 are tied.
        [(RIGHT, "#### 5"), (WRONG, "#### 2"), (UNKNOWN, "#### 2"), (WRONG, "none")],
        [(WRONG, "#### 1"), (WRONG, "#### 1.0"), (WRONG, "#### 2"), (WRONG, "")],
    ]  # fmt: skip
    metrics, rows = evaluated(monkeypatch, [RIGHT, WRONG, WRONG], sampled)
    assert [row["num_samples"] for row in rows] == [4, 3, 4]
    assert [row["num_correct"] for row in rows] == [3, 1, 0]
    assert [row["num_distinct_correct"] for row in rows] == [2, 1, 0]
    assert [row["majority_correct"] for row in rows] == [1.0, 0.5, 0.0]
    assert metrics["pass_at/1"] == pytest.approx((3 / 4 + 1 / 3 + 0) / 3)
    assert metrics["pass_at/2"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert metrics["pass_at/4"] == pytest.approx((1 + 0) / 2)
    assert metrics["maj_at/4"] == pytest.approx(0.5)
    assert metrics["questions/distinct_correct"] == 1.0
    # Of decided outputs; an answer that two spell differently is one.
    assert [row["majority_share"] for row in rows] == pytest.approx([3 / 4, 1 / 3, 2 / 4])
    assert [row["num_answers"] for row in rows] == [2, 2, 2]
    assert metrics["questions/answers"] == 2.0
    assert metrics["calibration/confidence"] == pytest.approx((3 / 4 + 1 / 3 + 2 / 4) / 3)
    apart = [1 - 3 / 4, 0.5 - 1 / 3, 0 - 2 / 4]
    assert metrics["calibration/error"] == pytest.approx(sum(map(abs, apart)) / 3)
    assert metrics["sampled/standard_error"] == pytest.approx(
        np.std([3 / 4, 1 / 3, 0], ddof=1) / np.sqrt(3)
    )
    # Of the sampled outputs, not of the greedy ones.
    assert metrics["policy/entropy"] == 0.5
    texts = [text for group in sampled for _, text in group]
    assert metrics["lengths/mean"] == pytest.approx(np.mean([len(text) for text in texts]))


def test_a_bin_of_confidence_is_judged_as_a_whole() -> None:
    """Right in 2 of 4 at 0.52: well calibrated, though no single question is."""
    assert calibration_error([0.52] * 4, [1, 0, 1, 0]) == pytest.approx(0.02)
    assert calibration_error([0.52] * 4 + [1.0] * 4, [1, 0, 1, 0] + [0] * 4) == pytest.approx(0.51)
    assert calibration_error([0.0, 1.0], [0, 1]) == 0


def test_turnover_is_of_what_the_start_solved() -> None:
    def rows(*solved: bool | None) -> list[dict[str, Any]]:
        return [
            {"question_id": n, "num_samples": one is not None and 4, "num_correct": int(one or 0)}
            for n, one in enumerate(solved)
        ]

    start = rows(True, True, True, False, False, None, True)
    found = turnover(start, rows(True, False, False, True, False, True, None))
    assert found == pytest.approx(
        {
            "questions/gained": 1 / 2, "questions/lost": 2 / 3, "questions/solved_change": -1 / 5,
            "questions/solved_change_error": np.std([0, -1, -1, 1, 0], ddof=1) / 5**0.5,
        }
    )  # fmt: skip
    greedy = [
        {"question_id": 0, "greedy_correct": False},
        {"question_id": 1, "greedy_correct": True},
    ]
    # A resumed run may sample more, or less, than its start: that is no change of the policy.
    assert turnover(start, [row | {"num_samples": 2} for row in start]) == {}
    assert turnover(greedy, rows(True, True)) == {}
    names = ("gained", "lost", "solved_change", "solved_change_error")
    assert turnover(greedy, greedy) == {f"questions/{name}": 0.0 for name in names}
    nothing = turnover(start, [])
    assert np.isnan(nothing.pop("questions/solved_change_error") or 0)
    assert nothing == {f"questions/{name}": None for name in names[:3]}


def test_the_change_of_distinct_correct_outputs_is_paired() -> None:
    def rows(*counts: int) -> list[dict[str, Any]]:
        return [
            {
                "question_id": n, "num_samples": 4, "num_correct": count,
                "num_distinct_correct": count,
            }
            for n, count in enumerate(counts)
        ]  # fmt: skip

    found = turnover(rows(4, 3, 0), rows(3, 1, 0))
    assert found["questions/distinct_change"] == -1
    assert found["questions/distinct_change_error"] == pytest.approx(1 / 3**0.5)
    assert found["questions/solved_change"] == 0


def test_truncated_outputs_have_no_vote(monkeypatch: pytest.MonkeyPatch) -> None:
    group = [(WRONG, "#### 3"), (WRONG, "#### 3")]
    metrics, rows = evaluated(monkeypatch, [WRONG] * 3, [group] * 3, finished=False)
    assert metrics["lengths/truncated"] == 1.0
    assert [row["majority_correct"] for row in rows] == [0.0] * 3


def test_rows_are_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "new/test.jsonl"
    rows = [{"question_id": 1, "greedy_text": "a\u2028ß\n"}, {"question_id": 2}]
    write_rows(path, rows)
    lines = path.read_text(encoding="utf-8").split("\n")
    assert [json.loads(line) for line in lines[:-1]] == rows
    assert lines[-1] == ""
    write_rows(path, rows[:1])
    assert [found.name for found in path.parent.iterdir()] == ["test.jsonl"]
    assert path.read_text(encoding="utf-8").count("\n") == 1


@pytest.mark.slow
def test_batches_and_mesh_change_nothing(tmp_path: Path) -> None:
    source = tiny_experiment.write_questions(tmp_path)
    config = tiny_experiment.sft(source)
    tokenizer = setup.ensure_tokenizer(config, tmp_path)
    found = []
    with VerifierPool(VerifierSpec("tiny_experiment:even_length"), Limits(1, 10.0)) as verifier:
        for mesh, size in ((MeshConfig(), 5), (MeshConfig(data=2, fsdp=2, tensor=2), 16)):
            config = replace(config, mesh=mesh)
            devices = make_mesh(mesh)
            optimizer = make_optimizer(config.optimizer, config.steps)
            layout = make_layout(config.model, devices, optimizer, tokenizer.vocab_size)
            params = load_start(config, tmp_path, layout).trained
            sampling = Sampling(config.model, config.data, devices, tokenizer, verifier, 0)
            found.append(
                evaluate(
                    jax.device_put(params, layout.rollout),
                    load(source)[:11],
                    sampling,
                    replace(config.evaluation, questions_per_batch=size),
                    num_samples=4,
                )
            )
    assert found[0].rows == found[1].rows
    assert found[0].metrics == {
        name: pytest.approx(value, rel=1e-5) for name, value in found[1].metrics.items()
    }
