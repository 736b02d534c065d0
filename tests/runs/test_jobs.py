"""Jobs of several processes, end to end: what they compute, and what becomes of them when one of
their processes is killed, frozen, stuck, wrong or asked to stop."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import stalling
import tiny_experiment
from jobs import Job, Study, of_all, one_refused
from killing import RUNS, assert_same, being_saved, current, files_in, lines_of, newest, rollouts_of

from rft_jax.checkpoint import integrity as checkpoint_health
from rft_jax.distributed.process import EXIT_USER
from rft_jax.distributed.watchdog import EXIT_LOST
from rft_jax.observe import log as metrics
from rft_jax.rollout import log as rollout_log
from rft_jax.types import Question, Sample

pytestmark = pytest.mark.slow

STEPS = 6
WITHIN = 1e-5
"""Of parameters and moments."""
LOG_PROBS_WITHIN = 1e-4
"""In nats: each is a function of all parameters, so it moves further than any of them."""
OPTIONS = (
    *of_all(f"steps={STEPS}", "evaluation.every_steps=2", "checkpoint.every_steps=2"),
    *of_all("evaluation.samples_per_question=4"),  # the shapes of the test: no further programs
    # A large eps keeps Adam from magnifying the last bits of small gradients.
    *of_all("optimizer.eps=1e-2", runs=RUNS[1:]),
    "--rft.pool.rollout_steps=2",
)
LOST = "rft-jax: error: process {0} (" + socket.gethostname() + ") has given no sign of life for "
LOST_AFTER = 5.0
MARGIN = 60.0
"""Seconds between the bound and the end of the processes, on a machine that does other things."""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return Study(tmp_path_factory.mktemp("study"), OPTIONS)


def logged(folder: Path) -> list[tuple[Question, Sample]]:
    """All that a run has sampled, by step, question and number."""
    pairs = rollout_log.read_folders([str(folder / "rollouts")])
    return sorted(pairs, key=lambda pair: (pair[1].step, pair[0].id, pair[1].sample_index))


def assert_computed_alike(one: Path, other: Path, runs: Sequence[str] = RUNS) -> None:
    """All that is no matter of who writes which file, bit for bit."""
    for run in runs:
        ours, theirs = newest(one / run), newest(other / run)
        assert ours[0] == theirs[0] == STEPS
        assert ours[2] == theirs[2]
        assert [a.tobytes() for a in ours[1]] == [a.tobytes() for a in theirs[1]], run
        logs = [metrics.read(folder / run / "metrics.jsonl") for folder in (one, other)]
        assert tiny_experiment.lasting(logs[0]) == tiny_experiment.lasting(logs[1])
        assert files_in(one / run / "evaluation") == files_in(other / run / "evaluation")
        if run != "sft":
            assert logged(one / run) == logged(other / run)


class Wholes:
    """Workdirs of jobs that nobody disturbed, each made when it is first wanted."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self._made: dict[tuple[int, int, tuple[str, ...]], Path] = {}

    def of(self, processes: int, devices: int, *options: str) -> Path:
        """The workdir of such a job."""
        key = (processes, devices, options)
        if key not in self._made:
            workdir = self.study.folder / f"whole-{len(self._made)}"
            with self.study.start(workdir, processes, devices, *options) as job:
                job.finish()
            assert job.errors(0).count("step") > 0
            for number in range(1, processes):
                assert job.errors(number) == ""  # process 0 speaks
            self._made[key] = workdir
        return self._made[key]


@pytest.fixture(scope="module")
def wholes(study: Study) -> Wholes:
    return Wholes(study)


SPANNING = (
    *("--only", "sft", "online_rft"),
    *of_all("mesh.data=1", "mesh.fsdp=2", "mesh.tensor=4"),
    *of_all("model.num_heads=4", "model.num_kv_heads=4", "model.vocab_size=276"),
)
"""Of 4 processes x 2 devices each two hold the same rows, and parts of the weights."""


@pytest.mark.parametrize(
    ("options", "topologies"),
    [((), [(2, 4), (4, 2)]), (SPANNING, [(4, 2)])],
    ids=["data", "fsdp-and-tensor-that-spans-processes"],
)
def test_as_many_processes_as_you_like_compute_the_same_bits(
    wholes: Wholes, options: tuple[str, ...], topologies: list[tuple[int, int]]
) -> None:
    alone = wholes.of(1, 8, *options)
    for processes, devices in topologies:
        together = wholes.of(processes, devices, *options)
        runs = ("sft", "online_rft") if options else RUNS
        assert_computed_alike(together, alone, runs)
        assert_logged_by_all(together, processes, runs)
    assert len(logged(alone / "online_rft")) == STEPS * 8 * 4
    assert any(sample.accepted for _, sample in logged(alone / "online_rft"))


