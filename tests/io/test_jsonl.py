"""Reading logs, whole and damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from rft_jax.errors import DataError
from rft_jax.io.jsonl import Fields, numbered_lines, read_jsonl

FIELDS: Fields = {"step": int, "note": (str, type(None))}


def write(folder: Path, text: str) -> Path:
    path = folder / "log.jsonl"
    path.write_text(text, encoding="utf-8")
    return path


def test_lines_are_read_and_blank_ones_skipped(tmp_path: Path) -> None:
    path = write(tmp_path, '{"step": 1, "note": "a\u2028b"}\n\n{"step": 2, "note": null, "x": 3}\n')
    assert read_jsonl(path, FIELDS) == [
        {"step": 1, "note": "a\u2028b"},
        {"step": 2, "note": None, "x": 3},
    ]
    assert [number for number, _ in numbered_lines(path)] == [1, 3]


@pytest.mark.parametrize("cut", [1, 10, 24])
def test_a_half_written_last_line_is_left_out(tmp_path: Path, cut: int) -> None:
    line = '{"step": 2, "note": null}'
    path = write(tmp_path, '{"step": 1, "note": null}\n' + line[:cut])
    assert [one["step"] for one in read_jsonl(path, FIELDS, grows=True)] == [1]
    with pytest.raises(
        DataError, match=r"log\.jsonl:2: .* is not JSON"
    ):  # of a file written at once
        read_jsonl(path, FIELDS)


def test_a_last_line_that_only_lacks_its_newline_counts(tmp_path: Path) -> None:
    assert len(read_jsonl(write(tmp_path, '{"step": 1, "note": null}'), FIELDS)) == 1
    assert read_jsonl(write(tmp_path, ""), FIELDS) == []


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("{", r"log\.jsonl:2: \{ is not JSON \(.*\): remove the line\."),
        ("[1]", r"log\.jsonl:2: \[1\] is not a JSON object: remove the line\."),
        ('{"step": 1}', r"log\.jsonl:2: field 'note' is missing: remove the line\."),
        ('{"step": "1", "note": null}', r"field 'step' is '1', expected int: remove the line\."),
        ('{"step": true, "note": null}', "field 'step' is True, expected int"),
        ('{"step": 1, "note": 2}', "field 'note' is 2, expected str or null"),
        ("x" * 100, f"{'x' * 57}" + r"\.\.\. is not JSON"),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, line: str, text: str) -> None:
    path = write(tmp_path, '{"step": 1, "note": null}\n' + line + "\n")
    with pytest.raises(DataError, match=text):
        read_jsonl(path, FIELDS)
