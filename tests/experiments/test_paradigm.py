"""experiments/paradigm.py: the study in a short form, and its arithmetic."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_experiment

from rft_jax.config import EvaluationConfig, VerificationConfig
from rft_jax.runs import loop
from rft_jax.training.methods import METHODS
from rft_jax.types import Verdict


@pytest.fixture
def paradigm(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "experiments"))
    import paradigm

    yield paradigm
    for name in ("paradigm", "arithmetic", "arithmetic_steps"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", METHODS)
def test_every_row_has_an_arm_of_equal_samples_and_updates(paradigm: Any, name: str) -> None:
    plan = paradigm.Plan()
    config = paradigm.arm(plan, name, 1e-3, 5, test=False)
    assert (config.steps, config.seed, config.init_from) == (plan.steps, 5, "run:start")
    assert config.optimizer.learning_rate == 1e-3
    assert config.model == plan.start.model
    if config.rollout is not None:
        sampled = config.rollout.questions_per_step * config.rollout.samples_per_question
        assert sampled == plan.questions * plan.group
    assert config.pool is None or config.pool.rollout_steps == plan.steps


def test_rows_of_one_update_are_run_once(paradigm: Any) -> None:
    assert {name: paradigm.twin(name) for name in METHODS if paradigm.twin(name) != name} == {
        "gspo": "grpo"
    }


def test_steps_are_lines(paradigm: Any) -> None:
    from arithmetic_steps import by_line

    found = by_line("q", "15", "18-3=15\n15+1=17\n#### 15")
    assert (found.verdict, found.steps) == (Verdict.CORRECT, [(8, 1.0), (16, 0.0), (23, 1.0)])
    found = by_line("q", "15", "18-3=15\nso 16\n#### 16")
    assert (found.verdict, found.steps) == (Verdict.INCORRECT, [(8, 1.0), (14, 0.0), (21, 0.0)])


@pytest.mark.slow
def test_a_short_study(paradigm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows, two steps, one seed; what is finished is not repeated."""
    source = tiny_experiment.write_questions(tmp_path)
    start = tiny_experiment.sft(
        source,
        verification=VerificationConfig(verifier="tiny_experiment:even_length", canary="off"),
    )
    evaluation = EvaluationConfig(test_samples_per_question=16, questions_per_batch=8)
    plan = paradigm.Plan(
        rows=("online_rft", "topr"), rates={"low": 1e-4, "high": 1e-3}, seeds=(1,),
        start=replace(start, evaluation=evaluation),
        train=source, steps=2, warmup=0, every=1, questions=8, group=2,
    )  # fmt: skip
    results = paradigm.study(tmp_path / "work", plan)
    assert set(results["chosen"]) == {"online_rft", "topr"}
    for row, rate in results["chosen"].items():
        scores = results["validation_pass_at_1"][row]
        assert scores[rate] == max(scores.values())
    same = results["rows"]["online_rft"]["minus online_rft"]["pass_at/1"]
    assert (same["mean"], same["low"], same["high"]) == (0, 0, 0)

    monkeypatch.setattr(loop, "step", None)
    again = paradigm.study(tmp_path / "work", plan)
    assert json.dumps(again["rows"]) == json.dumps(results["rows"])

    paradigm.draw(results, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes()[:4] == b"\x89PNG"
    lines = paradigm.table(results).splitlines()
    assert lines[2].startswith("| the start |")
    assert len(lines) == 2 + 1 + len(plan.rows)
    assert len({line.count("|") for line in lines}) == 1