def assert_logged_by_all(workdir: Path, processes: int, runs: Sequence[str]) -> None:
    """A file a process for each rollout, no row in two of them, and one log of metrics."""
    for run, count in (("rft", 2), ("online_rft", STEPS)):
        if run not in runs:
            continue
        names = sorted(path.name for path in (workdir / run / "rollouts").iterdir())
        assert names == [
            f"step-{step:06d}.{number:03d}-of-{processes:03d}.jsonl"
            for step in range(count)
            for number in range(processes)
        ]
        samples = [
            (sample.step, question.id, sample.sample_index)
            for question, sample in logged(workdir / run)
        ]
        assert len(set(samples)) == len(samples)
    for run in runs:
        lines = metrics.read(workdir / run / "metrics.jsonl")
        said = [(line["kind"], line["step"]) for line in lines if "objective/value" in line]
        assert said == [("train", step) for step in range(1, STEPS + 1)]
        assert len(list((workdir / run / "tensorboard").iterdir())) == 1


def test_a_process_without_a_job_differs_by_rounding_alone(wholes: Wholes, study: Study) -> None:
    """Its devices are of one process, and add in another order than gloo has it."""
    workdir = study.folder / "without"
    with study.start(workdir, 1, 8, environments={0: {"JAX_COORDINATOR_ADDRESS": ""}}) as job:
        job.finish()
    for run in RUNS:
        ours, theirs = newest(workdir / run), newest(wholes.of(1, 8) / run)
        assert ours[2] == theirs[2]
        for one, other in zip(ours[1], theirs[1], strict=True):
            np.testing.assert_allclose(one, other, atol=WITHIN)
        evaluations = [files_in(place / run / "evaluation") for place in (workdir, wholes.of(1, 8))]
        assert evaluations[0] == evaluations[1]
        if run != "sft":
            pairs = [logged(place / run) for place in (workdir, wholes.of(1, 8))]
            for (_, one), (_, other) in zip(*pairs, strict=True):
                assert (one.tokens, one.verdict, one.reason) == (
                    other.tokens, other.verdict, other.reason
                )  # fmt: skip
                np.testing.assert_allclose(one.log_probs, other.log_probs, atol=LOG_PROBS_WITHIN)


def begun(whole: Path, workdir: Path, *finished: str) -> Path:
    """A workdir in which these runs of an undisturbed job are finished."""
    workdir.mkdir()
    for name in ("experiment.json", "tokenizer.model"):
        shutil.copy(whole / name, workdir / name)
    for run in finished:
        shutil.copytree(whole / run, workdir / run)
    return workdir


def wait_for_steps(job: Job, folder: Path, count: int = 3) -> None:
    """Until a run is in the midst of its steps."""
    assert job.wait_for(lambda: lines_of(folder) >= count), job.told()
    assert not (folder / "finished.json").exists()


ONLINE = ("--only", "online_rft")
QUICKLY = (*ONLINE, "--lost_after", str(LOST_AFTER))


def test_a_killed_process_ends_the_job_which_goes_on(wholes: Wholes, study: Study) -> None:
    whole = wholes.of(4, 2)
    workdir = begun(whole, study.folder / "killed", "sft", "rft")
    with study.start(workdir, 4, 2, *QUICKLY) as job:
        wait_for_steps(job, workdir / "online_rft")
        job.signal(2, signal.SIGKILL)
        statuses = job.statuses(LOST_AFTER + MARGIN)
        assert statuses == [EXIT_LOST, EXIT_LOST, -signal.SIGKILL, EXIT_LOST], job.told()
        for number in (0, 1, 3):
            assert LOST.format(2) in job.errors(number), job.told()
        job.assert_gone()
    with study.start(workdir, 4, 2, *QUICKLY) as job:
        job.finish()
    assert_same(whole, workdir, STEPS)


