"""Questions from TFDS (`tfds:NAME/SPLIT`), JSONL files (`jsonl:PATH`) and the tasks of
reasoning-gym (`reasoning_gym:NAME?size=N&seed=N`), each with a slice if wanted."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from rft_jax.errors import DataError, suggest
from rft_jax.io.jsonl import data_rows
from rft_jax.types import Question

OWN_DATA = "arithmetic_problems"
"""The TFDS data set that this project generates (arithmetic_builder.py)."""

_SOURCE = re.compile(r"(?P<kind>tfds|jsonl|reasoning_gym):(?P<target>.+?)(?P<slice>\[[^\[\]]*\])?")
_SLICE = re.compile(r"\[(-?\d+)?:(-?\d+)?\]")
_MARK = "####"
_OWN = ("question", "answer", "solution")


def load(
    source: str, data_dir: str = "", *, columns: bool = False, any_answer: bool = False
) -> tuple[Question, ...]:
    """The questions of a source; an id is the row number in the whole source, slice or not.

    Args:
        source: `tfds:NAME/SPLIT`, `jsonl:PATH` or `reasoning_gym:NAME?size=N&seed=N` (and further
            settings of the task), followed by a slice such as `[:7000]` if wanted. Paths are
            relative to the working directory.
        data_dir: folder of prepared TFDS data; empty for TFDS's own default.
        columns: keep the columns other than question, answer and solution.
        any_answer: an answer may be any JSON value, not only text.

    Raises DataError.
    """
    named, reading = _SOURCE.fullmatch(source), (columns, any_answer)
    if not named:
        raise DataError(
            f"source {source!r} is not understood: write tfds:NAME/SPLIT, jsonl:PATH or "
            "reasoning_gym:NAME?size=N&seed=N, with a slice such as [:7000] if wanted."
        )
    if named["kind"] == "jsonl":
        questions = _jsonl_questions(Path(os.path.expanduser(named["target"])), reading)
        return tuple(questions[row] for row in _rows(source, named["slice"], len(questions)))
    if named["kind"] == "reasoning_gym":
        entries = _generated(source, named["target"])
        rows = _rows(source, named["slice"], len(entries))
        return tuple(_of_task(row, entries[row], f"{source}: row {row}", reading) for row in rows)
    name, _, split = named["target"].rpartition("/")
    if not name or not split:
        raise DataError(f"source {source!r} names no split: write tfds:NAME/SPLIT.")
    with _tfds(name, data_dir):
        table = _tfds_table(name, split, data_dir)
        rows = _rows(source, named["slice"], len(table))
        records = table.__getitems__(list(rows))
    return tuple(
        _question(row, _decoded(record), f"tfds:{name}/{split}: row {row}", reading)
        for row, record in zip(rows, records, strict=True)
    )


def _rows(source: str, written: str | None, count: int) -> range:
    """The rows a slice takes of `count`; its bounds must exist."""
    bounds = _SLICE.fullmatch(written or "[:]")
    if not bounds:
        raise DataError(
            f"source {source!r}: the slice {written} is not understood: write [START:STOP] in "
            "whole rows; either may be left out."
        )
    start, stop = (None if bound is None else int(bound) for bound in bounds.groups())
    for bound in (start, stop):
        if bound is not None and abs(bound) > count:
            raise DataError(
                f"source {source!r}: the slice names row {bound} and there are {count} rows: keep "
                "it within them."
            )
    rows = range(count)[start:stop]
    if not rows:
        raise DataError(f"source {source!r} is empty: it takes 0 of {count} rows; name some.")
    return rows


def _question(
    row: int, record: Mapping[str, Any], where: str, reading: tuple[bool, bool]
) -> Question:
    """One row as a Question. An `answer` with a `####` mark is a GSM8K solution."""
    text = _text(record, "question", where)
    solution = _text(record, "solution", where) if "solution" in record else None
    with_columns, any_answer = reading
    columns = {name: record[name] for name in record if name not in _OWN} if with_columns else {}
    if any_answer and "answer" in record and not isinstance(record["answer"], str):
        return Question(row, text, record["answer"], solution, columns)
    answer = _text(record, "answer", where)
    if _MARK not in answer:
        return Question(row, text, answer.strip(), solution, columns)
    if answer.count(_MARK) > 1:
        raise DataError(
            f"{where}: answer has {answer.count(_MARK)} {_MARK} marks: keep the one before the "
            "final answer."
        )
    if solution is not None:
        raise DataError(
            f"{where}: answer is a worked solution (it has a {_MARK} mark) and solution is given "
            "too: keep one of them."
        )
    reference = answer.partition(_MARK)[2].replace(",", "").strip()
    if not reference:
        raise DataError(f"{where}: answer has nothing after {_MARK}: write the final answer there.")
    return Question(row, text, reference, answer, columns)


def _text(record: Mapping[str, Any], field: str, where: str) -> str:
    """A field that must be text and not empty."""
    if field not in record:
        raise DataError(
            f"{where}: {field} is missing: a row needs question and answer, and may have solution "
            f"(found: {', '.join(sorted(record)) or 'no field'})."
        )
    value = record[field]
    if not isinstance(value, str):
        raise DataError(
            f"{where}: {field} is of type {type(value).__name__}: it must be text, in quotes"
            + (" (only a verifier of your own reads other answers)." if field == "answer" else ".")
        )
    if not value.strip():
        raise DataError(f"{where}: {field} is empty: fill it in or leave the row out.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: {field} has half of a surrogate pair at character {error.start}, which "
            "UTF-8 cannot hold: fix the text."
        ) from None
    return value


def _jsonl_questions(path: Path, reading: tuple[bool, bool]) -> list[Question]:
    """Every row of a file, so that a bad row is found wherever the slice lies."""
    try:
        with contextlib.closing(data_rows(path)) as rows:
            return [
                _question(row, _object(content, f"{path}:{number}"), f"{path}:{number}", reading)
                for row, (number, content) in enumerate(rows)
            ]
    except OSError as error:
        raise DataError(
            f"{path}: cannot read the questions ({error.strerror}): give the path of a JSONL file, "
            "relative to the working directory."
        ) from None


def _object(content: dict[str, Any] | str, where: str) -> dict[str, Any]:
    if isinstance(content, str):
        raise DataError(f"{where}: {content}.")
    return content


def _decoded(record: Mapping[str, Any]) -> dict[str, Any]:
    """TFDS gives text as bytes, and lists and numbers as numpy's."""

    def plain(value: Any) -> Any:
        if isinstance(value, bytes):
            return value.decode("utf-8")
        return plain(value.tolist()) if hasattr(value, "tolist") else value

    return {key: plain(value) for key, value in record.items()}


