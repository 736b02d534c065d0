"""`import rft_jax as rj`: what it gives, what docs/api.md says of it, and what it loads."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import checkpoints
import pytest
import tiny
import tiny_experiment

import rft_jax as rj
from rft_jax import config

DOCS = (Path(rj.__file__).parents[1] / "docs" / "api.md").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    with checkpoints.command_line():
        yield


def test_every_name_is_there() -> None:
    assert set(config.__all__) < set(rj.__all__) < set(dir(rj))
    for name in rj.__all__:
        assert getattr(rj, name) is not None
    for name in config.__all__:
        assert getattr(rj, name) is getattr(config, name)
    with pytest.raises(AttributeError, match="no attribute 'runn'"):
        _ = rj.runn  # type: ignore[attr-defined]


def test_the_type_checker_sees_every_name(tmp_path: Path) -> None:
    source = Path(rj.__file__).read_text(encoding="utf-8")
    seen = set(re.findall(r"import (?:\w+ as )?(\w+)$", source, flags=re.MULTILINE))
    assert {*seen, *config.__all__} >= set(rj.__all__)


def test_import_loads_nothing_and_takes_no_time() -> None:
    script = (
        "import sys, time\nbefore = set(sys.modules)\nstart = time.perf_counter()\n"
        "import rft_jax as rj\nseconds = time.perf_counter() - start\n"
        "slow = {'jax', 'numpy', 'tyro', 'flax', 'optax', 'orbax'} & set(sys.modules)\n"
        "assert not slow, slow\nassert seconds < 0.1, seconds\n"
        "rj.run, rj.verify, rj.open_policy, rj.read_metrics, rj.load_experiment, rj.Config\n"
        "assert 'jax' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.slow
def test_the_documentation_does_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    tiny_experiment.write_experiment(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", DOCS, flags=re.DOTALL)
    assert len(blocks) == 6
    names: dict[str, Any] = {}
    for block in blocks:
        assert len(block.strip().splitlines()) <= 4, "about three lines show it"
        exec(block, names)
    assert {name: result.finished for name, result in names["results"].items()} == {
        "sft": True, "online_rft": True,
    }  # fmt: skip
    rows = names["rows"]
    assert {row["run"] for row in rows} == {"sft", "online_rft"}
    assert [row["step"] for row in rows if row["kind"] == "train"] == [1, 2, 3, 4] * 2
    assert [row["step"] for row in rj.read_metrics("runs/study/sft") if row["kind"] == "train"] == [
        1, 2, 3, 4,
    ]  # fmt: skip
    assert (tmp_path / "runs" / "study" / "report.html").is_file()
    outputs = names["outputs"]
    assert [(row["question"], row["sample_index"]) for row in outputs] == [
        ("1+2?", 0), ("1+2?", 1), ("3+3?", 0), ("3+3?", 1),
    ]  # fmt: skip
    for row in outputs:
        assert len(row["tokens"]) == len(row["log_probs"]) == row["num_tokens"] <= 6
        assert sum(row["log_probs"]) == pytest.approx(row["log_prob"])
    assert names["evaluated"].estimates["greedy/accuracy"].questions == 8
    assert str(names["verdicts"][0].verdict) == "correct"
    said = capsys.readouterr().out
    assert "{'sft': (4, True), 'online_rft': (4, True)}" in said
    assert "| pass@4 |" in said

    # The same policy, asked in other ways.
    policy, experiment = names["policy"], names["experiment"]
    asked = policy.sample([{"question": "1+2?"}, rj.Question(1, "3+3?", "6")], 2, **SHORT)
    assert asked == [
        row | {"reference": ref} for row, ref in zip(outputs, ["", "", "6", "6"], strict=True)
    ]
    assert len(policy.sample("jsonl:questions.jsonl[:3]", greedy=True)) == 3
    for call, message in (
        (lambda: policy.sample([]), "questions are empty"),
        (lambda: policy.sample([{"q": "a"}]), "questions[0] is {'q': 'a'}: a text"),
        (lambda: policy.sample(["a"], sed=3), "sed is no option; did you mean seed?"),
        (lambda: policy.evaluate(["1+1?"]), "questions[0] has no answer"),
        (lambda: policy.evaluate("jsonl:questions.jsonl", verifier="bxed"), "which is no rule"),
        (lambda: rj.run(experiment, "runs/study", only=["rtf"]), "did you mean rft?"),
        (lambda: rj.run("study.py", "runs/study"), "holds experiment a mapping, not study.py"),
        (lambda: rj.read_metrics("runs"), "runs has no metrics.jsonl"),
    ):
        with pytest.raises(rj.UserError, match=re.escape(message)):
            call()
    # What is finished is not run again.
    again = rj.run(experiment, "runs/study", ["sft"], names["options"])
    assert again["sft"].steps_done == 0


SHORT = {"max_completion_tokens": 6}


def test_run_refuses_before_any_work(tmp_path: Path) -> None:
    for experiment, options, message in (
        ({}, {}, "returned no run"),
        (tiny.experiment(), {"sft.stepz": 1}, "unknown option sft.stepz; did you mean sft.steps?"),
        (tiny.experiment(), {"sft.steps": "1"}, "sft: steps is '1': a value of type int"),
        (tmp_path / "none.py", {}, "none.py does not exist"),
    ):
        with pytest.raises(rj.UserError, match=re.escape(message)):
            rj.run(experiment, tmp_path / "w", options=options)
    assert not os.path.exists(tmp_path / "w")


@pytest.mark.slow
def test_verify() -> None:
    rows = [
        {"reference": "18", "output": "#### 18"},
        {"reference": "18", "output": "#### 18.001"},
        {"reference": "18", "output": "none", "more": 3},
    ]
    found = rj.verify(rows, workers=1, tolerance=0.01)
    assert [str(one.verdict) for one in found] == ["correct", "correct", "incorrect"]
    assert found[2].reason == "no answer"
    exact = rj.verify(rows, workers=1, comparison="exact", tolerance=Fraction(0))
    assert [str(one.verdict) for one in exact] == ["correct", "incorrect", "incorrect"]
    assert rj.verify([], workers=1) == []
    with pytest.raises(rj.UserError, match=re.escape("rows[0]: field 'output' must be text")):
        rj.verify([{"reference": "1", "output": 3}])
    with pytest.raises(rj.UserError, match="did you mean boxed"):
        rj.verify(rows, verifier="bxed")
