"""Runs in processes of their own that are killed, or asked to stop, at random moments: what they
leave after they were started again is what an uninterrupted run leaves."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import programs
import pytest
import tiny_experiment
from killing import RUNS, assert_same, being_saved, current, lines_of, newest, rollouts_of

from rft_jax.observe import log as metrics

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parents[1]
KILLS_OF_A_RUN = 4
KILLS = int(os.environ.get("RFT_JAX_TEST_KILLS", "10"))
"""At least so many, of each run at least one."""
WAIT_SECONDS = 120.0
STEPS, EVALUATE, SAVE, POOL = 14, 5, 3, 4
OPTIONS = tuple(
    f"--{run}.{name}={value}"
    for run in RUNS
    for name, value in (
        ("steps", STEPS), ("evaluation.every_steps", EVALUATE), ("checkpoint.every_steps", SAVE),
    )
)  # fmt: skip


@dataclass(frozen=True)
class Study:
    """An experiment file, the cache that its processes share, and a workdir nobody disturbed."""

    file: Path
    cache: Path
    whole: Path

    def start(self, workdir: Path) -> subprocess.Popen[str]:
        """The command, the same each time, in a process of its own; stderr is kept for wait."""
        environment = os.environ | {
            "PYTHONPATH": str(TESTS),
            "XLA_FLAGS": programs.xla_flags(2),
            "JAX_COMPILATION_CACHE_DIR": str(self.cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        return subprocess.Popen(
            [sys.executable, "-m", "rft_jax", "run", str(self.file),
             "--workdir", str(workdir), *OPTIONS],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            env=environment, cwd=self.file.parent,
        )  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("study")
    made = Study(tiny_experiment.write_experiment(folder), folder / "cache", folder / "whole")
    finish(made.start(made.whole))
    return made


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for a process that must end well; its stderr."""
    _, errors = process.communicate(timeout=2 * WAIT_SECONDS)
    assert process.returncode == 0, errors
    return errors


def wait(process: subprocess.Popen[str], moment: Callable[[], bool]) -> bool:
    """Watch until the moment has come; False when the process ended before."""
    deadline = time.monotonic() + WAIT_SECONDS
    while process.poll() is None:
        if moment():
            return True
        assert time.monotonic() < deadline, "the process makes no progress"
        time.sleep(0.0005)
    return False


def phase(folder: Path, started: float) -> str:
    """What the process did in a run when it was killed, by what it left there."""
    logged = metrics.read(folder / "metrics.jsonl") if lines_of(folder) else []
    files = [path for path in folder.rglob("*.jsonl") if path.stat().st_mtime > started]
    if being_saved(folder):
        return "checkpoint"
    if not files:
        return "start"
    if folder.name == "rft" and rollouts_of(folder) < POOL:
        return "pool"
    steps = [line["step"] for line in logged if line["kind"] == "train"]
    step = steps[-1] if steps else 0
    done = {(line["kind"], line["step"]) for line in logged}
    if step == STEPS:
        return "end" if ("test", step) in done else "test"
    if step % EVALUATE == 0 and ("validation", step) not in done:
        return "evaluation"
    if folder.name != "online_rft":
        return "update"
    return "update" if folder / f"rollouts/step-{step:06d}.jsonl" in files else "sampling"


def moment_of(folder: Path, rng: random.Random) -> Callable[[], bool]:
    """A random moment in the run that is going on in `folder`."""
    if rng.random() < 0.3:
        wanted = lines_of(folder) + rng.randint(0, 2)
        return lambda: lines_of(folder) > wanted and being_saved(folder)
    if folder.name == "rft" and (count := rollouts_of(folder)) < POOL and rng.random() < 0.7:
        return lambda: rollouts_of(folder) > count
    wanted = lines_of(folder) + rng.randint(0, 2)
    return lambda: lines_of(folder) > wanted


def carry_out_with_kills(study: Study, workdir: Path, seed: int) -> list[tuple[str, str]]:
    """Start the command again and again until it ends; (run, phase) of every kill."""
    rng = random.Random(seed)
    kills: list[tuple[str, str]] = []
    while True:
        folder = current(workdir)
        while folder and sum(run == folder.name for run, _ in kills) >= KILLS_OF_A_RUN:
            position = RUNS.index(folder.name) + 1
            folder = workdir / RUNS[position] if position < len(RUNS) else None
        started = time.time()
        process = study.start(workdir)
        if folder is None:
            finish(process)
            return kills
        moment = moment_of(folder, rng)

        def finished(folder: Path = folder) -> bool:
            return (folder / "finished.json").exists()

        came = wait(process, lambda: moment() or finished())  # noqa: B023
        time.sleep(rng.choice((0.0, rng.uniform(0, 0.02), rng.uniform(0, 0.1))))
        process.kill()
        _, errors = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), errors
        where = current(workdir)
        if process.returncode and came and where is not None:
            kills.append((where.name, phase(where, started)))


def test_killed_runs_end_with_the_same_bits(study: Study) -> None:
    kills: list[tuple[str, str]] = []
    for seed in itertools.count():
        folder = study.file.parent / f"killed-{seed}"
        kills += carry_out_with_kills(study, folder, seed)
        assert_same(study.whole, folder, STEPS)
        if len(kills) >= KILLS and {run for run, _ in kills} == set(RUNS):
            break
    print(len(kills), "kills:", Counter(kills))  # `pytest -s` shows what was hit


def test_a_run_that_is_asked_to_stop_saves_and_goes_on(study: Study) -> None:
    workdir = study.file.parent / "stopped"

    def stop(run: str, number: int, moment: Callable[[Path], bool]) -> Path:
        folder = workdir / run
        process = study.start(workdir)
        assert wait(process, lambda: moment(folder))
        process.send_signal(number)
        _, errors = process.communicate(timeout=WAIT_SECONDS)
        assert process.returncode == 128 + number, errors
        assert errors.splitlines()[-1] == (
            f"rft-jax: run {run} is stopped and saved; the same command resumes it."
        )
        assert "Traceback" not in errors
        assert not (folder / "finished.json").exists()
        return folder

    folder = stop("sft", signal.SIGTERM, lambda folder: lines_of(folder) > 3)
    last = max(line["step"] for line in metrics.read(folder / "metrics.jsonl"))
    assert newest(folder)[0] == last  # saved where it stopped: no step is repeated
    lines = lines_of(study.whole / "sft")
    folder = stop("sft", signal.SIGINT, lambda folder: lines_of(folder) == lines - 1)
    assert newest(folder)[0] == STEPS  # only the test was missing
    folder = stop("rft", signal.SIGINT, lambda folder: rollouts_of(folder) == 1)
    assert lines_of(folder) == 0
    folder = stop("online_rft", signal.SIGTERM, lambda folder: lines_of(folder) > 5)
    finish(study.start(workdir))
    assert_same(study.whole, workdir, STEPS)


def test_a_finished_study_does_nothing_more(study: Study) -> None:
    before = {path: path.stat().st_mtime_ns for path in study.whole.rglob("*.jsonl")}
    errors = finish(study.start(study.whole))
    assert [f"{run}: already finished" in errors for run in RUNS] == [True] * 3
    assert {path: path.stat().st_mtime_ns for path in study.whole.rglob("*.jsonl")} == before
