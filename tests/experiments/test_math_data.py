"""experiments/math_data.py, on made-up problems in the layout of MATH."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from rft_jax.data.sources import load
from rft_jax.types import Judgement, Verdict
from rft_jax.verification.rules import VerifierSpec, load_verifier

PATH = Path(__file__).resolve().parents[2] / "experiments" / "math_data.py"


def module_of(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


math_data = module_of(PATH)


def problem(**changes: Any) -> dict[str, Any]:
    return {
        "problem": "What is $1 + 1$?",
        "level": "Level 1",
        "type": "Prealgebra",
        "solution": "It is $\\boxed{2}$.",
    } | changes


def write(folder: Path, **problems: Any) -> Path:
    """Both splits, each with the problems by `SUBJECT_N` and one that is always there."""
    for split in ("train", "test"):
        for name, content in ({"algebra_1": problem()} | problems).items():
            subject, _, number = name.rpartition("_")
            path = folder / split / subject / f"{number}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            text = content if isinstance(content, str) else json.dumps(content)
            path.write_text(text, encoding="utf-8")
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        ("So $x = \\boxed{\\frac{1}{2}}$.", "\\frac{1}{2}"),
        ("First \\boxed{3}, then again \\boxed{3.0}.", "3"),
        ("$x = \\boxed{1}$ and $x = \\boxed{2}$", "1, 2"),
        ("our answer is $\\boxed 2$.", "2"),
        ("\\fbox{\\text{(C)}}", "\\text{(C)}"),
    ],
)
def test_answers_are_what_the_verifier_reads(tmp_path: Path, solution: str, answer: str) -> None:
    source = write(tmp_path / "MATH", algebra_1=problem(solution=solution))
    math_data.convert(source, tmp_path / "out", leave_out_unread=False)
    (row,) = rows(tmp_path / "out" / "train.jsonl")
    assert row["answer"] == answer
    judged = load_verifier(VerifierSpec("boxed"))(row["answer"], row["solution"])
    assert isinstance(judged, Judgement)
    assert judged.verdict is Verdict.CORRECT


def test_rows_are_questions_of_this_project(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = problem(problem="Wie groß ist 2?", level="Level ?", type="Number Theory")
    source = write(tmp_path / "MATH", number_theory_7=content)
    assert math_data.main([str(source), str(tmp_path / "out")]) == 0
    assert "train.jsonl: 2 of 2 problems" in capsys.readouterr().out
    found = load(f"jsonl:{tmp_path}/out/test.jsonl")
    assert {question.text for question in found} == {"What is $1 + 1$?", "Wie groß ist 2?"}
    assert {question.answer for question in found} == {"2"}
    (row,) = (r for r in rows(tmp_path / "out" / "test.jsonl") if "groß" in r["question"])
    assert (row["level"], row["subject"]) == ("Level ?", "Number Theory")


def test_a_slice_is_a_sample_of_all_subjects(tmp_path: Path) -> None:
    many = {
        f"{subject}_{number}": problem(type=subject)
        for subject in ("algebra", "geometry")
        for number in range(1, 41)
    }
    source = write(tmp_path / "MATH", **many)
    for out in ("a", "b"):
        math_data.convert(source, tmp_path / out, leave_out_unread=False)
    first, again = (rows(tmp_path / out / "train.jsonl") for out in ("a", "b"))
    assert first == again
    last = [row["subject"] for row in first[-20:]]
    assert 3 <= last.count("algebra") <= 17


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "cannot be read as JSON"),
        ("[1]", "it is a JSON list, expected an object with problem, level, type, solution"),
        (problem(solution=None), "solution is None, expected text"),
        (problem(problem=" "), "problem is ' ', expected text"),
        (problem(level=3), "level is 3, expected text"),
        (problem(solution="It is 2."), "cannot read the answer of its solution (no answer)"),
        (problem(solution="\\boxed{2"), "(unclosed answer)"),
        (problem(solution="\\boxed{5} or 6"), "(two answers)"),
    ],
)
def test_a_bad_file_is_one_error_that_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: Any, said: str
) -> None:
    source = write(tmp_path / "MATH", geometry_12=content)
    assert math_data.main([str(source), str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(source / "train" / "geometry" / "12.json") in line
    assert said in line
    assert not (tmp_path / "out").exists()


def test_unread_problems_are_left_out_when_that_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "MATH", geometry_12=problem(solution="It is 2."))
    arguments = [str(source), str(tmp_path / "out"), "--leave-out-unread"]
    assert math_data.main(arguments) == 0
    said = capsys.readouterr().out
    assert "test.jsonl: 1 of 2 problems" in said
    assert f"left out: {source}/test/geometry/12.json (no answer)" in said
    assert len(rows(tmp_path / "out" / "test.jsonl")) == 1


def test_long_problems_are_left_out_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "MATH", geometry_12=problem(problem="[asy]" * 20))
    assert math_data.main([str(source), str(tmp_path / "out"), "--longest", "99"]) == 0
    assert "train.jsonl: 1 of 2 problems; 1 are too long" in capsys.readouterr().out
    assert math_data.main([str(source), str(tmp_path / "out"), "--longest", "100"]) == 0
    assert "train.jsonl: 2 of 2 problems\n" in capsys.readouterr().out


def test_a_folder_that_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").write_text("a file", encoding="utf-8")
    source = write(tmp_path / "MATH")
    assert math_data.main([str(source), str(tmp_path / "out")]) == 2
    assert f"{tmp_path}/out: cannot write here" in capsys.readouterr().err


def test_a_folder_without_problems(tmp_path: Path) -> None:
    with pytest.raises(math_data.MathDataError, match=r"train: it holds no SUBJECT/N\.json"):
        math_data.read_split(tmp_path / "train")
