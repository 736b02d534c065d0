"""`rft-jax verify`: files in, verdicts out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rft_jax.commands.main import main

ROWS = [
    {"reference": "18", "output": "#### 18", "id": 7},
    {"reference": "9 + 9 = 18\n#### 18", "output": "#### 19", "verdict": "old"},
    {"reference": r"\frac{1}{2}", "output": r"\boxed{0.5}"},
    {"reference": "18", "output": "18 \ud800"},
    {"reference": "#### ", "output": "#### 18"},
]


def write(path: Path, rows: list[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def verdicts(path: Path) -> list[tuple[str, str]]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [(row["verdict"], row["reason"]) for row in rows]


def test_a_row_out_for_each_row_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = write(tmp_path / "in.jsonl", list(ROWS)), tmp_path / "out.jsonl"
    assert main(["verify", str(path), "--out", str(out), "--comparison", "exact"]) == 0
    assert verdicts(out) == [
        ("correct", "equal"),
        ("incorrect", "not equal"),
        ("correct", "equal"),
        ("incorrect", "no answer"),
        ("undecided", "reference not understood"),
    ]
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert rows[0] == ROWS[0] | {"verdict": "correct", "reason": "equal"}
    assert [row["output"] for row in rows] == [row["output"] for row in ROWS]
    shown = capsys.readouterr().out
    assert "| correct | equal | 2 | 40.0% |" in shown
    assert "5 rows; correct among decided: 50.0%" in shown
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl", "out.jsonl"]


def test_rows_have_all_that_a_checker_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
from rft_jax.types import Judgement, Verdict

def judge(question, reference, output):
    steps = [(2, 0.5)] if output else ()
    return Judgement(Verdict.CORRECT, "so", answer=output, reward=0.25, steps=steps)
"""
    (tmp_path / "checker_of_steps.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    path = write(tmp_path / "in.jsonl", [{"reference": 1, "output": text} for text in ("one", "")])
    out, name = tmp_path / "out.jsonl", "checker_of_steps:judge"
    assert main(["verify", str(path), "--out", str(out), "--verifier", name]) == 0
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [row.get("steps") for row in rows] == [[[2, 0.5]], None]
    assert [row["reward"] for row in rows] == [0.25, 0.25]


@pytest.mark.slow
def test_many_rows_keep_their_order(tmp_path: Path) -> None:
    rows: list[object] = [
        {"reference": "1", "output": f"#### {number % 3}"} for number in range(10_000)
    ]
    path, out = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    assert (
        main(["verify", str(path), "--out", str(out), "--workers", "2", "--verifier", "hash"]) == 0
    )
    assert [verdict for verdict, _ in verdicts(out)] == [
        "correct" if number % 3 == 1 else "incorrect" for number in range(10_000)
    ]


@pytest.mark.slow
def test_math_is_compared_in_the_workers(tmp_path: Path) -> None:
    row: object = {"reference": r"\sin^2 x + \cos^2 x", "output": r"\boxed{1}"}
    path, out = write(tmp_path / "in.jsonl", [row]), tmp_path / "out.jsonl"
    assert main(["verify", str(path), "--out", str(out), "--comparison", "math"]) == 0
    assert verdicts(out) == [("correct", "equal")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "in.jsonl:2: not JSON ("),
        ("[1]", "in.jsonl:2: a JSON list, not an object: every line must"),
        ('{"output": "x"}', "in.jsonl:2: field 'reference' must be text, it is missing"),
        ('{"reference": 18, "output": "x"}', "in.jsonl:2: field 'reference' must be text, it is i"),
        ("[" * 100_000, "in.jsonl:2: not JSON to be read here ("),
    ],
)
def test_a_malformed_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, message: str
) -> None:
    path, out = write(tmp_path / "in.jsonl", [ROWS[0]]), tmp_path / "out.jsonl"
    path.write_text(path.read_text() + line + "\n")
    assert main(["verify", str(path), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "--skip_bad" in error
    assert not out.exists()
    assert main(["verify", str(path), "--out", str(out), "--skip_bad"]) == 0
    assert verdicts(out) == [("correct", "equal")]
    assert "1 malformed rows skipped" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("end", [b"", b"\n", b"\n\n", b"\r\n \r\n"])
def test_a_byte_order_mark_and_blank_lines_at_the_end_are_no_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], end: bytes
) -> None:
    path, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    row = json.dumps(ROWS[0]).encode()
    path.write_bytes(b"\xef\xbb\xbf" + row + end)
    assert main(["verify", str(path), "--out", str(out)]) == 0
    assert verdicts(out) == [("correct", "equal")]
    path.write_bytes(row + b"\n\n" + row + end)
    assert main(["verify", str(path), "--out", str(out)]) == 2
    assert "in.jsonl:2: the line is blank: every line must hold one" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--out is missing"),
        (["--out", "in.jsonl"], "--out is in.jsonl, the file that is read"),
        (["--out", "no/such/folder.jsonl"], "cannot write here"),
        (["--out", "o", "--verifier", "bxed"], "verifier is 'bxed', which is no rule"),
        (
            ["--out", "o", "--comparison", "fuzzy"],
            "--comparison is 'fuzzy': {exact,math} is expected",
        ),
        (["--out", "o", "--workers", "0"], "workers is 0: it must be at least 1"),
        (["--out", "o", "--tolerance", "1/0"], "--tolerance is '1/0'"),
        (["--out", "o", "--verifer", "hash"], "unknown option --verifer; did you mean --verifier?"),
        (["--out", "o", "--skip_bad", "yes"], "--skip_bad takes no value"),
    ],
)
def test_bad_options(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("in.jsonl"), [ROWS[0]])
    assert main(["verify", "in.jsonl", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert Path("in.jsonl").read_text().count("\n") == 1


def test_no_rows_and_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = write(tmp_path / "empty.jsonl", [])
    assert main(["verify", str(empty), "--out", str(tmp_path / "o")]) == 2
    assert "there is no row to verify" in capsys.readouterr().err
    assert main(["verify", str(tmp_path / "none.jsonl"), "--out", str(tmp_path / "o")]) == 2
    assert "none.jsonl: cannot be read (No such file" in capsys.readouterr().err
