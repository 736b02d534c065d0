"""A rollout for several updates: what they train on, and a stop between two of them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import tiny_experiment
from test_run import equal, final_state, lines

from rft_jax.config import Config, RefillConfig
from rft_jax.runs import loop as steps_of
from rft_jax.runs import run as loop
from rft_jax.runs.run import RunResult

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], Config]:
    """A workdir with a short SFT run, what makes a run short, and that run."""
    folder = tmp_path_factory.mktemp("started")
    base = tiny_experiment.sft(tiny_experiment.write_questions(folder))
    short: dict[str, Any] = {
        "evaluation": replace(base.evaluation, every_steps=0),
        "data": replace(base.data, test=""),
    }
    sft = replace(base, steps=3, **short)
    loop.run("sft", {"sft": sft}, folder / "work")
    return folder, short, sft


def test_a_run_that_is_stopped_between_two_updates_ends_with_the_same_bits(
    started: tuple[Path, dict[str, Any], Config], tmp_path: Path
) -> None:
    """Checkpoints of steps 2, 4, 6; rollouts of steps 0 and 4 are for four updates each."""
    folder, short, sft = started
    online = tiny_experiment.online_rft(sft.data.train, steps=6, **short)
    update = replace(online.update, minibatches=2, epochs=2)
    # A bound so close that it acts.
    objective = replace(online.objective, clip_high=0.001, clip_low=0.001)
    grpo = replace(online, method="grpo", update=update, objective=objective)
    experiment = {"sft": sft, "grpo": grpo}
    whole, again = tmp_path / "whole", tmp_path / "again"
    for workdir in (whole, again):
        shutil.copytree(folder / "work", workdir)
    assert loop.run("grpo", experiment, whole) == RunResult(6, True)
    step = steps_of.step
    for death in (3, 5):

        def dies(run: Any, source: Any, state: steps_of.State, death: int = death) -> Any:
            if state.step == death:
                raise KeyboardInterrupt
            return step(run, source, state)

        with mock.patch.object(steps_of, "step", dies), pytest.raises(KeyboardInterrupt):
            loop.run("grpo", experiment, again)
        host = again / "grpo/checkpoints" / str(death // 2 * 2) / "host/metadata"
        assert ("minibatches" in json.loads(host.read_text())) == (death == 3)
    assert loop.run("grpo", experiment, again) == RunResult(2, True)

    folders = [workdir / "grpo" for workdir in (whole, again)]
    ours, theirs = (final_state(folder, grpo) for folder in folders)
    assert equal(ours[0], theirs[0])
    assert equal(ours[1], theirs[1])
    logs = [tiny_experiment.lasting(lines(folder, "train")) for folder in folders]
    assert logs[0] == logs[1]
    names = ["step-000000.jsonl", "step-000004.jsonl"]
    assert [path.name for path in sorted((whole / "grpo/rollouts").iterdir())] == names

    first, second, third, fourth = logs[0][:4]
    assert "pass_rate" in first
    assert "pass_rate" not in second
    assert first["update/ratio"] == pytest.approx(1.0, abs=1e-5)
    assert first["update/clipped"] == 0.0 < max(line["update/clipped"] for line in logs[0][1:4])
    assert first["policy/log_prob_mismatch_max"] < 1e-4
    assert second["policy/log_prob_mismatch_max"] is None
    for one, other in ((first, second), (third, fourth)):
        assert abs(one["update/sequences"] - other["update/sequences"]) <= 1
    assert first["update/sequences"] + second["update/sequences"] == (
        third["update/sequences"] + fourth["update/sequences"]
    )
    assert logs[0][-1]["cost/updates"] == 6
    assert logs[0][3]["cost/sampled_outputs"] == 32


def test_outputs_of_a_pool_keep_the_log_probs_of_the_policy_that_sampled(
    started: tuple[Path, dict[str, Any], Config], tmp_path: Path
) -> None:
    """TOPR: at first pi_theta is pi_sft, and then the ratio of wrong outputs falls below 1."""
    folder, short, sft = started
    topr = tiny_experiment.rft(sft.data.train, method="topr", steps=4, **short)
    shutil.copytree(folder / "work", tmp_path / "work")
    assert loop.run("topr", {"sft": sft, "topr": topr}, tmp_path / "work") == RunResult(4, True)
    log = [line for line in lines(tmp_path / "work/topr", "train") if "update/ratio" in line]
    assert log[0]["update/ratio_max"] == pytest.approx(1.0, abs=1e-4)
    assert log[-1]["update/ratio"] != pytest.approx(1.0, abs=1e-3)


def test_a_step_fills_its_batch_with_mixed_groups_for_two_updates(
    started: tuple[Path, dict[str, Any], Config], tmp_path: Path
) -> None:
    folder, short, sft = started
    online = tiny_experiment.online_rft(sft.data.train, method="dapo", steps=4, **short)
    update = replace(online.update, epochs=2)
    refill = RefillConfig(mixed_groups=4, max_sampled=64)
    dapo = replace(online, update=update, refill=refill)
    shutil.copytree(folder / "work", tmp_path / "work")
    assert loop.run("dapo", {"sft": sft, "dapo": dapo}, tmp_path / "work") == RunResult(4, True)
    log = lines(tmp_path / "work/dapo", "train")
    assert [line.get("refill/mixed_groups") for line in log] == [4, None, 4, None]
    assert [line["update/sequences"] for line in log] == [16] * 4
    assert log[0]["update/ratio"] == pytest.approx(1.0, abs=1e-4)
