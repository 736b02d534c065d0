"""A rollout for several updates: what they train on, and a stop between two of them."""

from __future__ import annotations

import contextlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import orbax.checkpoint as ocp
import pytest
import tiny_experiment
from test_run import equal, final_state, lines

from rft_jax.config import Config, CriticConfig, RefillConfig
from rft_jax.errors import ConfigError
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


CLOSE = {"clip_high": 0.001, "clip_low": 0.001}
"""Bounds so close that they act."""
RENEWED = {"kl_coefficient": 0.05, "reference_every": 4}


def trained(folder: Path, sft: Config, config: Config, tmp_path: Path) -> list[dict[str, Any]]:
    """The train lines of a run from the SFT run, carried out whole in TMP_PATH/work."""
    shutil.copytree(folder / "work", tmp_path / "work")
    experiment = {"sft": sft, "run": config}
    assert loop.run("run", experiment, tmp_path / "work") == RunResult(config.steps, True)
    return lines(tmp_path / "work/run", "train")


def restored(folder: Path, config: Config) -> Any:
    """The value function of the last checkpoint."""
    with contextlib.closing(ocp.StandardCheckpointHandler()) as handler:
        return handler.restore(folder / "checkpoints" / str(config.steps) / "critic")


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("grpo", CLOSE),
        ("grpo", RENEWED),
        ("online_dpo", {"reference_every": 4}),
        ("ppo", {"kl_coefficient": 0.05, "kl_in": "reward", "kl_estimator": "k1"}),
    ],
    ids=["grpo", "iterative grpo", "iterative online dpo", "ppo"],
)
def test_a_run_that_is_stopped_between_two_updates_ends_with_the_same_bits(
    started: tuple[Path, dict[str, Any], Config],
    tmp_path: Path,
    method: str,
    changes: dict[str, Any],
) -> None:
    """Checkpoints of steps 2, 4, 6; rollouts of steps 0 and 4 are for four updates each."""
    folder, short, sft = started
    online = tiny_experiment.online_rft(sft.data.train, steps=6, **short)
    update = replace(online.update, minibatches=2, epochs=2)
    objective = replace(online.objective, **changes)
    critic = CriticConfig(learning_rate=0.01) if method == "ppo" else None
    grpo = replace(online, method=method, update=update, objective=objective, critic=critic)
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
    fifth = logs[0][4]
    if method == "grpo":
        assert first["update/ratio"] == pytest.approx(1.0, abs=1e-5)
        assert first["update/clipped"] == 0.0
        assert max(line["update/clipped"] for line in logs[0][1:4]) > 0
    if changes == RENEWED:  # where pi_ref is the policy
        assert first["objective/kl"] == fifth["objective/kl"] == 0 < third["objective/kl"]
    if method == "ppo":
        values = [np.array(line["critic/explained_variance"]) for line in logs[0]]
        assert first["critic/gradient_norm"] > 0
        assert np.isfinite(values).all()
        read = [restored(folder, grpo) for folder in folders]
        assert equal(*read)
    if method == "online_dpo":
        for name in ("correct", "incorrect"):
            apart = [abs(line[f"policy/log_ratio_{name}"]) for line in logs[0]]
            assert max(apart[0], apart[4]) < 1e-3 < apart[3]
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
    log = trained(folder, sft, topr, tmp_path)
    log = [line for line in log if "update/ratio" in line]
    assert log[0]["update/ratio_max"] == pytest.approx(1.0, abs=1e-4)
    assert log[-1]["update/ratio"] != pytest.approx(1.0, abs=1e-3)


def test_dpo_starts_from_its_reference_and_tells_right_from_wrong(
    started: tuple[Path, dict[str, Any], Config], tmp_path: Path
) -> None:
    """Offline, on the pool, whose groups stay together."""
    folder, short, sft = started
    dpo = tiny_experiment.rft(sft.data.train, method="dpo", steps=8, **short)
    log = trained(folder, sft, dpo, tmp_path)
    log = [line for line in log if "update/sequences" in line]
    names = ("policy/log_ratio_correct", "policy/log_ratio_incorrect")
    assert [log[0][name] for name in names] == pytest.approx([0.0, 0.0], abs=1e-4)
    assert any(log[-1][name] != 0 for name in names)
    small = replace(dpo, update=replace(dpo.update, sequences_per_step=1))
    message = "update.sequences_per_step is 1: it must hold all outputs of a question"
    with pytest.raises(ConfigError, match=message):
        loop.run("small", {"sft": sft, "small": small}, tmp_path / "work")


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_a_kl_in_the_reward_is_told_and_changes_rewards_only(
    started: tuple[Path, dict[str, Any], Config], tmp_path: Path, estimator: str
) -> None:
    folder, short, sft = started
    online = tiny_experiment.online_rft(sft.data.train, method="rloo", steps=3, **short)
    kl = {"kl_coefficient": 0.2, "kl_in": "reward", "kl_estimator": estimator}
    rloo = replace(online, objective=replace(online.objective, denominator=None, **kl))
    log = trained(folder, sft, rloo, tmp_path)
    found = [line["objective/kl"] for line in log]
    assert abs(found[0]) < 1e-5 < abs(found[-1])


def test_a_step_fills_its_batch_with_mixed_groups_for_two_updates(
    started: tuple[Path, dict[str, Any], Config], tmp_path: Path
) -> None:
    folder, short, sft = started
    online = tiny_experiment.online_rft(sft.data.train, method="dapo", steps=4, **short)
    update = replace(online.update, epochs=2)
    refill = RefillConfig(mixed_groups=4, max_sampled=64)
    dapo = replace(online, update=update, refill=refill)
    log = trained(folder, sft, dapo, tmp_path)
    assert [line.get("refill/mixed_groups") for line in log] == [4, None, 4, None]
    assert [line["update/sequences"] for line in log] == [16] * 4
    assert log[0]["update/ratio"] == pytest.approx(1.0, abs=1e-4)
