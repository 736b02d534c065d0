"""Reads JSON: files of one object; data and logs of one object a line. Imports no jax.

Whatever a file holds, it is read, or refused in one line: every file that is not of this process's
own making goes through `parse`.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

from rft_jax.errors import DataError, ModelError, UserError
from rft_jax.io.paths import Folder

_EXPECTED = "every line must hold one JSON object"
_LONGEST = (
    2**26
)  # bytes of a line that a user has made: more is no row, or a device that never ends

Fields = Mapping[str, type | tuple[type, ...]]
"""Names that every line must have, with the types allowed for each."""

JSON = (str, int, float, bool, list, dict, type(None))
"""Of a name that may have any value."""

_DEEPEST = 100
"""Levels of nesting: what is nested deeper cannot be relied on to be written again."""


def parse(text: str | bytes, *, halves: bool = False) -> Any:
    """The value of a JSON text, which may begin with a byte order mark.

    halves: take half a surrogate pair, as rows of outputs may hold one.

    Raises ValueError, in a few words, for what is no JSON or no UTF-8, for text that cannot be
    written as UTF-8, for a key with two values, and for deep nesting.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8")
    text = text.removeprefix("\ufeff")
    try:
        value = json.loads(text, object_pairs_hook=_object)
    except RecursionError as error:
        raise ValueError(f"nested more than {_DEEPEST} deep") from error
    level = [value]
    for _ in range(_DEEPEST):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            break
    else:
        raise ValueError(f"nested more than {_DEEPEST} deep")
    if not halves and ("\\ud" in text or "\\uD" in text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError("half a surrogate pair is no text") from error
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found and found[key] != value:
            raise ValueError(f"key {_excerpt(repr(key))} has two values")
        found[key] = value
    return found


def _inside(value: Any) -> list[Any]:
    """The objects and lists in one."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [item for item in items if isinstance(item, (dict, list))]


def read_json(path: Folder, kind: type[UserError] = ModelError) -> dict[str, Any]:
    """The object that a file holds. Raises `kind` when it holds none."""
    try:
        content = parse(path.read_bytes())
    except (OSError, ValueError) as error:
        raise kind(
            f"{path}: cannot be read as JSON ({error}): copy or download it again."
        ) from error
    if not isinstance(content, dict):
        raise kind(
            f"{path}: it is a JSON {type(content).__name__}, expected an object: copy or download "
            "it again."
        )
    return content


def data_rows(path: Path) -> Generator[tuple[int, dict[str, Any] | str], None, None]:
    """(line number from 1, the row or what is wrong with it) of a file that a user has made.

    A byte order mark in front and blank lines at the end are no rows. Raises OSError.
    """
    blank = 0
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(_LONGEST), b""), start=1):
            if len(line) == _LONGEST:
                raise DataError(
                    f"{path}:{number}: the line has {_LONGEST:,} bytes or more: {_EXPECTED}."
                )
            text = (line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).rstrip()
            if not text:
                blank += 1
                continue
            for gap in range(number - blank, number):
                yield gap, f"the line is blank: {_EXPECTED}"
            blank = 0
            yield number, _row(text)


def _row(line: bytes) -> dict[str, Any] | str:
    try:
        if line.startswith(codecs.BOM_UTF8):
            return f"not JSON (a byte order mark stands only in front of a file): {_EXPECTED}"
        value = parse(line, halves=True)
    except UnicodeDecodeError as error:
        return f"byte {error.start + 1} is not UTF-8: save the file as UTF-8"
    except json.JSONDecodeError as error:
        return f"not JSON ({error.msg} at column {error.colno}): {_EXPECTED}"
    except ValueError as error:  # a number of 5,000 digits, 10,000 brackets
        return f"not JSON to be read here ({error}): {_EXPECTED}"
    if isinstance(value, dict):
        return value
    return f"a JSON {type(value).__name__}, not an object: {_EXPECTED}"


def parse_line(text: str, where: str, fields: Fields) -> dict[str, Any]:
    """One line as a dict that has `fields`. where: `FILE:LINE`, for the message of a DataError."""
    problem = ""
    try:
        line = parse(text)
        if not isinstance(line, dict):
            problem = f"{_excerpt(text)} is not a JSON object"
    except ValueError as error:
        problem = f"{_excerpt(text)} is not JSON ({error})"
    if problem:
        raise DataError(f"{where}: {problem}: remove the line.")
    for name, types in fields.items():
        allowed = types if isinstance(types, tuple) else (types,)
        value = line.get(name)
        if name not in line:
            problem = "missing"
        # bool is a subclass of int in Python, and yet True is no step.
        elif not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
            expected = " or ".join("null" if t is type(None) else t.__name__ for t in allowed)
            problem = f"{_excerpt(repr(value))}, expected {expected}"
        if problem:
            raise DataError(f"{where}: field {name!r} is {problem}: remove the line.")
    return line


def numbered_lines(path: Folder, *, grows: bool = False) -> list[tuple[int, str]]:
    """(line number from 1, text) of a log's lines; blank lines are skipped.

    grows: lines are appended to the file; a last one without its newline that is no JSON is what a
    killed process leaves of a write, and is left out. A file written at once has no such line.
    Raises DataError for a line that is not UTF-8.
    """
    # Not splitlines(): it also breaks at separators that JSON allows inside a string.
    lines = path.read_bytes().split(b"\n")
    if grows and not _is_json(lines[-1]):
        lines.pop()
    texts = []
    for number, line in enumerate(lines, start=1):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{path}:{number}: not UTF-8 ({error}): remove the line.") from error
        if text.strip():
            texts.append((number, text))
    return texts


def read_jsonl(path: Folder, fields: Fields, *, grows: bool = False) -> list[dict[str, Any]]:
    """All lines of a log, each with `fields`; grows: as in numbered_lines. Raises DataError for any
    damaged line."""
    lines = numbered_lines(path, grows=grows)
    return [parse_line(text, f"{path}:{number}", fields) for number, text in lines]


def _is_json(text: bytes) -> bool:
    try:
        parse(text)
    except ValueError:
        return False
    return True


def _excerpt(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
