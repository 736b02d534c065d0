"""Reading logs, whole and damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from rft_jax.errors import DataError, ModelError
from rft_jax.io.jsonl import Fields, numbered_lines, read_json, read_jsonl

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


def test_a_log_that_an_editor_saved_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, '\ufeff{"step": 1, "note": null}\r\n{"step": 2, "note": null}\r\n\r\n')
    assert [one["step"] for one in read_jsonl(path, FIELDS)] == [1, 2]


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


UNREADABLE = {
    "brackets": (b"[" * 200_000, "nested more than 100 deep"),
    "objects": (b'{"a":' * 150 + b"1" + b"}" * 150, "nested more than 100 deep"),
    "digits": (b'{"a": ' + b"9" * 5000 + b"}", "Exceeds the limit"),
    "two values": (b'{"a": 1, "a": 2}', "key 'a' has two values"),
    "half a pair": (b'{"a": "\\ud800"}', "half a surrogate pair is no text"),
    "half a pair as a key": (b'{"\\uD800": 1}', "half a surrogate pair is no text"),
    "latin-1": (b'{"a": "\xe9"}', "'utf-8' codec can't decode byte 0xe9"),
    "utf-16": ('{"a": 1}'.encode("utf-16"), "can't decode byte"),
    "zeros": (bytes(20), "Expecting value"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_what_cannot_be_read_is_one_line(tmp_path: Path, case: str) -> None:
    content, said = UNREADABLE[case]
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(ModelError) as of_file:
        read_json(path)
    path.write_bytes(content + b"\n")
    with pytest.raises(DataError) as of_log:
        read_jsonl(path, {})
    for error in (of_file, of_log):
        assert str(error.value).startswith(str(path))
        assert said in str(error.value)
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    "text",
    [
        '\ufeff{"a": 1}',
        '{"a": 1, "a": 1}',
        '{"a": "\\ud83d\\ude00"}',
        '{"a": "\\\\ud800"}',
        '{"a": NaN}',
    ],
)
def test_what_can_be_read(tmp_path: Path, text: str) -> None:
    path = tmp_path / "file.json"
    path.write_text(text, encoding="utf-8")
    assert list(read_json(path)) == ["a"]
    assert len(read_jsonl(path, {})) == 1
