"""Whether a checkpoint is whole, by a record of its files that is in it before it counts. No jax.

STEP/files.json: {"step": int, "run": str | null, "accuracy": float | null, "measure": str,
"files": {PATH: [bytes, crc32 | null]}}, paths within STEP; `run` is the id in RUN/config.json,
`measure` the checkpoint.measure that `accuracy` is of. By step and run a checkpoint is known where
its folder was renamed or copied; versions up to 0.1.0 wrote neither, and no measure. Orbax renames
a finished folder (in a bucket: adds a mark to it) after the record is written, so a folder without
one was never finished. crc32 is null in a bucket, whose store guards contents by itself; on a disk
a flipped byte in a matrix would be restored without a word.
"""

from __future__ import annotations

import json
import logging
import math
import re
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from etils import epath

from rft_jax.config import CheckpointConfig
from rft_jax.errors import CheckpointError
from rft_jax.io.jsonl import parse
from rft_jax.io.paths import Folder, in_bucket

logger = logging.getLogger(__name__)

RECORD = "files.json"

_COMMITTED = "commit_success.txt"
_CHANGING = ("_CHECKPOINT_METADATA", _COMMITTED)  # Orbax still writes them after the record
_STEP = re.compile(r"0|[1-9][0-9]*")
_THREADS = 4  # a training host has other work
_AT_A_TIME = 2**24  # bytes


class Record(NamedTuple):
    """files: (bytes, crc32 or None) by path; accuracy: on validation, at that step, by
    `measure`; step, run: whose checkpoint it is, None where an older version did not say."""

    files: dict[str, tuple[int, int | None]]
    accuracy: float | None
    step: int | None
    run: str | None
    measure: str = CheckpointConfig.measure


class Damaged(NamedTuple):
    """A checkpoint that is not whole, and why."""

    step: int
    reason: str


class Found(NamedTuple):
    """The newest whole checkpoint, None where there is none at all, and the damaged newer ones."""

    step: int | None
    damaged: tuple[Damaged, ...] = ()


def absolute(folder: Folder) -> epath.Path:
    """The folder with its full path, for a disk and for a bucket."""
    path = epath.Path(folder)
    return path if in_bucket(path) else path.absolute()


def steps(folder: Folder) -> list[int]:
    """The steps that have a checkpoint in `folder`, whole or damaged, in order.

    Not those that Orbax never finished: it clears them away itself.
    """
    path = epath.Path(folder)
    if not path.is_dir():
        return []
    named = [inner for inner in path.iterdir() if _STEP.fullmatch(inner.name) and inner.is_dir()]
    if in_bucket(path):
        named = [inner for inner in named if (inner / _COMMITTED).exists()]
    return sorted(int(inner.name) for inner in named)


def write_record(
    path: Folder,
    accuracy: float | None,
    step: int | None = None,
    measure: str = CheckpointConfig.measure,
) -> None:
    """Record the files of a checkpoint in the folder `path`, which nobody writes to any more.

    Args:
        path: read once, every file of it, on a disk.
        accuracy: as in Record; one that is not finite is left out.
        step: None for the one that the folder is named by.
        measure: what the accuracy is of.
    """
    path = epath.Path(path)
    names = [name for name in _files(path) if name not in (*_CHANGING, RECORD)]

    def facts(name: str) -> tuple[int, int | None]:
        file = path / name
        return file.stat().length, None if in_bucket(file) else _crc32(file)

    with ThreadPoolExecutor(_THREADS) as pool:
        files = dict(zip(names, pool.map(facts, names), strict=True))
    known = accuracy is not None and math.isfinite(accuracy)
    content = {
        "step": int(path.name) if step is None else step,
        "run": _run_of(path),
        "accuracy": accuracy if known else None,
        "measure": measure,
        "files": files,
    }
    (path / RECORD).write_text(json.dumps(content) + "\n", encoding="utf-8")


def problem(path: Folder, part: str = "", *, contents: bool = True) -> str | None:
    """What is wrong with the checkpoint in the folder `path`; None if it is whole.

    Args:
        part: the only item of it to look at, such as `params`; empty for all.
        contents: read the files too, rather than only look at their sizes.
    """
    path = epath.Path(path)
    try:
        record = _read(path)
    except FileNotFoundError:
        return f"{RECORD} is missing: it is half written"
    except (ValueError, OSError) as error:
        return f"{RECORD} cannot be read: {error}"
    if elsewhere := _misplaced(path, record):
        return elsewhere
    inside = part and f"{part}/"
    files = {name: facts for name, facts in record.files.items() if name.startswith(inside)}
    if not files:
        return f"{part} is missing"

    def check(name: str) -> str | None:
        size, crc = files[name]
        try:
            length = path.joinpath(name).stat().length
            if length != size:
                return f"{name} has {length:,} bytes instead of {size:,}"
            if contents and crc is not None and _crc32(path / name) != crc:
                return f"{name} holds other bytes than were written"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
        return None

    with ThreadPoolExecutor(_THREADS) as pool:
        return next((reason for reason in pool.map(check, sorted(files)) if reason), None)


