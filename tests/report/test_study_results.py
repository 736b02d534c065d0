"""Results of a study from runs that are made up: what is paired with what, and what is said."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_study
from synthetic_workdir import write_lines

from rft_jax.report import study as reports

RIGHT = {
    "sft_seed1": [1, 2, 3, 4], "sft_seed2": [1, 1, 3, 3],
    "rft_seed1": [2, 2, 3, 4], "rft_seed2": [2, 2, 3, 3],
    "online_rft_seed1": [4, 2, 4, 4], "online_rft_seed2": [3, 2, 4, 3],
}  # fmt: skip
"""Correct outputs of 4, of each test question."""


def collected(
    workdir: Path,
    online_seconds: float = 1.0,
    online_tokens: int = 100,
    right: Mapping[str, list[int]] = RIGHT,
) -> Any:
    study = tiny_study.study(grid={}, equal=("samples", "updates", "tokens"))
    for name, config in study.runs().items():
        online = name.startswith("online")
        tiny_study.finish(
            workdir / name, config, right[name],
            seconds=online_seconds if online else 1.0, tokens=online_tokens if online else 100,
        )  # fmt: skip
    results = reports.collect(study, workdir, {}, {}, [1, 2])
    return json.loads(json.dumps(results))  # as it is read again


def test_means_and_paired_differences(tmp_path: Path) -> None:
    results = collected(tmp_path)
    found = {name: arm["test"]["pass_at/1"] for name, arm in results["arms"].items()}
    assert found["sft"]["by_seed"] == [10 / 16, 8 / 16]
    assert found["rft"]["by_seed"] == [11 / 16, 10 / 16]
    assert found["online_rft"]["mean"] == (14 + 12) / 32
    pairs = {(one["from"], one["to"]): one["measures"] for one in results["paired"]}
    assert set(pairs) == {("sft", "rft"), ("sft", "online_rft"), ("rft", "online_rft")}
    difference = pairs["rft", "online_rft"]["pass_at/1"]
    assert difference["by_seed"] == [3 / 16, 2 / 16]
    # By question +2, 0, +1, 0 and +1, 0, +1, 0 of 4: none loses, so no draw does.
    assert difference["mean"] == 5 / 32
    assert 0 <= difference["low"] < 5 / 32 < difference["high"] <= 2 / 4
    assert pairs["sft", "rft"]["questions/distinct_correct"]["by_seed"] == [1 / 4, 2 / 4]
    arms = results["arms"]
    assert arms["online_rft"]["accepted"]["mean"] == 0.25
    assert arms["sft"]["accepted"] is None
    costs = {"samples": 128, "updates": 4, "tokens": 400, "seconds": 8, "flops": 0}
    assert arms["rft"]["costs"] == costs


def test_at_equal_samples_and_at_equal_seconds(tmp_path: Path) -> None:
    results = collected(tmp_path, online_seconds=1.0)
    # Online RFT takes 4 seconds, in which RFT has sampled its pool and is still the start.
    seconds, samples = (results["at_equal"][name] for name in ("seconds", "samples"))
    assert seconds["limit"] == 4
    assert seconds["arms"]["rft"]["by_seed"] == [7 / 16, 6 / 16]
    assert seconds["differences"]["online_rft"]["by_seed"] == [7 / 16, 6 / 16]
    assert samples["limit"] == 128
    assert samples["arms"]["rft"]["by_seed"] == [11 / 16, 10 / 16]
    slow = collected(tmp_path, online_seconds=3.0)["at_equal"]["seconds"]
    assert slow["limit"] == 8
    assert slow["arms"]["rft"]["by_seed"] == [11 / 16, 10 / 16]
    assert slow["differences"]["online_rft"]["by_seed"] == [3 / 16, 2 / 16]  # of step 2


def test_tables(tmp_path: Path) -> None:
    text = reports.tables(collected(tmp_path))
    assert "| test questions | settings | greedy % | pass@1 % | pass@4 % |" in text
    assert "| online_rft - rft | +25.0 [" in text
    assert "| seconds: 4 | online_rft | 81.2 [" in text
    assert "Means over seeds 1, 2 [95 % interval over seeds and questions]." in text
    assert "Budgets differ" not in text
    # 400 tokens and 8 seconds for 6.25 points, or 12.5 of two seeds.
    assert "| rft | sft | +9.4 [" in text
    assert "| 43 [" in text
    differing = reports.tables(collected(tmp_path, online_tokens=110))
    assert "**Budgets differ**: online_rft took 440 tokens, rft 400." in differing


def test_questions_that_the_start_never_solves(tmp_path: Path) -> None:
    """By seed: of 4 questions the start leaves 2 and 1, of which Online RFT solves 2 and 0."""
    right = RIGHT | {
        "sft_seed1": [0, 0, 3, 4], "sft_seed2": [1, 1, 3, 0],
        "online_rft_seed1": [1, 4, 0, 4], "online_rft_seed2": [1, 4, 3, 0],
    }  # fmt: skip
    results = collected(tmp_path, right=right)
    found = results["turnover"]["online_rft"]["sft"]
    assert found["samples"] == 4
    by_seed = {name: found[name]["by_seed"] for name in ("unsolved", "gained", "lost")}
    assert by_seed == {"unsolved": [2 / 4, 1 / 4], "gained": [2 / 4, 0], "lost": [1 / 4, 0]}
    text = reports.tables(results)
    assert "| arm | start | unsolved by the start in 4 % | solved now % |" in text
    assert "| online_rft | sft | 37.5 [" in text


def test_a_start_that_is_tested_on_less(tmp_path: Path) -> None:
    """Without the further set, and greedily: its rows say nothing of what is in reach."""
    study = tiny_study.study(grid={})
    sets = {"more_test": ("b=jsonl:b",)}
    arms = {name: replace(arm, data=replace(arm.data, **sets)) for name, arm in study.arms.items()}
    start = study.starts["sft"]
    greedy = replace(start.evaluation, test_samples_per_question=0)
    study = replace(study, arms=arms, starts={"sft": replace(start, evaluation=greedy)})
    for name, config in study.runs().items():
        sampled = not name.startswith("sft")
        tiny_study.finish(tmp_path / name, config, RIGHT[name], samples=sampled)
        if not sampled:
            file = tmp_path / name / "evaluation/test.jsonl"
            rows = [json.loads(line) for line in file.read_text().splitlines()]
            write_lines(file, [{k: v for k, v in row.items() if "num_" not in k} for row in rows])
    results = reports.collect(study, tmp_path, {}, {}, [1, 2])
    assert results["turnover"] == {"rft": {}, "online_rft": {}}
    assert "b/greedy/accuracy" in results["arms"]["rft"]["test"]
    assert "b/greedy/accuracy" not in results["arms"]["sft"]["test"]
    assert "| rft - sft | +" in reports.tables(results)


def test_of_several_tests_the_last_counts(tmp_path: Path) -> None:
    lines = [
        {"step": step, "kind": "test", "seconds/elapsed": 1.0, "greedy/accuracy": step / 8}
        for step in (8, 4)
    ]
    write_lines(tmp_path / "x/metrics.jsonl", lines)
    assert reports.test_line(tmp_path, "x")["greedy/accuracy"] == 0.5


@pytest.mark.slow
def test_further_sets_have_columns_and_curves(tmp_path: Path) -> None:
    study = tiny_study.study(grid={})
    sets = {"more_validation": ("b=jsonl:b",), "more_test": ("b=jsonl:b",)}
    arms = {name: replace(arm, data=replace(arm.data, **sets)) for name, arm in study.arms.items()}
    starts = {"sft": replace(study.starts["sft"], data=replace(study.starts["sft"].data, **sets))}
    study = replace(study, arms=arms, starts=starts)
    for name, config in study.runs().items():
        tiny_study.finish(tmp_path / name, config, RIGHT[name])
    results = reports.collect(study, tmp_path, {}, {}, [1, 2])
    found = results["arms"]["rft"]["test"]
    assert found["b/pass_at/1"] == found["pass_at/1"]
    curves = results["arms"]["rft"]["curves"][0]
    assert curves["b/pass_at/1"] == curves["pass_at/1"]
    text = reports.tables(results)
    assert "| entropy | b: greedy % | b: pass@1 % |" in text
    assert reports.figure(results).startswith(b"\x89PNG")


@pytest.mark.slow
def test_figure(tmp_path: Path) -> None:
    results = collected(tmp_path)
    assert reports.figure(results).startswith(b"\x89PNG")
    results["arms"]["rft"]["curves"][0]["seconds"] = [None, None, None]
    del results["arms"]["online_rft"]["test"]["pass_at/1"]["low"]
    assert reports.figure(results).startswith(b"\x89PNG")


def test_arms_without_validation_or_samples(tmp_path: Path) -> None:
    study = tiny_study.study(grid={}, score="greedy/accuracy", starts={})
    silent = replace(study.arms["rft"].evaluation, every_steps=0)
    arms = {name: replace(arm, evaluation=silent) for name, arm in study.arms.items()}
    study = replace(study, arms=arms)
    for name, config in study.runs().items():
        tiny_study.finish(tmp_path / name, config, RIGHT[name], samples=False)
    results = reports.collect(study, tmp_path, {}, {}, [1, 2])
    assert results["at_equal"] == {"samples": {}, "seconds": {}}
    assert "| test questions | settings | greedy % | entropy |" in reports.tables(results)
    assert reports.figure(results).startswith(b"\x89PNG")


def test_the_committed_results_are_drawn() -> None:
    path = Path(__file__).parents[2] / "experiments" / "arithmetic_study.json"
    results = json.loads(path.read_text(encoding="utf-8"))
    assert "| online_rft - rft | -1.6 [-3.2, -0.0] |" in reports.tables(results)
    assert reports.figure(results).startswith(b"\x89PNG")


def test_scores_are_means_of_the_last_evaluations(tmp_path: Path) -> None:
    config = tiny_study.study().arms["online_rft"]
    tiny_study.finish(tmp_path / "run", config, [1, 2, 3, 4])
    for last, expected in ((1, 10 / 16), (2, 10 / 16), (3, (6 + 10 + 10) / 48)):
        found = reports.validation_score(tmp_path, "run", "pass_at/1", last)
        assert found == pytest.approx(expected)
