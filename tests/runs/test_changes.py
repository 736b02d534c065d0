"""What may change between two starts of a run: more steps may, and what it rests on may not, unless
it is accepted; both are recorded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jobs
import numpy as np
import pytest
import tiny_experiment
from killing import newest

from rft_jax.checkpoint.policy import find
from rft_jax.commands.model_card import model_card
from rft_jax.commands.report import write
from rft_jax.config import Config, EvaluationConfig, OptimizerConfig, PoolConfig
from rft_jax.errors import UserError
from rft_jax.observe import log as metrics
from rft_jax.runs.run import RunResult, run

pytestmark = pytest.mark.slow

DONE, STEPS = 6, 8
OPTIONS = (
    *jobs.of_all("evaluation.every_steps=0", "data.test=", runs=("sft", "rft")),
    "--sft.steps=2",
    "--sft.optimizer.warmup_steps=0",
    "--rft.pool.rollout_steps=1",
    "--rft.verification.verifier=tiny_experiment:everything",
)  # fmt: skip


@dataclass(frozen=True)
class Study:
    """A folder with questions, a verifier, and work/: an SFT run and an RFT run of DONE steps."""

    folder: Path

    @property
    def workdir(self) -> Path:
        return self.folder / "work"

    def experiment(self, steps: int = DONE, **changes: Any) -> dict[str, Config]:
        source = f"jsonl:{self.folder}/questions.jsonl"
        sft = tiny_experiment.sft(source, optimizer=OptimizerConfig(learning_rate=3e-2))
        judge = replace(sft.verification, verifier="judge_of_changes:even_length")
        shared: dict[str, Any] = {
            "steps": steps,
            "verification": judge,
            "evaluation": EvaluationConfig(num_questions=4),
            **changes,
        }
        rft = tiny_experiment.rft(source, pool=PoolConfig(rollout_steps=2), **shared)
        return {"sft": replace(sft, **shared), "rft": rft}

    def run(self, name: str, steps: int = STEPS, accept: bool = False, **changes: Any) -> RunResult:
        experiment = self.experiment(steps, **changes)
        return run(name, experiment, self.workdir, accept_changed=accept)

    def refusal(self, name: str, steps: int = STEPS) -> str:
        """The line by which the run is not resumed; nothing in its folder changes."""
        before = newest(self.workdir / name)[0]
        with pytest.raises(UserError) as error:
            self.run(name, steps)
        assert newest(self.workdir / name)[0] == before
        return str(error.value)

    def record(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.workdir / name / "config.json").read_text())
        return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Study:
    study = Study(tmp_path_factory.mktemp("study"))
    tiny_experiment.write_questions(study.folder)
    with pytest.MonkeyPatch.context() as patch:
        _judge(study.folder, patch)
        for name in ("sft", "rft"):
            assert study.run(name, DONE) == RunResult(DONE, True)
    return study


def _judge(folder: Path, patch: pytest.MonkeyPatch) -> None:
    text = "from tiny_experiment import even_length\n"
    (folder / "judge_of_changes.py").write_text(text)
    patch.syspath_prepend(str(folder))


@pytest.fixture
def study(made: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """A copy; its sources stay where they were made, and are restored."""
    kept = {path: path.read_bytes() for path in made.folder.iterdir() if path.is_file()}
    shutil.copytree(made.workdir, tmp_path / "kept")
    monkeypatch.syspath_prepend(str(made.folder))
    yield made  # type: ignore[misc]
    shutil.rmtree(made.workdir)
    (tmp_path / "kept").rename(made.workdir)
    for path, content in kept.items():
        path.write_bytes(content)


def rows(study: Study, change: Callable[[list[dict[str, str]]], object]) -> None:
    path = study.folder / "questions.jsonl"
    content = [json.loads(line) for line in path.read_text().splitlines()]
    change(content)
    path.write_text("".join(json.dumps(row) + "\n" for row in content))


CHANGES: dict[str, Callable[[list[dict[str, str]]], object]] = {
    "an answer": lambda rows: rows[9].update(answer="17"),
    "a solution": lambda rows: rows[9].update(solution="1 #### 3"),
    "fewer rows": lambda rows: rows.pop(),
    "more rows": lambda rows: rows.append(rows[0] | {"question": "5+5?"}),
    "another order": lambda rows: rows.reverse(),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_other_data_are_refused(study: Study, kind: str) -> None:
    rows(study, CHANGES[kind])
    for steps in (DONE, STEPS):  # finished, and to be resumed
        assert study.refusal("sft", steps).startswith(
            f"{study.workdir}/sft: the run rests on other content now: data.train "
            f"(jsonl:{study.folder}/questions.jsonl)"
        )


def test_accepted_data_are_recorded_with_their_step(study: Study) -> None:
    rows(study, CHANGES["an answer"])
    before = study.record("sft")
    assert study.run("sft", accept=True) == RunResult(STEPS - DONE, True)
    after = study.record("sft")
    assert [one for one in after["changes"] if one["what"].startswith("data.")] == [
        {
            "step": DONE,
            "what": "data.train",
            "was": before["inputs"]["data.train"]["sha256"],
            "now": after["inputs"]["data.train"]["sha256"],
        }
    ]
    assert study.run("sft") == RunResult(0, True)  # it rests on these now


@pytest.mark.parametrize(
    ("name", "file", "what"),
    [
        ("sft", "work/tokenizer.model", "tokenizer"),
        ("rft", "judge_of_changes.py", "code/judge_of_changes.py"),
        ("rft", "work/sft/checkpoints/6/files.json", "init_from"),
        ("rft", "work/rft/rollouts/step-000001.jsonl", "pool"),
    ],
)
def test_other_files_are_refused(study: Study, name: str, file: str, what: str) -> None:
    path = study.folder / file
    if what == "pool":
        path.write_text(path.read_text().replace('"correct"', '"incorrect"', 1))
    elif what == "tokenizer":
        # A field that no reader knows: the same pieces.
        path.write_bytes(path.read_bytes() + b"\xa2\x06\x01x")
    else:
        path.write_text(path.read_text() + "\n")
    found = study.refusal(name)
    assert found.startswith(f"{study.workdir}/{name}: the run rests on other content now: {what} (")


def test_a_start_that_has_moved_on_is_kept_as_it_was(study: Study) -> None:
    study.run("sft")
    start = json.loads((study.workdir / "rft/policy/start.json").read_text())
    assert start == {"init_from": "run:sft", "step": DONE}


def test_more_steps_are_those_of_a_longer_run(study: Study, tmp_path: Path) -> None:
    every = EvaluationConfig(every_steps=1, num_questions=2)
    assert study.run("rft", evaluation=every) == RunResult(STEPS - DONE, True)
    whole = Study(study.folder)
    workdir = tmp_path / "whole"
    shutil.copytree(study.workdir / "sft", workdir / "sft")
    shutil.copy(study.workdir / "tokenizer.model", workdir)
    assert run("rft", whole.experiment(STEPS), workdir) == RunResult(STEPS, True)
    ours, theirs = newest(study.workdir / "rft"), newest(workdir / "rft")
    assert ours[0] == theirs[0] == STEPS
    assert ours[2] == theirs[2]
    for one, other in zip(ours[1], theirs[1], strict=True):
        np.testing.assert_array_equal(one, other)
    logged = metrics.read(study.workdir / "rft/metrics.jsonl")
    assert [line["step"] for line in logged if line["kind"] == "test"] == [DONE, STEPS]
    assert [line["step"] for line in logged if line["kind"] == "validation"] == [7, 8]

    record = study.record("rft")
    settings = [
        one for one in record["changes"] if one["what"].startswith(("steps", "evaluation."))
    ]
    assert settings == [
        {"step": DONE, "what": "steps", "was": DONE, "now": STEPS},
        {"step": DONE, "what": "evaluation.every_steps", "was": 0, "now": 1},
        {"step": DONE, "what": "evaluation.num_questions", "was": 4, "now": 2},
    ]
    write(study.workdir, lambda text: None)
    page = (study.workdir / "report.html").read_text()
    card = model_card(find(str(study.workdir / "rft")), "out")
    for text in (page, card):
        assert record["inputs"]["data.train"]["sha256"][:12] in text
        assert "evaluation.num_questions" in text
    assert f"`run:sft` (step {DONE})" in card

    assert study.refusal("rft", 7) == (
        f"{study.workdir}/rft: steps is 7 and 8 steps are done: set it to 8 or more, or use "
        "another --workdir."
    )


def test_an_end_that_is_not_this_runs_is_refused(study: Study, tmp_path: Path) -> None:
    """finished.json of a longer run beside."""
    finished = study.workdir / "sft/finished.json"
    kept = finished.read_text()
    finished.write_text(json.dumps(json.loads(kept) | {"cost/updates": STEPS}))
    found = study.refusal("sft")
    assert found.startswith(f"{study.workdir}/sft/checkpoints/{STEPS}: the run ended with this")
    finished.write_text("{")
    assert "cannot be read as JSON" in study.refusal("sft")


def test_renamed_checkpoints_are_not_taken_for_others(study: Study) -> None:
    folder = study.workdir / "sft/checkpoints"
    shutil.rmtree(folder / "4")
    (folder / "6").rename(folder / "4")
    (study.workdir / "sft/finished.json").unlink()
    assert study.refusal("sft") == (
        f"{folder}: no checkpoint here is whole: 4 (it is that of step 6: the folder was renamed): "
        "bring the files back, or start over with another --workdir."
    )


def test_a_lost_config_is_not_made_anew(study: Study) -> None:
    (study.workdir / "sft/config.json").unlink()
    assert "config.json, which says what run this is, is missing" in study.refusal("sft")


def test_files_of_another_policy_are_refused(study: Study) -> None:
    path = study.workdir / "rft/policy/sentencepiece.model"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"sentencepiece.model: it is other than the run wrote"):
        find(str(study.workdir / "rft"))


@pytest.mark.parametrize("damage", ["", "half"])
def test_a_damaged_pool_is_sampled_again_before_the_first_step(
    study: Study, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    folder = study.workdir / "rft"
    before = newest(folder)
    path = folder / "rollouts/step-000001.jsonl"
    text = path.read_text()
    path.write_text(text[: len(text) // 2] if damage else "")
    found = study.refusal("rft")  # its steps rest on it
    assert str(path) in found
    (folder / "finished.json").unlink(missing_ok=True)
    shutil.rmtree(folder / "checkpoints")
    assert study.run("rft", DONE) == RunResult(DONE, True)
    assert any("sampled again, as it is damaged" in text for text in caplog.messages)
    assert path.read_text() == text
    for one, other in zip(before[1], newest(folder)[1], strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_run_of_an_older_version_resumes_and_records(
    study: Study, caplog: pytest.LogCaptureFixture
) -> None:
    path = study.workdir / "sft/config.json"
    content = study.record("sft")
    for name in ("id", "inputs", "policy", "changes"):
        del content[name]
    path.write_text(json.dumps(content))
    with caplog.at_level("INFO", "rft_jax"):
        assert study.run("sft") == RunResult(STEPS - DONE, True)
    said = [text for text in caplog.messages if "not recorded" in text]
    assert said == [f"sft: what it rests on was not recorded so far: it is from step {DONE}"]
    assert "data.train" in study.record("sft")["inputs"]


def test_processes_that_read_other_data_are_refused(tmp_path: Path) -> None:
    """And so is a job of two that reads other data than before, or lacks outputs of its pool."""
    job_study = jobs.Study(tmp_path, OPTIONS)
    text = job_study.file.read_text().replace(str(tmp_path / "questions.jsonl"), "questions.jsonl")
    file = tmp_path / "moving.py"
    file.write_text(f"import os\nos.chdir(os.environ.get('HERE', '.'))\n{text}")
    other = tmp_path / "other"
    other.mkdir()
    questions = (tmp_path / "questions.jsonl").read_text()
    (other / "questions.jsonl").write_text(questions.replace('"answer": "3"', '"answer": "4"'))
    workdir = tmp_path / "work"

    def started(*options: str, **environments: dict[int, dict[str, str]]) -> jobs.Job:
        return job_study.start(workdir, 2, 2, *options, file=file, **environments)

    first = ("--only", "sft", "rft", "--rft.steps=2")
    with started(*first, environments={1: {"HERE": str(other)}}) as job:
        assert job.statuses() == [2, 2], job.told()
        assert (
            "data.train (jsonl:questions.jsonl): process 1 reads other content than process 0"
        ) in job.errors(1)
    assert not (workdir / "sft" / "config.json").exists()
    with started(*first) as job:
        job.finish()
    longer = ("--only", "rft", "--rft.steps=4")
    everywhere = {number: {"HERE": str(other)} for number in range(2)}
    with started(*longer, environments=everywhere) as job:
        assert job.statuses() == [2, 2], job.told()
        assert "rft: the run rests on other content now: data.train (" in job.errors(0)
    part = workdir / "rft/rollouts/step-000000.001-of-002.jsonl"
    kept = part.read_text()
    part.write_text("")
    with started(*longer) as job:
        assert job.statuses() == [2, 2], job.told()
        assert "16 outputs are there instead of 32: copy the file again" in job.told()
    part.write_text(kept)
    with started(*longer) as job:
        job.finish()
    assert newest(workdir / "rft")[0] == 4
