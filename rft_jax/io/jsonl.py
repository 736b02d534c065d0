"""Reads JSON: files of one object; data and logs of one object a line. Imports no jax."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rft_jax.errors import DataError, ModelError, UserError
from rft_jax.io.paths import Folder

_EXPECTED = "every line must hold one JSON object"

Fields = Mapping[str, type | tuple[type, ...]]
"""Names that every line must have, with the types allowed for each."""


def read_json(path: Folder, kind: type[UserError] = ModelError) -> dict[str, Any]:
    """The object that a file holds. Raises `kind` when it holds none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise kind(
            f"{path}: cannot be read as JSON ({error}): copy or download it again."
        ) from error
    if not isinstance(content, dict):
        raise kind(
            f"{path}: it is a JSON {type(content).__name__}, expected an object: copy or download "
            "it again."
        )
    return content


def data_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """(line number from 1, the row or what is wrong with it) of a file that a user has made.

    A byte order mark in front and blank lines at the end are no rows. Raises OSError.
    """
    blank = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            text = (line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).rstrip()
            if not text:
                blank += 1
                continue
            for gap in range(number - blank, number):
                yield gap, f"the line is blank: {_EXPECTED}"
            blank = 0
            yield number, _object(text)


def _object(line: bytes) -> dict[str, Any] | str:
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return f"byte {error.start + 1} is not UTF-8: save the file as UTF-8"
    except json.JSONDecodeError as error:
        return f"not JSON ({error.msg} at column {error.colno}): {_EXPECTED}"
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, 10,000 brackets
        return f"not JSON to be read here ({error}): {_EXPECTED}"
    if isinstance(value, dict):
        return value
    return f"a JSON {type(value).__name__}, not an object: {_EXPECTED}"


def parse_line(text: str, where: str, fields: Fields) -> dict[str, Any]:
    """One line as a dict that has `fields`. where: `FILE:LINE`, for the message of a DataError."""
    problem = ""
    try:
        line = json.loads(text)
        if not isinstance(line, dict):
            problem = f"{_excerpt(text)} is not a JSON object"
    except (ValueError, RecursionError) as error:
        problem = f"{_excerpt(text)} is not JSON ({getattr(error, 'msg', error)})"
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


def numbered_lines(path: Folder) -> list[tuple[int, str]]:
    """(line number from 1, text) of a log's lines; blank lines are skipped.

    A last line without its newline that is no JSON is what a killed process leaves of a write: it
    is left out.
    """
    # Not splitlines(): it also breaks at separators that JSON allows inside a string.
    texts = path.read_bytes().decode("utf-8-sig", errors="replace").split("\n")
    if not _is_json(texts[-1]):
        texts.pop()
    return [(number, text) for number, text in enumerate(texts, start=1) if text.strip()]


def read_jsonl(path: Folder, fields: Fields) -> list[dict[str, Any]]:
    """All complete lines of a log, each with `fields`. Raises DataError for any damaged line."""
    return [parse_line(text, f"{path}:{number}", fields) for number, text in numbered_lines(path)]


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _excerpt(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