def test_of_two_jobs_at_once_one_works_and_its_killed_coordinator_blocks_nobody(
    wholes: Wholes, study: Study
) -> None:
    whole = wholes.of(2, 4)
    workdir = begun(whole, study.folder / "headless", "sft", "rft")
    with contextlib.ExitStack() as stack:
        jobs = [stack.enter_context(study.start(workdir, 2, 4, *QUICKLY)) for _ in range(2)]
        job, _ = one_refused(jobs)
        wait_for_steps(job, workdir / "online_rft")
        job.signal(0, signal.SIGKILL)
        again = stack.enter_context(study.start(workdir, 2, 4, *QUICKLY))
        first, second = job.statuses(LOST_AFTER + MARGIN)
        assert first == -signal.SIGKILL
        assert second != 0
        # jax may end it before the watch does, and says what with.
        said = job.errors(1)
        assert "process 0, which keeps the job together, has not answered for " in said or (
            "JAX distributed service detected fatal errors" in said and "leader task" in said
        ), job.told()
        job.assert_gone()
        again.finish()
    assert_same(whole, workdir, STEPS)


def test_a_frozen_process_ends_the_job(wholes: Wholes, study: Study) -> None:
    workdir = begun(wholes.of(2, 4), study.folder / "frozen", "sft", "rft")
    with study.start(workdir, 2, 4, *QUICKLY) as job:
        wait_for_steps(job, workdir / "online_rft")
        job.signal(1, signal.SIGSTOP)
        try:
            assert job.processes[0].wait(LOST_AFTER + MARGIN) == EXIT_LOST, job.told()
        finally:
            job.signal(1, signal.SIGCONT)
        assert LOST.format(1) in job.errors(0), job.told()
        assert job.statuses(LOST_AFTER + MARGIN)[1] != 0
        job.assert_gone()


def test_a_stalled_process_ends_the_job(wholes: Wholes, study: Study) -> None:
    workdir = begun(wholes.of(2, 4), study.folder / "stalled", "sft", "rft")
    options = (
        *ONLINE, "--stalled_after", "20",
        "--online_rft.verification.verifier=stalling:even_length_or_never",
        "--online_rft.verification.timeout_seconds=3600",
    )  # fmt: skip
    with study.start(workdir, 2, 4, *options, environments={1: {stalling.VARIABLE: "1"}}) as job:
        assert job.statuses() == [EXIT_LOST] * 2, job.told()
        assert "nothing has happened for 2" in job.errors(0), job.told()
        assert f"process 1 ({socket.gethostname()}) is stalled at 'verdicts of " in job.errors(0)
        job.assert_gone()


def test_an_error_in_one_process_ends_the_others_with_its_message(study: Study) -> None:
    file = study.file.with_name("elsewhere.py")
    file.write_text(
        study.file.read_text(encoding="utf-8").replace(
            "def experiment():\n    return tiny_experiment.experiment(",
            "import os\n\n\ndef experiment():\n    return tiny_experiment.experiment("
            'os.environ.get("RFT_JAX_TEST_QUESTIONS") or ',
        ),
        encoding="utf-8",
    )
    missing = {1: {"RFT_JAX_TEST_QUESTIONS": "jsonl:missing.jsonl"}}
    with study.start(study.folder / "failed", 2, 4, file=file, environments=missing) as job:
        assert job.statuses() == [EXIT_USER] * 2, job.told()
        own = job.errors(1)
        assert own.startswith("rft-jax: error: ")
        assert "missing.jsonl" in own
        assert own.count("\n") == 1
        said = f"rft-jax: error: process 1 ({socket.gethostname()}) stopped: "
        assert said in job.errors(0), job.told()
        assert own.removeprefix("rft-jax: error: ").strip() in job.errors(0)
        job.assert_gone()


@pytest.mark.parametrize("asked", [0, 1])
def test_one_process_that_is_asked_to_stop_stops_all(
    wholes: Wholes, study: Study, asked: int
) -> None:
    whole = wholes.of(2, 4)
    workdir = begun(whole, study.folder / f"stopped-{asked}", "sft", "rft")
    folder = workdir / "online_rft"
    with study.start(workdir, 2, 4, *ONLINE) as job:
        wait_for_steps(job, folder)
        job.signal(asked, signal.SIGTERM)
        assert job.statuses() == [128 + signal.SIGTERM] * 2, job.told()
        assert job.errors(0).splitlines()[-1] == (
            "rft-jax: run online_rft is stopped and saved; the same command resumes it."
        )
        assert job.errors(1) == ""
        job.assert_gone()
    last = max(line["step"] for line in metrics.read(folder / "metrics.jsonl"))
    assert newest(folder)[0] == last  # saved where it stopped: no step is repeated
    assert not (folder / "finished.json").exists()
    with study.start(workdir, 2, 4, *ONLINE) as job:
        job.finish()
    assert_same(whole, workdir, STEPS)


