"""The log of a run: metrics.jsonl, one line a step, and its copy for TensorBoard. Imports no jax.

A line is {"step": int, "kind": "train" | "validation" | "test", NAME: number or list of numbers}.
JSON has no NaN and no infinity: both are written as null, and so is a value that is None.
"""

from __future__ import annotations

import json
import math
import os
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rft_jax.errors import UserError
from rft_jax.io.jsonl import read_jsonl
from rft_jax.io.paths import Folder, Mirror, make, write_atomically

Kind = Literal["train", "validation", "test"]
Value = float | int | Sequence[float | int | None] | np.ndarray | np.generic | None
"""A metric: a number, a vector, or None where it is not defined."""


def read(path: Folder) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a half-written last line is left out.

    Raises DataError, naming file and line, for any other damage.
    """
    return read_jsonl(path, {"step": int, "kind": str}, grows=True)


class MetricsLog:
    """Appends to FOLDER/metrics.jsonl and FOLDER/tensorboard.

    Lines of steps after `start_step` come from an attempt that was killed after that checkpoint,
    and their steps will be repeated: the lines are dropped, in one atomic replacement of the file.
    For a log without holes a step's line must be written, and settled, before its checkpoint.

    Args:
        folder: of the run.
        start_step: the step whose checkpoint the run starts from, 0 for none.
    """

    def __init__(self, folder: Folder, start_step: int) -> None:
        make(folder)
        self._mirror = Mirror(folder)
        path = self._mirror.fetch("metrics.jsonl")
        self.before = _drop_after(path, start_step)
        """The lines of earlier attempts that remain."""
        self._written = {(line["kind"], line["step"]) for line in self.before}
        self._file = path.open("a", encoding="utf-8")
        self._board = _Board(self._mirror.local / "tensorboard", start_step + 1)

    def has(self, kind: Kind, step: int) -> bool:
        """True when that line is in the log, so that a resumed run need not repeat it."""
        return (kind, step) in self._written

    def write(self, kind: Kind, step: int, values: Mapping[str, Value]) -> None:
        """Adds one line, handed to the operating system when this returns.

        A line of that kind and step that is there already stays, and the new one is left out: a
        resumed run repeats the evaluation of the step it starts from.

        Args:
            kind: of the line.
            step: of the run.
            values: by name; arrays must be on the host. A vector goes to TensorBoard as one scalar
                for each place, `NAME/00`, `NAME/01`, ...

        Raises:
            UserError: a value is neither a number nor a vector.
        """
        if self.has(kind, step):
            return
        line = {name: _plain(name, value) for name, value in values.items()}
        text = json.dumps({"step": step, "kind": kind, **line}, allow_nan=False)
        self._file.write(text + "\n")
        self._file.flush()
        self._written.add((kind, step))
        scalars = dict[str, float | None]()
        for name, value in line.items():
            if isinstance(value, list):
                scalars |= {f"{name}/{place:02d}": number for place, number in enumerate(value)}
            else:
                scalars[name] = value
        self._board.write(step, {f"{kind}/{tag}": n for tag, n in scalars.items() if n is not None})
        self._mirror.copy_soon()

    def settle(self) -> None:
        """Returns when all lines are in FOLDER: in a bucket they arrive a little later."""
        self._mirror.copy()

    def close(self) -> None:
        """Closes both logs."""
        self._file.close()
        self._board.close()
        self._mirror.close()


class _Board:
    """A file of TensorBoard's events, in its own format.

    Its EventFileWriter, and tensorboardX, import TensorFlow or torch wherever one is installed:
    seconds of each start.

    Args:
        folder: of the file; its name is what TensorBoard looks for.
        first_step: TensorBoard hides older events from that step on.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        # Here: those who only read the log do without.
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        host = f"{socket.gethostname()}.{os.getpid()}"
        path = folder / f"events.out.tfevents.{time.time():.6f}.{host}"
        self._event = Event
        self._records = RecordWriter(path.open("wb"))
        self._add(file_version="brain.Event:2")
        self._add(step=first_step, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds numbers by tag."""
        values = [{"tag": tag, "simple_value": number} for tag, number in scalars.items()]
        self._add(step=step, summary={"value": values})

    def close(self) -> None:
        self._records.close()

    def _add(self, **fields: Any) -> None:
        self._records.write(self._event(wall_time=time.time(), **fields).SerializeToString())
        self._records.flush()


def _drop_after(path: Path, step: int) -> list[dict[str, Any]]:
    """Drops lines of steps after `step`, and a half-written one; those that remain."""
    if not path.exists():
        return []
    kept = [line for line in read(path) if line["step"] <= step]
    text = "".join(json.dumps(line) + "\n" for line in kept)
    if text != path.read_text(encoding="utf-8", errors="replace"):
        write_atomically(path, text)
    return kept


def _plain(name: str, value: object) -> float | int | list[float | int | None] | None:
    """A value for JSON: Python numbers, None for what is not finite, lists of these."""
    if name in ("step", "kind"):
        raise UserError(f"a metric is named {name!r}, which every line has: rename it.")
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_number(name, item) for item in value]
    return _number(name, value)


def _number(name: str, value: object) -> float | int | None:
    if value is None:
        return None
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    raise UserError(
        f"metric {name!r} is {value!r} ({type(value).__name__}): it must be a number or a flat "
        "list of numbers on the host."
    )
