"""Runs in which an alarm is raised: what is warned of, what ends, and with which parameters."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tiny_experiment
from killing import assert_same, dies_in, newest

import rft_jax
from rft_jax.checkpoint import integrity as health
from rft_jax.checkpoint import policy as policies
from rft_jax.config import AlarmsConfig, CheckpointConfig, Config
from rft_jax.observe import log as metrics
from rft_jax.runs import evaluating
from rft_jax.runs import loop as loops
from rft_jax.runs.run import RunResult, run

pytestmark = pytest.mark.slow

ACCURACY = (0.1, 0.2, 0.6, 0.3, 0.4, 0.7, 0.5, 0.5, 0.5)
"""After each step. The third is not surpassed by two evaluations, nor is the sixth."""
STEPS = len(ACCURACY) - 1
NOW = [0]
"""The step that is evaluated."""

Evaluated = list[tuple[int, list[np.ndarray]]]
"""The parameters of each evaluation, and how many questions it had."""


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> Evaluated:
    """The accuracy is that of the table, and what is evaluated is kept."""
    seen = Evaluated()
    step, evaluate = loops.step, evaluating.evaluate

    def counted(*given: Any) -> Any:
        state, made = step(*given)
        NOW[0] = state.step
        return state, made

    def scripted(params: Any, questions: Any, *given: Any, **named: Any) -> Any:
        found, rows = evaluate(params, questions, *given, **named)
        seen.append((len(questions), [np.array(leaf) for leaf in jax.tree.leaves(params)]))
        return found | {"greedy/accuracy": ACCURACY[NOW[0]]}, rows

    monkeypatch.setattr(loops, "step", counted)
    NOW[0] = 0
    monkeypatch.setattr(evaluating, "evaluate", scripted)
    return seen


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Config:
    source = tiny_experiment.write_questions(tmp_path_factory.mktemp("questions"))
    config = tiny_experiment.sft(source)
    evaluation = replace(config.evaluation, every_steps=1, samples_per_question=0)
    schedule = replace(config.optimizer, schedule="constant", warmup_steps=0)
    return replace(
        config,
        evaluation=evaluation,
        optimizer=schedule,
        checkpoint=CheckpointConfig(every_steps=1, keep=1, keep_best=1),
        alarms=AlarmsConfig(patience=2),
    )


def under(base: Config, action: Any) -> Config:
    return replace(base, alarms=replace(base.alarms, action=action))


def test_a_run_is_warned_of_and_resumes_with_the_same_bits(
    base: Config, tmp_path: Path, evaluated: Evaluated, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "rft_jax.runs.health")
    whole, again = tmp_path / "whole", tmp_path / "again"
    rft_jax.run({"x": base}, whole)
    first, second = [said for said in caplog.messages if ": alarm " in said]
    assert first.startswith(
        "x: alarm no_improvement since step 4: greedy/accuracy is 0.4, against 0.6; remedies: "
    )
    assert "no_improvement since step 7" in second
    lines = metrics.read(whole / "x/metrics.jsonl")
    raised = [(line["kind"], line["step"]) for line in lines if "alarms/no_improvement" in line]
    assert raised == [
        ("validation", 4), ("train", 5), ("validation", 7), ("train", 8), ("validation", 8),
        ("test", 8),
    ]  # fmt: skip
    assert "alarm" not in json.loads((whole / "x/finished.json").read_text())

    caplog.clear()
    NOW[0] = 0
    with pytest.MonkeyPatch.context() as patch:
        dies_in(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            rft_jax.run({"x": base}, again)
    rft_jax.run({"x": base}, again)
    assert_same(whole, again, STEPS, ["x"])
    # Once more is not said what was said before the run died.
    assert [said for said in caplog.messages if ": alarm " in said] == [first, second]


@pytest.mark.parametrize(("action", "final"), [("stop", 4), ("best", 2)])
def test_an_alarm_ends_a_run(
    base: Config, tmp_path: Path, evaluated: Evaluated, action: str, final: int,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level(logging.INFO, "rft_jax")
    config, workdir = under(base, action), tmp_path / "w"
    assert rft_jax.run({"x": config}, workdir)["x"] == RunResult(4, True)
    end = "x: ends at step 4 of 8, by alarm no_improvement; its final checkpoint is that of step "
    assert f"{end}{final}" in caplog.messages
    *validation, (questions, tested) = evaluated
    assert questions == 6
    for ours, theirs in zip(tested, validation[final][1], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert metrics.read(workdir / "x/metrics.jsonl")[-1]["step"] == final
    # What starts from it, or is asked for it, gets these parameters.
    assert policies.find(str(workdir / "x")).step == final
    assert policies.start_of("run:x", workdir) == (workdir / "x", final)

    # It does not continue, unless what ended it is changed.
    caplog.clear()
    assert rft_jax.run({"x": config}, workdir)["x"] == RunResult(0, True)
    assert "x: already finished, by alarm no_improvement" in caplog.messages
    assert rft_jax.run({"x": replace(config, steps=STEPS + 4)}, workdir)["x"] == RunResult(0, True)
    assert len(evaluated) == len(validation) + 1
    assert run("x", {"x": base}, workdir) == RunResult(STEPS - 4, True)
    rft_jax.run({"x": base}, tmp_path / "whole")
    ours, theirs = newest(workdir / "x"), newest(tmp_path / "whole/x")
    assert ours[0] == theirs[0] == STEPS
    assert [a.tobytes() for a in ours[1]] == [a.tobytes() for a in theirs[1]]
    assert policies.find(str(workdir / "x")).step == STEPS


def test_a_run_that_died_at_its_alarm_ends_there(
    base: Config, tmp_path: Path, evaluated: Evaluated
) -> None:
    """Of what ended it nothing was written yet, but the lines of its metrics."""
    config = under(base, "best")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loops, "_finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run("x", {"x": config}, tmp_path)
    assert not (tmp_path / "x/finished.json").exists()
    assert run("x", {"x": config}, tmp_path) == RunResult(0, True)
    assert policies.find(str(tmp_path / "x")).step == 2
    assert sum(line["kind"] == "test" for line in metrics.read(tmp_path / "x/metrics.jsonl")) == 1


def test_the_best_is_judged_by_the_measure(
    base: Config, tmp_path: Path, evaluated: Evaluated
) -> None:
    sampled = replace(base.evaluation, samples_per_question=2)
    kept = replace(base.checkpoint, measure="greedy/accuracy+pass_at/2", keep=STEPS)
    config = replace(base, evaluation=sampled, checkpoint=kept)
    assert run("x", {"x": config}, tmp_path) == RunResult(STEPS, True)
    lines = metrics.read(tmp_path / "x/metrics.jsonl")
    expected = {
        line["step"]: (line["greedy/accuracy"] + line["pass_at/2"]) / 2
        for line in lines
        if line["kind"] == "validation" and line["step"]
    }
    folder = tmp_path / "x/checkpoints"
    assert health.accuracies(folder) == pytest.approx(expected)
    assert health.accuracies(folder, "greedy/accuracy") == {}
    record = json.loads((folder / f"{STEPS}/{health.RECORD}").read_text())
    assert record["measure"] == "greedy/accuracy+pass_at/2"