def newest_whole(folder: Folder) -> Found:
    """The newest checkpoint in `folder` that is whole. Changes nothing.

    Raises CheckpointError, naming all, when there are checkpoints and none is whole.
    """
    damaged: list[Damaged] = []
    for step in reversed(steps(folder)):
        reason = problem(epath.Path(folder) / str(step))
        if reason is None:
            return Found(step, tuple(damaged))
        damaged.append(Damaged(step, reason))
    if damaged:
        listed = "; ".join(f"{step} ({reason})" for step, reason in damaged)
        raise CheckpointError(
            f"{folder}: no checkpoint here is whole: {listed}: bring the files back, or start over "
            "with another --workdir."
        )
    return Found(None)


def recover(folder: Folder) -> int | None:
    """The step that a run with these checkpoints resumes from, None for its start.

    Damaged checkpoints that are newer are warned of and renamed, so that their steps can be saved
    again. To be called by one process, before any opens the folder. Raises as newest_whole does.
    """
    newest, damaged = newest_whole(folder)
    for step, reason in damaged:
        kept_as = set_aside(folder, step)
        logger.warning(
            "%s: this checkpoint is damaged (%s): it is kept as %s, and the run resumes from step "
            "%d",
            epath.Path(folder) / str(step), reason, kept_as.name, newest,
        )  # fmt: skip
    return newest


def set_aside(folder: Folder, step: int) -> epath.Path:
    """Rename the checkpoint of a step to `damaged-STEP`, or `damaged-STEP-2` and on."""
    path = epath.Path(folder)
    aside, number = path / f"damaged-{step}", 1
    while aside.exists():
        number += 1
        aside = path / f"damaged-{step}-{number}"
    return path.joinpath(str(step)).rename(aside)


def accuracies(folder: Folder, measure: str = "") -> dict[int, float]:
    """By step, of the checkpoints in `folder` that were evaluated and have a readable record.

    measure: only by that one; empty for that of the newest of them, as a resumed run may have
    another.
    """
    known, last = dict[int, tuple[str, float]](), ""
    for step in steps(folder):
        path = epath.Path(folder) / str(step)
        try:
            record = _read(path)
        except (ValueError, OSError):
            continue  # damaged, which shows when it is to be restored
        if record.accuracy is not None and not _misplaced(path, record):
            known[step] = record.measure, record.accuracy
            last = record.measure
    return {step: value for step, (of, value) in known.items() if of == (measure or last)}


def best(folder: Folder) -> int:
    """The step of the checkpoint with the highest accuracy, the latest of several.

    Raises CheckpointError when none has one.
    """
    known = accuracies(folder)
    if not known:
        raise CheckpointError(
            f"{folder}: no checkpoint here was evaluated: set evaluation.every_steps and "
            "checkpoint.keep_best in the run that makes them, or name one by its step."
        )
    return max(known, key=lambda step: (known[step], step))


def _read(path: epath.Path) -> Record:
    """The record of a checkpoint; ValueError when it is damaged, OSError when it is not there."""
    content = parse((path / RECORD).read_bytes())
    if not isinstance(content, dict) or not isinstance(content.get("files"), dict):
        raise ValueError("it holds no files")
    files: dict[str, tuple[int, int | None]] = {}
    for name, facts in content["files"].items():
        match facts:
            case [int(size), int() | None as crc]:
                files[name] = (size, crc)
            case _:
                raise ValueError(f"{name} is {facts}, expected a size and a crc32")
    accuracy = content.get("accuracy")
    if not isinstance(accuracy, int | float | None):
        raise ValueError(f"accuracy is {accuracy!r}, expected a number")
    measure = content.get("measure", CheckpointConfig.measure)
    return Record(files, accuracy, content.get("step"), content.get("run"), measure)


def _misplaced(path: epath.Path, record: Record) -> str | None:
    """What is wrong with the place of a checkpoint; None where that is its own."""
    if record.step is not None and str(record.step) != path.name:
        return f"it is that of step {record.step}: the folder was renamed"
    run = _run_of(path)
    if record.run is not None and run is not None and record.run != run:
        return f"it is of another run, {record.run}, than config.json here, {run}"
    return None


def _run_of(path: epath.Path) -> str | None:
    """The id of the run that a folder of a checkpoint lies in, where config.json has one."""
    try:
        run = parse((path.parent.parent / "config.json").read_bytes()).get("id")
    except (OSError, ValueError, AttributeError):
        return None
    return run if isinstance(run, str) else None


def _files(path: epath.Path, prefix: str = "") -> Iterator[str]:
    """The files in a folder and the folders in it, by their path in it."""
    for inner in sorted(path.iterdir(), key=lambda inner: inner.name):
        name = f"{prefix}{inner.name}"
        if inner.is_dir():
            yield from _files(inner, f"{name}/")
        else:
            yield name


def _crc32(path: epath.Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while data := file.read(_AT_A_TIME):
            crc = zlib.crc32(data, crc)
    return crc
