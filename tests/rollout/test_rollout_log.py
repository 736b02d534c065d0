"""rollouts/: a round trip of every sampled output, atomic files, and errors for damaged ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rft_jax.errors import DataError
from rft_jax.keys import Purpose
from rft_jax.rollout import log as rollout_log
from rft_jax.rollout.log import Writer
from rft_jax.types import Question, Sample, Verdict

QUESTIONS = [Question(3, "2 and 3?", "5", "2 + 3 = 5\n#### 5"), Question(7, "1 and 1?", "2")]


def sample(question_id: int = 3, index: int = 0, **changes: Any) -> Sample:
    facts: dict[str, Any] = {
        "question_id": question_id,
        "sample_index": index,
        "step": 12,
        "text": "2 + 3 = 5\n#### 5",
        "tokens": (5, 6, 2),
        "log_probs": (-0.1, -1e-7, -23.5),
        "finished": True,
        "verdict": Verdict.CORRECT,
        "reason": "equal",
    }
    return Sample(**facts | changes)


def write(
    folder: Path, step: int, samples: list[Sample], questions: list[Question], **facts: Any
) -> None:
    """A rollout's file, with samples of its step."""
    mine = [replace(one, step=step) for one in samples]
    rollout_log.write(folder, step, mine, questions, **facts)


def test_samples_come_back_as_they_were(tmp_path: Path) -> None:
    samples = [
        sample(),
        sample(7, 1, finished=False, verdict=Verdict.INCORRECT, reason="truncated"),
        sample(7, 2, verdict=Verdict.UNDECIDED, text="\u2028 \ufffd é 中 \x00"),
        sample(7, 3, steps=((0, 0.1), (2, -3.0))),
    ]
    rollout_log.write(tmp_path / "rollouts", 12, samples, QUESTIONS, seed=4)
    path = tmp_path / "rollouts" / "step-000012.jsonl"
    assert rollout_log.path_of(tmp_path / "rollouts", 12) == path
    pairs = rollout_log.read(path)
    assert [one for _, one in pairs] == samples
    # Without its solution: the log holds what sampling knew.
    assert [question for question, _ in pairs] == [
        Question(3, "2 and 3?", "5"),
        *[QUESTIONS[1]] * 3,
    ]
    first = json.loads(path.read_text(encoding="utf-8").split("\n")[0])
    assert {"question": "2 and 3?", "answer": "5", "seed": 4, "verdict": "correct"}.items() <= (
        first.items()
    )
    assert not {"steps", "reward", "stated"} & first.keys()  # lines without are as they were


@given(
    st.text(st.characters(codec="utf-8")),
    st.lists(st.floats(max_value=0, allow_nan=False, allow_infinity=False, width=32), max_size=5),
)
def test_texts_and_log_probs_lose_nothing(
    tmp_path_factory: pytest.TempPathFactory, text: str, log_probs: list[float]
) -> None:
    folder = tmp_path_factory.getbasetemp() / "rollouts"  # one for all examples
    one = sample(text=text, log_probs=tuple(log_probs), tokens=tuple(range(len(log_probs))))
    rollout_log.write(folder, 0, [one], QUESTIONS, seed=0)
    assert [found for _, found in rollout_log.read(rollout_log.path_of(folder, 0))] == [one]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    write(tmp_path, 1, [sample(), sample(7)], QUESTIONS, seed=0)
    path = rollout_log.path_of(tmp_path, 1)
    before = path.read_bytes()

    def failing() -> Any:
        yield sample()
        raise RuntimeError("stopped here")

    with pytest.raises(RuntimeError, match="stopped here"):
        rollout_log.write(tmp_path, 1, failing(), QUESTIONS, seed=0)
    assert path.read_bytes() == before
    # What the failed attempt left is neither read nor in the way.
    write(tmp_path, 1, [sample(7)], QUESTIONS, seed=0)
    assert [one.question_id for _, one in rollout_log.read(path)] == [7]
    assert [file.name for file in tmp_path.iterdir()] == ["step-000001.jsonl"]


