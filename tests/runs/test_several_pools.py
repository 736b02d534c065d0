"""Pools that take each other's place (iterative RFT), and a run that is killed in any of them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import pytest
import tiny_experiment
from test_run import equal, final_state, lines

from rft_jax.config import Config, PoolConfig
from rft_jax.rollout import log as rollout_log
from rft_jax.runs import loop as steps_of
from rft_jax.runs import run as loop
from rft_jax.runs import sources
from rft_jax.runs.run import RunResult

pytestmark = pytest.mark.slow

ROLLOUTS = 2
"""Of a pool; pools begin after steps 0, 3 and 6."""


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Config]:
    """A workdir with a short SFT run, and that run."""
    folder = tmp_path_factory.mktemp("started")
    base = tiny_experiment.sft(tiny_experiment.write_questions(folder))
    sft = replace(
        base, steps=3, evaluation=replace(base.evaluation, every_steps=0),
        data=replace(base.data, test=""),
    )  # fmt: skip
    loop.run("sft", {"sft": sft}, folder / "work")
    return folder / "work", sft


def iterative(sft: Config, **pool: Any) -> Config:
    pools = PoolConfig(rollout_steps=ROLLOUTS, every_steps=3, **pool)
    return tiny_experiment.rft(
        sft.data.train, steps=8, pool=pools, evaluation=sft.evaluation, data=sft.data
    )


def outputs(folder: Path) -> list[tuple[int, int, int, str]]:
    """Of all rollouts that a run has logged."""
    pairs = rollout_log.read_folders([str(folder / "rollouts")])
    return [(one.step, one.question_id, one.sample_index, one.text) for _, one in pairs]


class Killed(BaseException):
    """As a signal that cannot be caught."""


def kill_in(what: str, step: int) -> Any:
    """Die in the rollout of this number, or before the update after this step."""
    if what == "rollout":
        draw = sources.sample

        def dies(*arguments: Any, **settings: Any) -> Any:
            if settings["step"] == step:
                raise Killed
            return draw(*arguments, **settings)

        return mock.patch.object(sources, "sample", dies)
    one_step = steps_of.step

    def stops(run: Any, source: Any, state: Any) -> Any:
        if state.step == step:
            raise Killed
        return one_step(run, source, state)

    return mock.patch.object(steps_of, "step", stops)


def test_pools_that_are_killed_end_with_the_same_bits(
    started: tuple[Path, Config], tmp_path: Path
) -> None:
    """Checkpoints of steps 2, 3 (a pool begins), 4, 6. A resume that leaves out the newest of them
    does not read the pool that stems from it."""
    work, sft = started
    config = iterative(sft)
    experiment = {"sft": sft, "run": config}
    whole, again = tmp_path / "whole", tmp_path / "again"
    for workdir in (whole, again):
        shutil.copytree(work, workdir)
    assert loop.run("run", experiment, whole) == RunResult(8, True)
    for what, place in (("rollout", 1), ("rollout", 3), ("update", 5), ("rollout", 5)):
        with kill_in(what, place), pytest.raises(Killed):
            loop.run("run", experiment, again)
    kept = again / "run/checkpoints"
    assert max(int(path.name) for path in kept.iterdir() if path.name.isdigit()) == 6
    shutil.rmtree(kept / "6")  # as if it were damaged
    (again / "run/rollouts/step-000005.jsonl").write_text("of a policy that is lost")
    assert loop.run("run", experiment, again) == RunResult(4, True)

    folders = [workdir / "run" for workdir in (whole, again)]
    ours, theirs = (final_state(folder, config) for folder in folders)
    assert equal(ours[0], theirs[0])
    assert equal(ours[1], theirs[1])
    assert outputs(folders[0]) == outputs(folders[1])
    logs = [tiny_experiment.lasting(lines(folder, "train")) for folder in folders]
    assert logs[0] == logs[1]
    assert [line["step"] for line in logs[0] if "pass_rate" in line] == [0, 4, 7]
    drawn = [line["cost/sampled_outputs"] for line in logs[0]]
    assert drawn == [64] * 4 + [128] * 3 + [192] * 2


def test_no_pool_is_sampled_for_a_run_that_has_made_its_steps(
    started: tuple[Path, Config], tmp_path: Path
) -> None:
    """It is killed before it says that it is finished, where another pool would begin."""
    work, sft = started
    experiment = {"sft": sft, "run": replace(iterative(sft), steps=6)}
    shutil.copytree(work, tmp_path / "work")
    folder = tmp_path / "work/run"
    with mock.patch.object(steps_of, "_finish", side_effect=Killed), pytest.raises(Killed):
        loop.run("run", experiment, tmp_path / "work")
    drawn = outputs(folder)
    assert loop.run("run", experiment, tmp_path / "work") == RunResult(0, True)
    assert outputs(folder) == drawn
    assert json.loads((folder / "finished.json").read_text())["cost/sampled_outputs"] == 128


@pytest.mark.parametrize("by", ["policy", "start"])
def test_later_pools_are_of_the_policy_or_of_the_start(
    started: tuple[Path, Config], tmp_path: Path, by: Literal["policy", "start"]
) -> None:
    """Rollouts have the same questions and keys in one pool and in three."""
    work, sft = started
    config = iterative(sft, sampled_from=by)
    frozen = replace(config, pool=PoolConfig(rollout_steps=3 * ROLLOUTS))
    shutil.copytree(work, tmp_path / "work")
    experiment = {"sft": sft, "run": config, "frozen": frozen}
    for name in ("run", "frozen"):
        loop.run(name, experiment, tmp_path / "work")
    ours, start = (outputs(tmp_path / "work" / name) for name in ("run", "frozen"))
    size = len(start) // 3
    assert [one[:3] for one in ours] == [one[:3] for one in start]
    assert ours[:size] == start[:size]
    assert (ours == start) == (by == "start")
