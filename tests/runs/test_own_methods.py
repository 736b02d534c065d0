"""Two methods that an experiment file adds, carried out in one process and in two."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import tiny_experiment
from jobs import Study, of_all
from killing import newest

from rft_jax.checkpoint.provenance import load_config
from rft_jax.commands import main as cli
from rft_jax.observe import log as metrics
from rft_jax.rollout import log as rollout_log
from rft_jax.types import Sample, Verdict

pytestmark = pytest.mark.slow

RUNS = ("signed", "centred")
SCORED = ("online_dpo", "ppo", "rloo")
"""Rows of the table for which outputs are scored under pi_ref or valued, in all processes
together."""


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The workdir of a job of 1 process with 4 devices, and of 2 with 2 each."""
    folder = tmp_path_factory.mktemp("own")
    study = Study(
        folder, of_all("evaluation.every_steps=0", "data.test=", runs=("sft", *RUNS, *SCORED))
    )
    text = study.file.read_text(encoding="utf-8").replace("tiny_experiment", "own_methods")
    study.file.write_text(text, encoding="utf-8")
    made = {}
    for processes in (1, 2):
        made[processes] = folder / f"of-{processes}"
        with study.start(made[processes], processes, 4 // processes) as job:
            job.finish()
    return made


def steps_of(folder: Path) -> dict[int, list[Sample]]:
    """The decided outputs of each step."""
    found: dict[int, list[Sample]] = defaultdict(list)
    for _, sample in rollout_log.read_folders([str(folder / "rollouts")]):
        if sample.verdict is not Verdict.UNDECIDED:
            found[sample.step].append(sample)
    return found


def formula(run: str, samples: list[Sample]) -> list[float]:
    """GC of each output, worked out one by one."""
    if run == "signed":
        return [1.0 if one.accepted else -1.0 for one in samples]
    groups = defaultdict(list)
    for one in samples:
        groups[one.question_id].append(float(one.accepted))
    return [float(one.accepted) - float(np.mean(groups[one.question_id])) for one in samples]


@pytest.mark.parametrize("run", RUNS)
def test_the_objective_and_the_funnel_are_those_of_the_outputs(
    workdirs: dict[int, Path], run: str
) -> None:
    """The objective's value before an update is the weighted sum of the sampled log-probs."""
    for workdir in workdirs.values():
        lines = [
            line
            for line in metrics.read(workdir / run / "metrics.jsonl")
            if line["kind"] == "train"
        ]
        negatives = 0
        for line, (_, samples) in zip(lines, sorted(steps_of(workdir / run).items()), strict=True):
            values = formula(run, samples)
            means = [sum(one.log_probs) / one.num_tokens for one in samples]
            value = sum(v * m for v, m in zip(values, means, strict=True)) / len(samples)
            assert line["objective/value"] == pytest.approx(value, abs=1e-4)
            assert line["funnel/correct"] == sum(one.accepted for one in samples) > 0
            assert line["funnel/kept"] == sum(value != 0 for value in values)
            assert line["update/sequences"] == line["funnel/kept"]
            negatives += sum(value < 0 for value in values)
        assert negatives > 0


@pytest.mark.parametrize("run", RUNS + SCORED)
def test_two_processes_compute_the_same_bits(workdirs: dict[int, Path], run: str) -> None:
    one, two = (newest(workdirs[count] / run) for count in (1, 2))
    assert one[0] == two[0] == 4
    assert [a.tobytes() for a in one[1]] == [a.tobytes() for a in two[1]]
    logs = [metrics.read(workdirs[count] / run / "metrics.jsonl") for count in (1, 2)]
    assert tiny_experiment.lasting(logs[0]) == tiny_experiment.lasting(logs[1])


def test_report_convert_and_resume(
    workdirs: dict[int, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the module of the method is not at hand, the run is still read."""
    workdir = workdirs[1]
    assert cli.main(["report", str(workdir)]) == 0
    assert all(run in capsys.readouterr().out or run for run in RUNS)
    page = (workdir / "report.html").read_text(encoding="utf-8")
    assert all(run in page for run in RUNS)
    saved = json.loads((workdir / "centred" / "config.json").read_text(encoding="utf-8"))
    assert saved["config"]["method"]["name"] == "own_methods:centred"
    assert load_config(workdir / "signed").row.name == "plus_minus_one"
    assert cli.main(["convert", str(workdir / "centred"), str(tmp_path / "out")]) == 0
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "reward minus the group's mean" in card