def test_folders_are_united_in_order(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        for step in (10, 2):
            one = sample(7, step=step, text=folder.name)
            rollout_log.write(folder, step, [one], QUESTIONS, seed=0)
    pairs = rollout_log.read_folders([str(folder) for folder in folders])
    found = [(one.text, one.step) for _, one in pairs]
    assert found == [("a", 2), ("a", 10), ("b", 2), ("b", 10)]


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"no\.jsonl: there is no such rollout file; name a RUN/rollouts folder\.$"
    ):
        rollout_log.read(tmp_path / "no.jsonl")


@pytest.mark.parametrize("made", [True, False])
def test_a_folder_without_rollouts_is_an_error(tmp_path: Path, made: bool) -> None:
    folder = tmp_path / "empty"
    if made:
        folder.mkdir()
    with pytest.raises(
        DataError, match=r"empty: no step-\*\.jsonl here; name a RUN/rollouts folder\.$"
    ):
        rollout_log.read_folders([str(folder)])


def test_logs_of_the_same_keys_are_united_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, step, seed, purpose in (
        ("a", 0, 0, Purpose.ROLLOUT), ("b", 0, 1, Purpose.ROLLOUT), ("c", 1, 0, Purpose.ROLLOUT),
        ("d", 0, 0, Purpose.POOL), ("e", 0, 0, Purpose.ROLLOUT),
    ):  # fmt: skip
        samples = [replace(sample(), step=step), replace(sample(7), step=step)]
        rollout_log.write(tmp_path / name, step, samples, QUESTIONS, seed=seed, purpose=purpose)
    folders = [str(tmp_path / name) for name in "abcde"]
    assert len(rollout_log.read_folders(folders[:4])) == 8
    assert caplog.messages == []
    assert len(rollout_log.read_folders(folders)) == 10
    (said,) = caplog.messages
    assert said.startswith(f"2 outputs of {folders[4]} were sampled with the same keys as outputs ")
    assert f"of {folders[0]}, in runs of one seed: they are correlated" in said
    rollout_log.read_folders([folders[0], folders[0]])
    assert len(caplog.messages) == 2


def test_a_log_of_an_earlier_version_was_sampled_as_rollouts(tmp_path: Path) -> None:
    write(tmp_path, 0, [sample()], QUESTIONS, seed=0, purpose=Purpose.POOL)
    assert rollout_log.purpose_of(tmp_path, 0) is Purpose.POOL
    path = rollout_log.path_of(tmp_path, 0)
    row = json.loads(path.read_text(encoding="utf-8"))
    del row["purpose"]
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    assert rollout_log.purpose_of(tmp_path, 0) is Purpose.ROLLOUT


def test_logs_of_different_sources_are_not_united(tmp_path: Path) -> None:
    write(tmp_path / "a", 0, [sample()], QUESTIONS, seed=0)
    write(tmp_path / "b", 0, [sample()], [Question(3, "2 and 4?", "6")], seed=0)
    with pytest.raises(
        DataError,
        match=r"a, .*b: question 3 stands for two different questions; unite only logs of runs "
        r"on one source\.$",
    ):
        rollout_log.read_folders([str(tmp_path / "a"), str(tmp_path / "b")])


DAMAGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "cut": (lambda row: "{", r"is not JSON \(.*\): remove the line\."),
    "list": (lambda row: "[]", r"\[\] is not a JSON object: remove the line\."),
    "without tokens": (
        lambda row: {name: value for name, value in row.items() if name != "tokens"},
        "field 'tokens' is missing: remove the line.",
    ),
    "finished as a number": (
        lambda row: row | {"finished": 1},
        "field 'finished' is 1, expected bool: remove the line.",
    ),
    "token as a text": (
        lambda row: row | {"tokens": ["a", 6, 2]},
        "'tokens' and 'log_probs' must be equally many token ids and numbers: remove the line.",
    ),
    "a log-prob too few": (
        lambda row: row | {"log_probs": [-1.0, -2.0]},
        "'tokens' and 'log_probs' must be equally many token ids and numbers: remove the line.",
    ),
    "a step beyond the tokens": (
        lambda row: row | {"steps": [[0, 1.0], [3, 0.5]]},
        r"field 'steps' is \[\[0, 1.0\], \[3, 0.5\]\], expected pairs of a token's index and a "
        "number: remove the line.",
    ),
    "steps out of order": (lambda row: row | {"steps": [[1, 1], [0, 1]]}, "field 'steps' is .*"),
    "a step without a reward": (lambda row: row | {"steps": [[1]]}, "field 'steps' is .*"),
    "a step's reward is no number": (
        lambda row: row | {"steps": [[1, None]]},
        "field 'steps' is .*",
    ),
    "unknown purpose": (
        lambda row: row | {"purpose": ["rollout"]},
        r"field 'purpose' is \['rollout'\], expected one of init, rollout, evaluation, pool: "
        r"remove the line\.",
    ),
    "unknown verdict": (
        lambda row: row | {"verdict": "right"},
        "field 'verdict' is 'right', expected one of correct, incorrect, undecided: remove the "
        "line.",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_line_is_named(tmp_path: Path, name: str) -> None:
    damage, text = DAMAGES[name]
    write(tmp_path, 0, [sample(), sample(7)], QUESTIONS, seed=0)
    path = rollout_log.path_of(tmp_path, 0)
    first, second, _ = path.read_text(encoding="utf-8").split("\n")
    bad = damage(json.loads(second))
    bad = bad if isinstance(bad, str) else json.dumps(bad)
    # A blank line is skipped, and counted.
    path.write_text(f"{first}\n\n{bad}\n{first}\n", encoding="utf-8")
    with pytest.raises(DataError, match=rf"step-000000\.jsonl:3: .*{text}$"):
        rollout_log.read(path)


def by(process: int, *question_ids: int, processes: int = 2, outputs: int = 2) -> dict[str, Any]:
    """What `write` is given for the part that a process has. outputs: of all parts."""
    return {
        "samples": [sample(one, process, text=f"{process}") for one in question_ids],
        "questions": QUESTIONS,
        "seed": 0,
        "writer": Writer(process, processes),
        "outputs": outputs,
    }


def test_each_process_writes_its_own_part(tmp_path: Path) -> None:
    write(tmp_path, 4, **by(1, 3, outputs=3))
    assert not rollout_log.is_whole(tmp_path, 4, 3)
    write(tmp_path, 4, **by(0, 7, 3, outputs=3))
    assert rollout_log.is_whole(tmp_path, 4, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-000004.000-of-002.jsonl",
        "step-000004.001-of-002.jsonl",
    ]
    found = [(one.text, one.question_id) for _, one in rollout_log.read_step(tmp_path, 4, 3)]
    assert found == [("0", 7), ("0", 3), ("1", 3)]
    assert [one.text for _, one in rollout_log.read_folders([str(tmp_path)])] == ["0", "0", "1"]


def test_a_part_may_be_empty(tmp_path: Path) -> None:
    """Where the devices of a process hold rows that another one owns."""
    write(tmp_path, 4, **by(0, 7, outputs=1))
    write(tmp_path, 4, **by(1, outputs=1))
    assert rollout_log.is_whole(tmp_path, 4, 1)
    assert [one.text for _, one in rollout_log.read_step(tmp_path, 4, 1)] == ["0"]
    assert [one.text for _, one in rollout_log.read_folders([str(tmp_path)])] == ["0"]


def test_a_rollout_that_lacks_parts_is_not_read(tmp_path: Path) -> None:
    for step in (1, 2):
        for process in range(3):
            if (step, process) != (2, 1):
                write(tmp_path, step, **by(process, 7, processes=3, outputs=3))
    (tmp_path / "step-000002.001-of-003.part").touch()
    assert [rollout_log.is_whole(tmp_path, step, 3) for step in (0, 1, 2)] == [False, True, False]
    assert len(rollout_log.read_folders([str(tmp_path)])) == 3
    with pytest.raises(DataError, match=r"step-000002\.jsonl: there is no such rollout file"):
        rollout_log.read_step(tmp_path, 2, 3)


def damage(path: Path, kind: str) -> None:
    lines = path.read_text().splitlines(keepends=True)
    if kind == "a line is gone":
        lines.pop()
    elif kind == "half a line":
        lines[-1] = lines[-1][: len(lines[-1]) // 2]
    path.write_text("" if kind == "empty" else "".join(lines))


@pytest.mark.parametrize("kind", ["a line is gone", "half a line", "empty"])
@pytest.mark.parametrize("processes", [1, 2])
def test_a_rollout_counts_only_with_all_of_its_outputs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, processes: int, kind: str
) -> None:
    for process in range(processes):
        part = by(process, 7, 3, processes=processes, outputs=2 * processes)
        write(tmp_path, 4, **part)
    assert rollout_log.is_whole(tmp_path, 4, 2 * processes)
    assert not caplog.messages
    path = rollout_log.path_of(tmp_path, 4, Writer(processes - 1, processes))
    damage(path, kind)
    assert not rollout_log.is_whole(tmp_path, 4, 2 * processes)
    assert len(caplog.messages) == 1
    assert f"{path}: sampled again, as it is damaged: " in caplog.messages[0]
    found = []
    for read in (
        lambda: rollout_log.read_step(tmp_path, 4, 2 * processes),
        lambda: rollout_log.read_folders([str(tmp_path)]),
    ):
        with pytest.raises(DataError) as error:
            read()
        found.append(str(error.value))
        assert str(path) in found[-1]
    if kind == "half a line":
        assert all(f"{path}:2: " in text and "is not JSON" in text for text in found)
    else:
        left = 2 * processes - (1 if kind == "a line is gone" else 2)
        assert f"{left} outputs are there instead of {2 * processes}: copy the file" in found[0]
        assert f"{left} outputs are there" in found[1]


@pytest.mark.parametrize(
    ("name", "reason"),
    [("another step's", "outputs of step 3 are there"), ("doubled", "an output is there twice")],
)
def test_a_rollout_counts_only_with_outputs_of_its_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, reason: str
) -> None:
    for step in (3, 4):
        write(tmp_path, step, [sample(), sample(7)], QUESTIONS, seed=0)
    path = rollout_log.path_of(tmp_path, 4)
    first = path.read_text().splitlines(keepends=True)[0]
    other = rollout_log.path_of(tmp_path, 3).read_text()
    path.write_text(first * 2 if name == "doubled" else other)
    assert not rollout_log.is_whole(tmp_path, 4, 2)
    assert caplog.messages == [f"{path}: sampled again, as it is damaged: {reason}"]
    for read in (
        lambda: rollout_log.read_step(tmp_path, 4, 2),
        lambda: rollout_log.read_folders([str(tmp_path)]),
    ):
        with pytest.raises(DataError, match=f"{reason}: copy the file again"):
            read()


