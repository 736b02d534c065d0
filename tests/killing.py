"""Ends of runs: what one leaves in its workdir, while it runs or after it, and how one dies."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tiny_experiment

from rft_jax.checkpoint import integrity as checkpoint_health
from rft_jax.observe import log as metrics

RUNS = ("sft", "rft", "online_rft")


def lines_of(folder: Path) -> int:
    """Whole lines of a run's metrics so far."""
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def rollouts_of(folder: Path) -> int:
    return len(list((folder / "rollouts").glob("*.jsonl")))


def being_saved(folder: Path) -> bool:
    """A checkpoint is half written."""
    return any((folder / "checkpoints").glob("*tmp*"))


def current(workdir: Path) -> Path | None:
    """The folder of the first run that is not finished."""
    folders = [workdir / name for name in RUNS]
    return next((folder for folder in folders if not (folder / "finished.json").exists()), None)


def newest(folder: Path) -> tuple[int, list[np.ndarray], Any]:
    """Step, arrays (parameters, then the optimizer's) and loop facts of the newest checkpoint."""
    steps = [int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit()]
    path = checkpoint_health.absolute(folder / "checkpoints" / str(max(steps)))
    arrays: list[np.ndarray] = []
    for item in ("params", "training"):
        with ocp.PyTreeCheckpointer() as reader:
            tree = reader.metadata(path / item).item_metadata.tree
            kinds = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
            arrays += jax.tree.leaves(reader.restore(path / item, restore_args=kinds))
    host = json.loads((path / "host" / "metadata").read_text())
    del host["counters"]["seconds"]
    return max(steps), arrays, host


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


def assert_same(whole: Path, again: Path, steps: int, runs: Sequence[str] = RUNS) -> None:
    """Parameters, optimizer, metrics, rollouts and evaluations are those of the whole run."""
    for run in runs:
        ours, theirs = newest(again / run), newest(whole / run)
        assert ours[0] == theirs[0] == steps
        assert ours[2] == theirs[2]
        assert [a.dtype for a in ours[1]] == [a.dtype for a in theirs[1]]
        assert [a.tobytes() for a in ours[1]] == [a.tobytes() for a in theirs[1]], run
        logs = [metrics.read(folder / run / "metrics.jsonl") for folder in (again, whole)]
        assert tiny_experiment.lasting(logs[0]) == tiny_experiment.lasting(logs[1])
        assert Counter((line["kind"], line["step"]) for line in logs[0]).most_common(1)[0][1] == 1
        for kept in ("rollouts", "evaluation"):
            assert files_in(again / run / kept) == files_in(whole / run / kept), (run, kept)
    assert (again / "report.html").is_file()
    assert not list(again.glob("*.lock*"))


def dies_in(patch: pytest.MonkeyPatch, number: int) -> None:
    """A run dies with all of this step done but its line in the log."""
    write = metrics.MetricsLog.write

    def dies(self: metrics.MetricsLog, kind: metrics.Kind, step: int, values: Any) -> None:
        if (kind, step) == ("train", number):
            raise KeyboardInterrupt
        write(self, kind, step, values)

    patch.setattr(metrics.MetricsLog, "write", dies)