KILLS = int(os.environ.get("RFT_JAX_TEST_KILLS", "5"))
"""At least so many, of each run at least one; 5 are one workdir.
For many more, `-o faulthandler_timeout=0` lifts the suite's limit on one test."""
KILLS_OF_A_RUN = 2


def moment_of(folder: Path, rng: random.Random) -> Callable[[], bool]:
    """A random moment in the run that is going on in `folder`."""
    wanted = lines_of(folder) + rng.randint(0, 2)
    if rng.random() < 0.3:
        return lambda: lines_of(folder) >= wanted and being_saved(folder)
    if folder.name != "sft" and rng.random() < 0.3:
        count = rollouts_of(folder)
        return lambda: rollouts_of(folder) > count
    return lambda: lines_of(folder) > wanted


def carry_out_with_kills(study: Study, workdir: Path, seed: int) -> list[str]:
    """Start a job again and again until it ends; of every kill the run, how many lines of metrics
    there were, and the processes."""
    rng = random.Random(seed)
    kills: list[str] = []
    victims = itertools.cycle([(0,), (1,), (0, 1)])
    while True:
        folder = current(workdir)
        while folder and len([k for k in kills if k.startswith(folder.name)]) >= KILLS_OF_A_RUN:
            position = RUNS.index(folder.name) + 1
            folder = workdir / RUNS[position] if position < len(RUNS) else None
        with study.start(workdir, 2, 4, "--lost_after", str(LOST_AFTER)) as job:
            if folder is None:
                job.finish()
                return kills
            moment = moment_of(folder, rng)

            def finished(folder: Path = folder) -> bool:
                return (folder / "finished.json").exists()

            came = job.wait_for(lambda: moment() or finished())  # noqa: B023
            time.sleep(rng.choice((0.0, rng.uniform(0, 0.02), rng.uniform(0, 0.1))))
            where, chosen = current(workdir), next(victims)
            for number in chosen:
                job.signal(number, signal.SIGKILL)
            statuses = job.statuses(LOST_AFTER + MARGIN)
            job.assert_gone()
            if where is None or not came:  # it has ended, or is about to
                assert came or not any(statuses), job.told()
                continue
            assert all(status == -signal.SIGKILL for status in map(statuses.__getitem__, chosen))
            assert all(statuses), job.told()
            kills.append(f"{where.name} {lines_of(where)} {chosen}")


def test_killed_jobs_end_with_the_same_bits(wholes: Wholes, study: Study) -> None:
    whole = wholes.of(2, 4)
    kills: list[str] = []
    for seed in itertools.count():
        folder = study.folder / f"random-{seed}"
        kills += carry_out_with_kills(study, folder, seed)
        assert_same(whole, folder, STEPS)
        if len(kills) >= KILLS and {kill.partition(" ")[0] for kill in kills} == set(RUNS):
            break
    print(len(kills), "kills (run, lines of metrics, processes):", kills)  # shown by `pytest -s`


def test_all_processes_end_at_an_alarm(study: Study) -> None:
    """Only process 0 sees it; the others restore the best checkpoint with it."""
    workdir = study.folder / "alarmed"
    options = (
        "--only=sft", "--sft.alarms.action=best", "--sft.checkpoint.keep_best=1",
        # The norms of two steps are above next to nothing of what they usually are.
        "--sft.alarms.gradient_norm=1e-6", "--sft.alarms.window=2",
    )  # fmt: skip
    with study.start(workdir, 2, 4, *options) as job:
        job.finish()
    assert f"ends at step 4 of {STEPS}, by alarm gradient_norm" in job.errors(0)
    assert job.errors(1) == ""
    finished = json.loads((workdir / "sft/finished.json").read_text())
    known = checkpoint_health.accuracies(workdir / "sft/checkpoints")
    assert finished["checkpoint"] == max(known, key=lambda step: (known[step], step))
    assert (finished["alarm"], finished["cost/updates"]) == ("gradient_norm", 4)
    assert metrics.read(workdir / "sft/metrics.jsonl")[-1]["kind"] == "test"
