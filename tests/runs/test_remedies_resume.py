"""A run that replays and whose bonus and temperature follow the entropy: stopped between two
updates of a rollout it ends with the same bits, and nothing compiles again when they move."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import tiny_experiment
from test_run import equal, final_state, lines

from rft_jax.config import Config, ReplayConfig
from rft_jax.errors import ConfigError
from rft_jax.runs import loop as steps_of
from rft_jax.runs import run as loop
from rft_jax.runs.run import RunResult
from rft_jax.training.control import Control

pytestmark = pytest.mark.slow

TARGET = 100.0
"""Of an entropy that no policy here has: both rise after every rollout."""


def settings(folder: Path) -> tuple[Config, Config]:
    """A short SFT run, and a run of two updates a rollout with everything on."""
    questions = tiny_experiment.write_questions(folder)
    other = folder / "other.jsonl"
    shutil.copy(folder / "questions.jsonl", other)
    base = tiny_experiment.sft(questions)
    short: dict[str, Any] = {
        "evaluation": replace(base.evaluation, every_steps=0),
        "data": replace(base.data, test=""),
    }
    online = tiny_experiment.online_rft(questions, steps=6, **short)
    assert online.rollout is not None
    run = replace(
        online,
        method="raft++",
        rollout=replace(online.rollout, temperature_target=TARGET, temperature_step=0.125),
        objective=replace(
            online.objective, denominator=None, entropy_coefficient=0.01, entropy_target=TARGET,
            entropy_step=0.005,
        ),
        update=replace(online.update, minibatches=2),
        replay=ReplayConfig(sequences_per_step=3, weight=0.2, source=f"jsonl:{other}"),
    )  # fmt: skip
    return replace(base, steps=3, **short), run


def test_a_run_that_is_stopped_between_two_updates_ends_with_the_same_bits(tmp_path: Path) -> None:
    """Its checkpoint is of step 3; rollouts are of steps 0, 2 and 4."""
    sft, config = settings(tmp_path)
    experiment = {"sft": sft, "run": config}
    whole, again = tmp_path / "whole", tmp_path / "again"
    loop.run("sft", experiment, whole)
    shutil.copytree(whole, again)
    assert loop.run("run", experiment, whole) == RunResult(6, True)
    step = steps_of.step

    def dies(run: Any, source: Any, state: Any) -> Any:
        if state.step == 5:
            raise KeyboardInterrupt
        return step(run, source, state)

    saving = replace(config, checkpoint=replace(config.checkpoint, every_steps=3))
    with mock.patch.object(steps_of, "step", dies), pytest.raises(KeyboardInterrupt):
        loop.run("run", experiment | {"run": saving}, again)
    host = again / "run/checkpoints/3/host/metadata"
    saved = json.loads(host.read_text())
    assert saved["replayed"] == {"epoch": 0, "index": 9}
    control = Control(**saved["control"])
    assert (control.temperature, control.entropy_coefficient) == (1.125, 0.015)
    assert loop.run("run", experiment, again) == RunResult(3, True)
    folders = [workdir / "run" for workdir in (whole, again)]
    ours, theirs = (final_state(folder, config) for folder in folders)
    assert equal(ours[0], theirs[0])
    assert equal(ours[1], theirs[1])
    logs = [tiny_experiment.lasting(lines(folder, "train")) for folder in folders]
    assert logs[0] == logs[1]

    told = lines(whole / "run", "train")
    # A rollout with a single accepted output is for one update.
    rollouts = list(itertools.accumulate("pass_rate" in line for line in told))
    assert 2 < rollouts[-1] < 6
    temperatures = [1 + 0.125 * (n - 1) for n in rollouts]
    coefficients = [0.01 + 0.005 * (n - 1) for n in rollouts]
    assert [line["rollout/temperature"] for line in told] == temperatures
    assert [line["objective/entropy_coefficient"] for line in told] == pytest.approx(coefficients)
    assert all(line["replay/sequences"] == 3 for line in told)
    assert all(0 < line["objective/entropy"] < 6 for line in told)
    assert told[-1]["replay/log_prob"] > told[0]["replay/log_prob"]
    # The trainer's policy is the one that was sampled from, at each temperature.
    gaps = [line["policy/log_prob_mismatch_max"] for line in told]
    assert all((gap is None) != ("pass_rate" in line) for gap, line in zip(gaps, told, strict=True))
    assert max(gap for gap in gaps if gap is not None) < 1e-4
    assert told[2]["system/compilations"] == told[-1]["system/compilations"]

    (tmp_path / "other.jsonl").write_text((tmp_path / "other.jsonl").read_text() * 2)
    longer = {"sft": sft, "run": replace(config, steps=8)}
    with pytest.raises(ConfigError, match=r"rests on other content now: replay \(jsonl:"):
        loop.run("run", longer, whole)
