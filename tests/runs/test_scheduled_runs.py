"""Runs whose questions change with time: a stop in the middle of a ramp, several sets evaluated, a
pool of several sources."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_experiment
from jobs import Study
from killing import dies_in, files_in, newest
from test_run import lines

from rft_jax.config import ConfigError, CurriculumConfig, PoolConfig, RefillConfig, ScheduleConfig
from rft_jax.errors import DataError
from rft_jax.observe import log as metrics
from rft_jax.rollout import log as rollout_log
from rft_jax.runs import run as loop
from rft_jax.runs import setup
from rft_jax.runs.run import RunResult
from rft_jax.types import Question, Sample

pytestmark = pytest.mark.slow

STEPS = 6


class Questions:
    """Two sources of sums, and a short SFT run on the first of them."""

    def __init__(self, folder: Path) -> None:
        self.a = tiny_experiment.write_questions(folder)
        rows = [
            {"question": f"{n}-1?", "answer": f"{n - 1}", "solution": f"#### {n - 1}"}
            for n in range(1, 13)
        ]
        path = folder / "b.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        self.b = f"jsonl:{path}"
        base = tiny_experiment.sft(self.a)
        self.untested = {
            "evaluation": replace(base.evaluation, every_steps=0),
            "data": replace(base.data, test=""),
        }
        self.sft = tiny_experiment.sft(self.a, steps=3, **self.untested)
        self.work = folder / "work"

    def carry_out(self, **runs: Any) -> list[RunResult]:
        """Runs from the SFT run."""
        experiment = {"sft": self.sft, **runs}
        return [loop.run(name, experiment, self.work) for name in experiment][1:]

    def ramp(self, **changes: Any) -> ScheduleConfig:
        base = ScheduleConfig((f"b={self.b}",), ("0: 1, 0", "4: 0, 1"), change="linear")
        return replace(base, **changes)


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Questions:
    made = Questions(tmp_path_factory.mktemp("sources"))
    made.carry_out()
    return made


def logged(folder: Path) -> list[tuple[Question, Sample]]:
    return rollout_log.read_folders([str(folder / "rollouts")])


@pytest.mark.parametrize("filled", [False, True], ids=["one round", "batch filling"])
def test_a_run_that_is_stopped_within_a_ramp_ends_with_the_same_bits(
    questions: Questions, filled: bool
) -> None:
    """Checkpoints of steps 2, 4 and 6; death in step 4 of 6, whose questions are of both."""
    config = tiny_experiment.online_rft(
        questions.a,
        steps=STEPS,
        schedule=questions.ramp(),
        curriculum=CurriculumConfig(retire_above=0.6, drop_below=0.3, review_share=0.3),
        refill=RefillConfig(accepted=24, max_sampled=64, max_staleness=1) if filled else None,
        **questions.untested,
    )
    names = [f"{name}_{filled}" for name in ("whole", "again")]
    questions.carry_out(**{names[0]: config})
    with pytest.MonkeyPatch.context() as patch:
        dies_in(patch, 4)
        with pytest.raises(KeyboardInterrupt):
            questions.carry_out(**{names[1]: config})
    assert questions.carry_out(**{names[1]: config}) == [RunResult(4, True)]
    whole, again = (questions.work / name for name in names)
    ours, theirs = newest(again), newest(whole)
    assert [a.tobytes() for a in ours[1]] == [a.tobytes() for a in theirs[1]]
    assert ours[2] == theirs[2]
    logs = [tiny_experiment.lasting(metrics.read(one / "metrics.jsonl")) for one in (whole, again)]
    assert logs[0] == logs[1]
    assert files_in(whole / "rollouts") == files_in(again / "rollouts")

    host = json.loads((whole / f"checkpoints/{STEPS}/host/metadata").read_text())
    assert set(host["position"]) == {"epoch", "index", "further"}
    assert len(host["history"]) == len({question.id for question, _ in logged(whole)})
    train = [line for line in logs[0] if line["kind"] == "train"]
    shares = [line["schedule/share_b"] for line in train]
    assert shares[0] == 0
    assert 0 < shares[2] < 1
    assert shares[4:] == [1, 1]
    for line in train:
        assert line["schedule/share_train"] + line["schedule/share_b"] == pytest.approx(1)
    assert train[0]["curriculum/set_aside"] == 0
    assert train[-1]["curriculum/set_aside"] > 0
    assert sum(line["curriculum/reviewed"] for line in train) > 0


def test_several_sets_are_evaluated_at_once(questions: Questions) -> None:
    base = tiny_experiment.online_rft(questions.a)
    data = replace(
        base.data,
        more_validation=(f"b={questions.b}", f"c={questions.b}[6:]"),
        more_test=(f"b={questions.b}[:4]",),
    )
    many, one = (replace(base, steps=3, data=each) for each in (data, base.data))
    questions.carry_out(many=many, one=one)
    folder, alone = questions.work / "many", questions.work / "one"
    evaluation = files_in(folder / "evaluation")
    assert set(evaluation) == {
        *(f"validation{name}-00000{step}.jsonl" for name in ("", "-b", "-c") for step in (0, 3)),
        "test.jsonl", "test-b.jsonl",
    }  # fmt: skip
    counts = {name: len(rows.splitlines()) for name, rows in evaluation.items()}
    assert counts["validation-b-000003.jsonl"] == 5  # evaluation.num_questions
    assert counts["test-b.jsonl"] == 4
    # The main sets are what they are without the others.
    for name, rows in files_in(alone / "evaluation").items():
        assert evaluation[name] == rows
    for kind, sets in (("validation", ("b", "c")), ("test", ("b",))):
        for line, only in zip(lines(folder, kind), lines(alone, kind), strict=True):
            lasting, alone_lasting = tiny_experiment.lasting([line, only])
            for name in sets:
                part = {k.removeprefix(f"{name}/") for k in line if k.startswith(f"{name}/")}
                assert part >= {"greedy/accuracy", "pass_at/2", "policy/entropy"}
                assert ("questions/lost" in part) == (kind == "validation" and line["step"] > 0)
            main = {k: v for k, v in lasting.items() if k.partition("/")[0] not in sets}
            assert main == alone_lasting
    inputs = json.loads((folder / "config.json").read_text())["inputs"]
    named = {"data.more_validation[b]", "data.more_validation[c]", "data.more_test[b]"}
    assert named <= set(inputs)


@pytest.mark.parametrize("every", [0, 4])
def test_a_pool_is_drawn_by_the_schedule(questions: Questions, every: int) -> None:
    """The rollouts of a pool stand for its updates, evenly: of 4 for 8 steps those of steps 4 and 6
    are B's, in one pool or in two."""
    config = tiny_experiment.rft(
        questions.a,
        schedule=questions.ramp(change="step"),
        pool=PoolConfig(rollout_steps=2 if every else 4, every_steps=every),
        **questions.untested,
    )
    name = f"pool_{every}"
    assert questions.carry_out(**{name: config}) == [RunResult(8, True)]
    by_step: dict[int, set[int]] = {}
    for question, sample in logged(questions.work / name):
        by_step.setdefault(sample.step, set()).add(question.id // 10_000_000)
    assert by_step == {0: {0}, 1: {0}, 2: {1}, 3: {1}}
    train = lines(questions.work / name, "train")
    shares = [line["schedule/share_b"] for line in train if "schedule/share_b" in line]
    if every:
        assert shares == [0, 1]
    else:
        assert shares == [pytest.approx(12 / 28)]  # of the questions that it asked
        with pytest.raises(ConfigError, match="steps is 10, was 8"):  # the pool stands for 8
            questions.carry_out(**{name: replace(config, steps=10)})


PROGRAM = """
import every_process_keeps  # noqa: F401
import tiny_experiment
from dataclasses import replace
from rft_jax.config import *

A, B = {a!r}, {b!r}


def experiment():
    sft = tiny_experiment.sft(A, steps=3)
    data = replace(sft.data, more_validation=("b=" + B,), more_test=("b=" + B,))
    return {{"sft": sft, "online_rft": tiny_experiment.online_rft(
        A, steps=4, data=data, evaluation=replace(sft.evaluation, every_steps=2),
        schedule=ScheduleConfig(("b=" + B,), ("0: 1, 0", "3: 0, 1"), change="linear"),
        curriculum=CurriculumConfig(retire_above=0.6, drop_below=0.3, review_share=0.3),
        optimizer=replace(tiny_experiment.rft(A).optimizer, eps=1e-2),
    )}}
"""


def test_two_processes_compute_the_same_bits(questions: Questions, tmp_path: Path) -> None:
    study, file = Study(tmp_path), tmp_path / "scheduled.py"
    file.write_text(PROGRAM.format(a=questions.a, b=questions.b), encoding="utf-8")
    for processes in (1, 2):
        with study.start(tmp_path / f"{processes}", processes, 2 // processes, file=file) as job:
            job.finish()
    alone, together = (tmp_path / f"{processes}" / "online_rft" for processes in (1, 2))
    ours, theirs = newest(alone), newest(together)
    assert ours[2] == theirs[2]
    assert [a.tobytes() for a in ours[1]] == [a.tobytes() for a in theirs[1]]
    logs = [metrics.read(folder / "metrics.jsonl") for folder in (alone, together)]
    assert tiny_experiment.lasting(logs[0]) == tiny_experiment.lasting(logs[1])
    assert files_in(alone / "evaluation") == files_in(together / "evaluation")
    train = [line for line in logs[1] if line["kind"] == "train"]
    assert train[-1]["schedule/share_b"] == 1
    assert train[-1]["curriculum/set_aside"] > 0


def test_every_source_is_checked(questions: Questions, caplog: pytest.LogCaptureFixture) -> None:
    def load(**changes: Any) -> setup.Questions:
        config = tiny_experiment.online_rft(
            questions.a, **({"schedule": questions.ramp()} | changes)
        )
        return setup.load_questions(config, setup.ensure_tokenizer(config, questions.work))

    made = load()
    assert [one.id for one in made.sets("train")["b"]] == [*range(10_000_000, 10_000_012)]
    assert [one.id for one in made.train] == [*range(16), *range(10_000_000, 10_000_012)]
    assert set(made.inputs) == {
        "data.train", "schedule.sources[b]", "data.validation", "data.test"
    }  # fmt: skip
    setup.warn_of_shared("run", made.parts)
    assert "data.train and data.validation share 5" in caplog.text
    with pytest.raises(ConfigError) as refused:
        load(schedule=questions.ramp(sources=(f"b={questions.b}[:5]",)))
    assert str(refused.value) == (
        f"rollout.questions_per_step is 8 and {questions.b}[:5] has 5 questions: ask at most that "
        "many in a step."
    )
    with pytest.raises(ConfigError, match=r"is 8, 4 of them from schedule.sources\[b\], and "):
        load(
            schedule=questions.ramp(
                sources=(f"b={questions.b}[:3]",), weights=("0: 1, 1",), change="step"
            )
        )
    base = tiny_experiment.online_rft(questions.a)
    with pytest.raises(DataError, match=r"b.jsonl: 3 of 12 prompts have more tokens"):
        load(data=replace(base.data, max_prompt_tokens=6))


def test_other_content_of_a_source_is_seen(questions: Questions) -> None:
    path = Path(questions.b.removeprefix("jsonl:"))
    copy = path.with_name("copy.jsonl")
    copy.write_bytes(path.read_bytes())
    config = tiny_experiment.online_rft(
        questions.a, steps=2, **questions.untested,
        schedule=questions.ramp(sources=(f"b=jsonl:{copy}",), weights=("0: 1, 1",), change="step"),
    )  # fmt: skip
    questions.carry_out(changed=config)
    copy.write_text(copy.read_text().replace('"2-1?"', '"3-2?"'))
    with pytest.raises(ConfigError, match=r"other content now: schedule\.sources\[b\] \("):
        questions.carry_out(changed=config)