def _generated(source: str, target: str) -> list[dict[str, Any]]:
    """The entries of a task of reasoning-gym, with what its own scores need."""
    try:
        from reasoning_gym.factory import DATASETS, create_dataset
    except ImportError as error:
        raise DataError(
            f"source {source!r} needs reasoning-gym ({error}): "
            'pip install "rft_jax[reasoning-gym]".'
        ) from error
    name, _, query = target.partition("?")
    if name not in DATASETS:
        raise DataError(
            f"source {source!r}: reasoning-gym has no task {name}{suggest(name, DATASETS)}"
        )
    settings = {key: _value(value) for key, value in parse_qsl(query, keep_blank_values=True)}
    for required in ("size", "seed"):
        if type(settings.get(required)) is not int:
            raise DataError(f"source {source!r} names no {required}: write {required}=NUMBER.")
    try:
        entries = list(create_dataset(name, **settings))
    except Exception as error:  # whatever a task thinks of its settings
        raise DataError(f"source {source!r}: {type(error).__name__}: {error}.") from error
    return [entry | {"task": name, "settings": json.dumps(settings)} for entry in entries]


def _of_task(
    row: int, entry: Mapping[str, Any], where: str, reading: tuple[bool, bool]
) -> Question:
    """An entry of a task as a Question; its answer is left as it is, and may be missing."""
    with_columns, any_answer = reading
    answer = entry["answer"]
    if not any_answer:
        answer = _text(entry, "answer", where)
    solution = None if answer is None else f"<answer>{answer}</answer>"
    columns = {name: entry[name] for name in entry if name not in _OWN} if with_columns else {}
    return Question(row, _text(entry, "question", where), answer, solution, columns)


def _value(text: str) -> Any:
    """A setting as JSON, such as 3, true or ["+","-"]; what is none is a text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _tfds_table(name: str, split: str, data_dir: str) -> Any:
    """One split as a random-access table, prepared first if it is not on disk.

    TFDS prepares into a folder of its own and renames it at the end, so that a killed process
    leaves nothing that looks prepared; of two that start together the second finds the name taken
    and reads what the first wrote.
    """
    # Imported here: it takes a third of a second, and JSONL needs none of it.
    import tensorflow_datasets as tfds

    def builder() -> Any:
        folder = os.path.expanduser(data_dir) or None
        if name == OWN_DATA:
            from rft_jax.data.arithmetic_builder import ArithmeticProblems

            return ArithmeticProblems(data_dir=folder, file_format="array_record")
        return tfds.builder(name, data_dir=folder, file_format="array_record")

    data = builder()
    if not data.is_prepared():
        try:
            # Without this TFDS first asks its public bucket, hence the network.
            settings = tfds.download.DownloadConfig(try_download_gcs=False)
            data.download_and_prepare(download_config=settings)
        except OSError:
            data = builder()
            if not data.is_prepared():
                raise
    if split not in data.info.splits:
        raise DataError(
            f"source 'tfds:{name}/{split}': there is no split {split}; choose one of "
            f"{', '.join(data.info.splits)}."
        )
    return data.as_data_source(split)


@contextlib.contextmanager
def _tfds(name: str, data_dir: str) -> Iterator[None]:
    """Around every use of TFDS: keeps it quiet, and makes its many errors one."""
    import tensorflow_datasets as tfds

    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    # absl's logger says INFO lines wherever the program logs at that level.
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        # TFDS prints to stdout, which belongs to the program's own results.
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            yield
    except DataError:
        raise
    except Exception as error:  # TFDS documents none of its errors; the cause is kept.
        raise DataError(_tfds_failure(name, data_dir, error)) from error
    finally:
        logger.setLevel(level)


def _tfds_failure(name: str, data_dir: str, error: Exception) -> str:
    reason = f"{type(error).__name__}: {str(error).strip() or 'no message'}".splitlines()[0]
    if name == OWN_DATA:
        where = data_dir or "the default of TFDS"
        return (
            f"tfds:{name}: cannot be made or read in data_dir, {where} ({reason}): see that it is "
            f"writable and has room, or delete its folder {OWN_DATA}, which is then prepared again."
        )
    if importlib.util.find_spec("tensorflow") is None:
        reason = f"TensorFlow is not installed; {reason}"
    return (
        f"tfds:{name}: TFDS cannot give it ({reason}): its own data sets need TensorFlow "
        "(pip install tensorflow) and, the first time, network; or download the official JSONL "
        "files and name them as jsonl:PATH."
    )