def test_a_log_of_an_older_version_does_not_say_how_many_outputs_it_has(tmp_path: Path) -> None:
    write(tmp_path, 4, [sample(), sample(7)], QUESTIONS, seed=0)
    path = rollout_log.path_of(tmp_path, 4)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({**line, "outputs": 0}) + "\n" for line in lines))
    path.write_text(path.read_text().replace(', "outputs": 0', ""))
    assert len(rollout_log.read_folders([str(tmp_path)])) == 2
    with pytest.raises(DataError, match="2 outputs are there instead of 3: copy the file again"):
        rollout_log.read_step(tmp_path, 4, 3)


@pytest.mark.parametrize("processes", [1, 3])
def test_another_number_of_processes_writes_a_rollout_anew(tmp_path: Path, processes: int) -> None:
    for process in range(2):
        for step in (1, 2):
            write(tmp_path, step, **by(process, 7))
    for process in reversed(range(processes)):
        part = by(process, 3, processes=processes, outputs=processes)
        write(tmp_path, 2, **part)
    found = rollout_log.read_step(tmp_path, 2, processes)
    assert [one.question_id for _, one in found] == [3] * processes
    assert len(list(tmp_path.glob("step-000002*"))) == processes
    assert len(list(tmp_path.glob("step-000001*"))) == 2  # of other steps it has no business


def test_of_two_whole_sets_one_is_read(tmp_path: Path) -> None:
    for processes in (2, 3, 1):
        for process in reversed(range(processes)):
            path = rollout_log.path_of(tmp_path, 1, Writer(process, processes))
            part = by(process, 7, processes=processes, outputs=processes)
            write(tmp_path / "apart", 1, **part)
            (tmp_path / "apart" / path.name).rename(path)
    assert len(rollout_log.read_step(tmp_path, 1, 1)) == 1
    rollout_log.path_of(tmp_path, 1).unlink()
    assert len(rollout_log.read_folders([str(tmp_path)])) == 2
