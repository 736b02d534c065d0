"""Reads JSON: files of one object, and logs of one object a line. Imports no jax."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rft_jax.errors import DataError, ModelError, UserError
from rft_jax.io.paths import Folder

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


def parse_line(text: str, where: str, fields: Fields) -> dict[str, Any]:
    """One line as a dict that has `fields`. where: `FILE:LINE`, for the message of a DataError."""
    problem = ""
    try:
        line = json.loads(text)
        if not isinstance(line, dict):
            problem = f"{_excerpt(text)} is not a JSON object"
    except json.JSONDecodeError as error:
        problem = f"{_excerpt(text)} is not JSON ({error.msg})"
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
    """
    # Not splitlines(): it also breaks at separators that JSON allows inside a string.
    texts = path.read_bytes().decode("utf-8", errors="replace").split("\n")
    if grows and not _is_json(texts[-1]):
        texts.pop()
    return [(number, text) for number, text in enumerate(texts, start=1) if text.strip()]


def read_jsonl(path: Folder, fields: Fields, *, grows: bool = False) -> list[dict[str, Any]]:
    """All lines of a log, each with `fields`; grows: as in numbered_lines. Raises DataError for any
    damaged line."""
    lines = numbered_lines(path, grows=grows)
    return [parse_line(text, f"{path}:{number}", fields) for number, text in lines]


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except json.JSONDecodeError:
        return False
    return True


def _excerpt(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
