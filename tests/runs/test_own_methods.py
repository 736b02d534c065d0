"""Methods, and a checker of steps, of an experiment file, carried out in one process and in two."""

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

RUNS = ("signed", "centred", "process")
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


def formula(run: str, samples: list[Sample]) -> list[np.ndarray]:
    """GC of each output, or of each of its tokens, worked out one by one."""
    if run == "process":
        return by_steps(samples)
    if run == "signed":
        return [np.array(1.0 if one.accepted else -1.0) for one in samples]
    groups = defaultdict(list)
    for one in samples:
        groups[one.question_id].append(float(one.accepted))
    return [np.array(one.accepted - np.mean(groups[one.question_id])) for one in samples]


def by_steps(samples: list[Sample]) -> list[np.ndarray]:
    groups = defaultdict(list)
    steps = [one.steps or ((one.num_tokens - 1, float(one.accepted)),) for one in samples]
    for one, of_one in zip(samples, steps, strict=True):
        groups[one.question_id] += [np.float32(reward) for _, reward in of_one]
    found = []
    for one, of_one in zip(samples, steps, strict=True):
        rewards = np.array(groups[one.question_id], float)
        scale = np.std(rewards, ddof=1) + 1e-6
        found.append(np.zeros(one.num_tokens))
        for end, reward in of_one if len({*rewards}) > 1 else ():
            found[-1][: end + 1] += (reward - rewards.mean()) / scale
    return found


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
            log_probs = [np.array(one.log_probs) for one in samples]
            value = np.mean(
                [np.mean(v * of_one) for v, of_one in zip(values, log_probs, strict=True)]
            )
            assert line["objective/value"] == pytest.approx(value, abs=1e-4)
            assert line["funnel/correct"] == sum(one.accepted for one in samples) > 0
            assert line["funnel/kept"] == sum(bool(value.any()) for value in values)
            assert line["update/sequences"] == line["funnel/kept"]
            negatives += sum(bool((value < 0).any()) for value in values)
        assert negatives > 0


def test_the_log_has_the_steps_by_tokens(workdirs: dict[int, Path]) -> None:
    """Of what the checker has judged: a cut output, and one of one character, has none."""
    counts = set()
    for workdir in workdirs.values():
        for one in [one for of_step in steps_of(workdir / "process").values() for one in of_step]:
            counts.add(len(one.steps))
            assert bool(one.steps) == (one.finished and len(one.text) > 1)
            assert all(0 <= end < one.num_tokens for end, _ in one.steps)
            at_end = len(one.text) % 2 == 0 and one.steps
            assert not at_end or one.steps[-1][0] == one.num_tokens - 1  # EOS is the last step's
    assert {0, 1, 2} <= counts


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
