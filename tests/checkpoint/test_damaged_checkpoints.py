"""Runs that find their newest checkpoints damaged, and runs that keep their best: what they leave
is what an undisturbed run leaves."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import tiny_experiment
from killing import dies_in, files_in, newest

from rft_jax.checkpoint import integrity as health
from rft_jax.checkpoint import policy as policies
from rft_jax.config import CheckpointConfig, Config
from rft_jax.errors import CheckpointError
from rft_jax.observe import log as metrics
from rft_jax.runs.run import RunResult, run

pytestmark = pytest.mark.slow

STEPS, DEATH = 8, 7


@dataclass(frozen=True)
class Study:
    """An Online RFT run that nobody disturbed, and one that died in step `DEATH`."""

    config: Config
    whole: Path
    dead: Path

    def carry_out(self, workdir: Path) -> RunResult:
        return run("x", {"x": self.config}, workdir)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("study")
    source = tiny_experiment.write_questions(folder)
    run("sft", {"sft": tiny_experiment.sft(source)}, folder / "work")
    config = tiny_experiment.online_rft(
        source,
        init_from=f"workdir:{folder / 'work/sft'}",
        checkpoint=CheckpointConfig(every_steps=2, keep=3),
    )
    made = Study(config, folder / "whole", folder / "dead")
    assert made.carry_out(made.whole) == RunResult(STEPS, True)
    with pytest.MonkeyPatch.context() as patch:
        dies_in(patch, DEATH)
        with pytest.raises(KeyboardInterrupt):
            made.carry_out(made.dead)
    assert health.steps(made.dead / "x/checkpoints") == [2, 4, 6]
    return made


def assert_same(again: Path, whole: Path) -> None:
    """Parameters, optimizer, position, metrics, rollouts and evaluations."""
    ours, theirs = newest(again), newest(whole)
    assert ours[0] == theirs[0] == STEPS
    assert [array.tobytes() for array in ours[1]] == [array.tobytes() for array in theirs[1]]
    assert ours[2] == theirs[2]
    logs = [metrics.read(folder / "metrics.jsonl") for folder in (again, whole)]
    found, expected = map(tiny_experiment.lasting, logs)
    assert sorted(found, key=order) == sorted(expected, key=order)
    for kept in ("rollouts", "evaluation"):
        assert files_in(again / kept) == files_in(whole / kept)


def order(line: dict[str, Any]) -> tuple[int, str]:
    return line["step"], line["kind"]


def largest(path: Path) -> Path:
    """The file of a checkpoint that holds most: of an array."""
    files = [file for file in path.rglob("*") if file.is_file()]
    return max(files, key=lambda file: file.stat().st_size)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-5])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: cut(largest(path)),
    "flipped": lambda path: flip(largest(path)),
    "missing": lambda path: largest(path).unlink(),
    "no optimizer": lambda path: shutil.rmtree(path / "training"),
    "host": lambda path: cut(path / "host/metadata"),
    "half written": lambda path: (path / health.RECORD).unlink(),
    "empty": lambda path: [shutil.rmtree(path), path.mkdir()],
}


@pytest.mark.parametrize(
    ("damage", "steps", "left"),
    [*((kind, (6,), 4) for kind in DAMAGE), ("truncated", (6, 4), 2)],
)
def test_the_one_before_gives_the_same_bits(
    study: Study,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    damage: str,
    steps: tuple[int, ...],
    left: int,
) -> None:
    shutil.copytree(study.dead, tmp_path / "again")
    checkpoints = tmp_path / "again/x/checkpoints"
    for step in steps:
        DAMAGE[damage](checkpoints / str(step))
    with caplog.at_level(logging.WARNING, "rft_jax"):
        assert study.carry_out(tmp_path / "again") == RunResult(STEPS - left, True)
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    said = [message for message in said if " is damaged (" in message]
    assert len(said) == len(steps)
    for message, step in zip(said, steps, strict=True):
        assert message.startswith(f"{checkpoints}/{step}: this checkpoint is damaged (")
        assert message.endswith(f"kept as damaged-{step}, and the run resumes from step {left}")
    assert_same(tmp_path / "again/x", study.whole / "x")
    kept = {path.name for path in checkpoints.iterdir()}
    assert kept == {"4", "6", "8", *(f"damaged-{step}" for step in steps)}
    # What was saved again is whole.
    assert [health.problem(checkpoints / name) for name in ("4", "6", "8")] == [None] * 3


def test_no_step_is_made_when_none_is_whole(study: Study, tmp_path: Path) -> None:
    shutil.copytree(study.dead, tmp_path / "again")
    checkpoints = tmp_path / "again/x/checkpoints"
    for step in (2, 4, 6):
        cut(largest(checkpoints / str(step)))
    before = files_in(tmp_path / "again/x/rollouts")
    with pytest.raises(CheckpointError, match=r"no checkpoint here is whole: 6 \(.+; 4 \(.+; 2 \("):
        study.carry_out(tmp_path / "again")
    assert health.steps(checkpoints) == [2, 4, 6]
    assert files_in(tmp_path / "again/x/rollouts") == before


def test_the_best_is_kept_and_named(study: Study, tmp_path: Path) -> None:
    """By its accuracy in the log, also when the run died in between."""
    config = replace(
        study.config,
        evaluation=replace(study.config.evaluation, every_steps=2),
        checkpoint=CheckpointConfig(every_steps=1, keep=1, keep_best=1),
    )
    with pytest.MonkeyPatch.context() as patch:
        dies_in(patch, 6)
        with pytest.raises(KeyboardInterrupt):
            run("x", {"x": config}, tmp_path)
    assert run("x", {"x": config}, tmp_path) == RunResult(3, True)
    logged = [
        (line["greedy/accuracy"], line["step"])
        for line in metrics.read(tmp_path / "x/metrics.jsonl")
        if line["kind"] == "validation" and line["step"] > 0
    ]
    assert [step for _, step in logged] == [2, 4, 6, 8]
    best = max(logged)
    checkpoints = tmp_path / "x/checkpoints"
    assert set(health.steps(checkpoints)) == {best[1], STEPS}
    assert health.accuracies(checkpoints)[best[1]] == best[0]
    assert policies.find(f"{tmp_path}/x@best").step == best[1]


def test_time_alone_saves(study: Study, tmp_path: Path) -> None:
    """After every step, where one takes longer than the time between two saves."""
    config = replace(
        study.config, checkpoint=CheckpointConfig(every_steps=100, every_minutes=1e-6, keep=100)
    )
    assert run("x", {"x": config}, tmp_path) == RunResult(STEPS, True)
    assert health.steps(tmp_path / "x/checkpoints") == [*range(1, STEPS + 1)]
    ours, theirs = newest(tmp_path / "x"), newest(study.whole / "x")
    assert [array.tobytes() for array in ours[1]] == [array.tobytes() for array in theirs[1]]
