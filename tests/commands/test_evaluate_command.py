"""`rft-jax evaluate`: the numbers of a run's own evaluation, and those that its outputs imply."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import checkpoints
import pytest
import tiny_experiment
from checkpoints import refusal

from rft_jax.commands import evaluate as evaluating_command
from rft_jax.commands.main import main
from rft_jax.observe import log as metrics
from rft_jax.observe.statistics import wilson_interval
from rft_jax.rollout import engine as rollouts
from rft_jax.runs import run as loop
from rft_jax.runs.run import RunResult


class Found(NamedTuple):
    """A run that nobody trained, a published model, and the source of their questions."""

    run: str
    published: str
    source: str


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    folder = tmp_path_factory.mktemp("evaluating")
    source = tiny_experiment.write_questions(folder)
    checkpoints.write_run(folder / "work", "sft", checkpoints.sft(source))
    published = checkpoints.write_published(folder / "qwen")
    return Found(str(folder / "work" / "sft"), str(published), source)


@pytest.fixture(autouse=True)
def _command_line() -> Iterator[None]:
    with checkpoints.command_line():
        yield


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def evaluated(target: str, source: str, out: Path, *options: str) -> dict[str, Any]:
    assert main(["evaluate", target, "--questions", source, "--out", str(out), *options]) == 0
    return json.loads((out / "metrics.json").read_text())


@pytest.mark.slow
def test_the_numbers_are_those_that_the_run_logged(tmp_path: Path) -> None:
    source = tiny_experiment.write_questions(tmp_path)
    base = tiny_experiment.sft(source)
    config = replace(
        base,
        seed=5,
        evaluation=replace(base.evaluation, every_steps=0, temperature=0.8),
    )
    assert loop.run("sft", {"sft": config}, tmp_path / "work") == RunResult(8, True)
    out = tmp_path / "out"
    content = evaluated(str(tmp_path / "work"), f"{source}[:6]", out)
    logged = metrics.read(tmp_path / "work/sft/metrics.jsonl")[-1]
    found = content["metrics"]
    named = [name for name in logged if name in found]
    assert len(named) == 11
    for name in named:
        assert found[name] == pytest.approx(logged[name], rel=1e-5), name
    own = rows(tmp_path / "work/sft/evaluation/test.jsonl")
    assert [{key: row[key] for key in own[0]} for row in rows(out / "questions.jsonl")] == own
    settings = content["settings"]
    assert (settings["verifier"], settings["seed"]) == ("tiny_experiment:even_length", 5)
    assert (settings["samples_per_question"], settings["temperature"]) == (4, 0.8)


@pytest.mark.slow
def test_rates_follow_from_the_outputs(
    found: Found, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "out"
    content = evaluated(found.run, f"{found.source}[2:12]", out, "--samples_per_question", "3")
    questions, outputs = rows(out / "questions.jsonl"), rows(out / "outputs.jsonl")
    assert {path.name for path in out.iterdir()} == {
        "metrics.json", "questions.jsonl", "outputs.jsonl",
    }  # fmt: skip
    assert [row["question_id"] for row in questions] == list(range(2, 12))
    assert [(row["greedy"], row["question_id"], row["sample_index"]) for row in outputs] == [
        *((True, question, 0) for question in range(2, 12)),
        *((False, question, sample) for question in range(2, 12) for sample in range(3)),
    ]
    for row in outputs:
        right = row["finished"] and len(row["output"]) % 2 == 0
        assert row["verdict"] == ("correct" if right else "incorrect")
        assert row["reason"] == ("truncated" if not row["finished"] else row["reason"])
    greedy = [row["verdict"] == "correct" for row in outputs[:10]]
    assert [row["greedy_correct"] for row in questions] == greedy
    groups = [outputs[10 + 3 * i : 13 + 3 * i] for i in range(10)]
    shares = [sum(row["verdict"] == "correct" for row in group) / 3 for group in groups]
    measured = content["metrics"]
    assert measured["greedy/accuracy"] == pytest.approx(sum(greedy) / 10)
    assert measured["pass_at/1"] == pytest.approx(sum(shares) / 10)
    assert 0 < measured["pass_at/1"] < 1
    assert measured["pass_at/3"] == sum(share > 0 for share in shares) / 10
    # The function does not say which answer it read.
    assert not [name for name in measured if name.startswith("maj_at/")]
    assert "majority_correct" not in questions[0]
    assert measured["lengths/mean"] == sum(row["num_tokens"] for row in outputs[10:]) / 30
    assert measured["lengths/truncated"] == sum(not row["finished"] for row in outputs[10:]) / 30
    assert measured["sampled/undecided"] == 0
    assert content["intervals_95"]["greedy/accuracy"] == list(wilson_interval(sum(greedy), 10))
    for name, (low, high) in content["intervals_95"].items():
        assert 0 <= low <= measured[name] <= high <= 1
    printed = capsys.readouterr().out
    assert f"| pass@3 | {100 * measured['pass_at/3']:.1f} | " in printed
    assert "undecided: 0.0%" in printed
    assert printed.endswith(f"results: {out}\n")
    assert content["checkpoint"] == f"{found.run}@8"
    assert content["step"] == 8
    assert (content["questions"], content["num_questions"]) == (f"{found.source}[2:12]", 10)
    assert {"versions", "git_commit", "device"} <= set(content)
    # Sampled with the same random numbers as `sample` has.
    args = [
        "--questions",
        f"{found.source}[2:12]",
        "--out",
        str(tmp_path / "s"),
        "--samples_per_question",
        "3",
    ]
    assert main(["sample", found.run, *args]) == 0
    texts = [row["output"] for row in rows(tmp_path / "s")]
    assert texts == [row["output"] for row in outputs[10:]]


@pytest.mark.slow
def test_blocks_of_questions_change_nothing(
    found: Found, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = evaluated(found.run, f"{found.source}[:11]", tmp_path / "whole")
    monkeypatch.setattr(rollouts, "BATCHES_AT_ONCE", 1)
    parts = evaluated(found.run, f"{found.source}[:11]", tmp_path / "parts")
    for name, value in whole["metrics"].items():
        assert parts["metrics"][name] == pytest.approx(value, rel=1e-5), name
    assert rows(tmp_path / "parts/questions.jsonl") == rows(tmp_path / "whole/questions.jsonl")


@pytest.mark.slow
def test_a_published_model_with_options_of_its_own(found: Found, tmp_path: Path) -> None:
    content = evaluated(
        found.published, f"{found.source}[:3]", tmp_path / "out", "--max_completion_tokens", "4",
        "--verifier", "tiny_experiment:broken", "--workers", "1",
    )  # fmt: skip
    assert content["settings"] | {
        "samples_per_question": 0, "temperature": None, "prompt_format": "chat",
        "max_completion_tokens": 4,
        "verifier": "tiny_experiment:broken", "compute_dtype": "float32", "workers": 1,
        "timeout_seconds": 10.0,
    } == content["settings"]  # fmt: skip
    assert [row["greedy"] for row in rows(tmp_path / "out" / "outputs.jsonl")] == [True] * 3
    decided = [row for row in rows(tmp_path / "out" / "outputs.jsonl") if row["finished"]]
    assert all(row["verdict"] == "undecided" for row in decided)
    assert math.isclose(content["metrics"]["greedy/undecided"], len(decided) / 3)


def test_a_refusal_comes_before_any_work(
    found: Found,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def put(*_: Any) -> None:
        raise AssertionError("parameters were loaded")

    monkeypatch.setattr(evaluating_command, "to_sample_from", put)
    out = tmp_path / "out"
    asked = ["--questions", found.source, "--out", str(out)]
    for target, args, said in (
        (found.published, ["--temperature", "1"],
         "temperature does nothing without samples: give samples_per_question or leave it "
         "out."),
        (found.run, ["--tolerance", "0.1"],
         "tolerance does nothing beside the rule tiny_experiment:even_length, which compares by "
         "itself: leave it out."),
        (found.published, ["--verifier", "no_such:function"],
         "verification.verifier is 'no_such:function': module no_such cannot be imported"),
    ):  # fmt: skip
        assert said in refusal(capsys, "evaluate", target, *asked, *args)
    assert not list(out.iterdir())
    (out / "questions.jsonl").write_text("kept")
    assert refusal(capsys, "evaluate", found.run, *asked) == (
        f"rft-jax: error: --out {out} holds questions.jsonl, and nothing is overwritten: name "
        "another folder."
    )
    assert (out / "questions.jsonl").read_text() == "kept"
    file = str(out / "questions.jsonl")
    assert f"--out {file} is no folder: name a new one." in refusal(
        capsys, "evaluate", found.run, "--questions", found.source, "--out", file
    )
