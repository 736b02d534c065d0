"""Reads the runs of a workdir. What is missing or damaged becomes a stated gap of its run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rft_jax.errors import DataError, UserError
from rft_jax.io.jsonl import Fields, numbered_lines, parse_line, read_jsonl
from rft_jax.io.paths import Folder

OUTPUTS_SHOWN = 200
"""Sampled outputs of a run that the report shows, spread evenly over its rollouts."""

_ROLLOUTS_READ = 40
_QUESTION_FIELDS: Fields = {
    "question_id": int,
    "greedy_correct": (bool, type(None)),
    "num_samples": int,
    "num_correct": int,
}
_OUTPUT_FIELDS: Fields = {
    "question_id": int,
    "sample_index": int,
    "step": int,
    "text": str,
    "tokens": list,
    "finished": bool,
    "verdict": str,
    "reason": str,
    "question": str,
    "answer": str,
}


@dataclass(frozen=True)
class Run:
    """What a run left behind.

    info: config.json (name, config, versions, git_commit, device), empty where it is unreadable.
    metrics: lines of metrics.jsonl in order of their steps. final: the line of its last evaluation,
    on test where there is one. split: what that was made on, "test" or "validation", or "".
    questions: the last evaluation's lines by question id. gaps: sentences on what cannot be shown.
    """

    name: str
    info: dict[str, Any]
    metrics: tuple[dict[str, Any], ...]
    final: dict[str, Any]
    split: str
    questions: dict[int, dict[str, Any]]
    gaps: tuple[str, ...]

    @property
    def config(self) -> dict[str, Any]:
        """The resolved settings."""
        config = self.info.get("config")
        return config if isinstance(config, dict) else {}

    @property
    def method(self) -> str:
        """sft, rft or online_rft; empty where config.json cannot be read."""
        return str(self.config.get("method", ""))

    def last(self, name: str) -> float | None:
        """The last value of a metric over all lines, None where there is none."""
        lines = (line for line in reversed(self.metrics) if is_number(line, name))
        return next((float(line[name]) for line in lines), None)

    def total(self, name: str, kinds: Sequence[str] = ("train",)) -> float:
        """The sum of a metric over the lines of those kinds."""
        lines = (line for line in self.metrics if line["kind"] in kinds and is_number(line, name))
        return sum((float(line[name]) for line in lines), start=0.0)

    def counted(self, name: str) -> float:
        """The sum of a train counter that starts at zero again whenever the run resumes."""
        values = [value for (value,) in self.series("train", (name,))]
        before = [0.0, *values[:-1]]
        return sum((v - b if v >= b else v for v, b in zip(values, before, strict=True)), start=0.0)

    def series(self, kind: str, names: Sequence[str]) -> list[tuple[float, ...]]:
        """(value of each name) for the lines of a kind that have a number for all of them."""
        return [
            tuple(float(line[name]) for name in names)
            for line in self.metrics
            if line["kind"] == kind and all(is_number(line, name) for name in names)
        ]


def is_number(line: dict[str, Any], name: str) -> bool:
    """True when the line has a number (not null, not a list) of that name."""
    return isinstance(line.get(name), int | float)


def load_runs(workdir: Folder) -> list[Run]:
    """The runs of a workdir, in the order of WORKDIR/experiment.json or else by name.

    Raises UserError where the folder or any run is missing, or experiment.json is damaged.
    """
    if not workdir.is_dir():
        raise UserError(
            f"{workdir} is not a folder: give the workdir of an experiment, such as runs/NAME."
        )
    found = sorted(path.parent.name for path in workdir.glob("*/config.json"))
    order = _experiment_order(workdir)
    # Runs that are not (or no longer) in the experiment file come last.
    names = [*order, *(name for name in found if name not in order)]
    if not found:
        raise UserError(
            f"{workdir} holds no run (no RUN/config.json): run the experiment first, or name the "
            "workdir that it wrote to."
        )
    return [_load_run(workdir / name) for name in names]


def _experiment_order(workdir: Folder) -> list[str]:
    path = workdir / "experiment.json"
    if not path.exists():
        return []
    try:
        names = json.loads(path.read_text(encoding="utf-8"))["runs"]
    except (ValueError, KeyError, TypeError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(
            f'{path} does not read {{"runs": [NAME, ...]}}: remove it (runs are then sorted by '
            "name) or run the experiment again."
        )
    return list(dict.fromkeys(names))


def _load_run(folder: Folder) -> Run:
    name, gaps = folder.name, []
    if not (folder / "config.json").exists():
        return Run(name, {}, (), {}, "", {}, (f"{name}: not started.",))
    try:
        info = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if not isinstance(info, dict):
            raise ValueError("no object")
    except ValueError:
        gaps.append(f"{name}: {folder / 'config.json'} is not a JSON object: no settings shown.")
        info = {}

    metrics: list[dict[str, Any]] = []
    if (folder / "metrics.jsonl").exists():
        try:
            metrics = read_jsonl(folder / "metrics.jsonl", {"step": int, "kind": str})
        except DataError as error:
            gaps.append(f"{name}: no metrics shown. {error}")
    else:
        gaps.append(f"{name}: no metrics.jsonl: no curves shown.")

    evaluations = [line for line in metrics if line["kind"] in ("test", "validation")]
    tests = [line for line in evaluations if line["kind"] == "test"]
    final = (tests or evaluations or [{}])[-1]
    split = str(final.get("kind", ""))
    if metrics and not final:
        gaps.append(f"{name}: no evaluation: no accuracy shown.")
    questions: dict[int, dict[str, Any]] = {}
    if final:
        path = folder / "evaluation" / (
            "test.jsonl" if split == "test" else f"validation-{final['step']:06d}.jsonl"
        )  # fmt: skip
        try:
            questions = _load_questions(path)
        except FileNotFoundError:
            gaps.append(f"{name}: {path} is missing: no paired differences shown.")
        except DataError as error:
            gaps.append(f"{name}: no paired differences shown. {error}")
    return Run(name, info, tuple(metrics), final, split, questions, tuple(gaps))


def _load_questions(path: Folder) -> dict[int, dict[str, Any]]:
    """The lines of one evaluation by question id. Raises DataError for impossible counts too."""
    lines = read_jsonl(path, _QUESTION_FIELDS)
    for line in lines:
        if not 0 <= line["num_correct"] <= line["num_samples"]:
            raise DataError(
                f"{path}: question {line['question_id']} has {line['num_correct']} correct of "
                f"{line['num_samples']} samples, expected no more than there are: remove the line."
            )
    return {line["question_id"]: line for line in lines}


def load_outputs(folder: Folder) -> tuple[list[dict[str, Any]], list[str]]:
    """Up to OUTPUTS_SHOWN sampled outputs of RUN/rollouts, and what could not be read.

    Spread evenly over the steps and within each step's file, whatever their verdicts, so that
    what one sees is what was sampled.
    """
    paths = _spread(sorted((folder / "rollouts").glob("step-*.jsonl")), _ROLLOUTS_READ, 0.0)
    outputs: list[dict[str, Any]] = []
    gaps: list[str] = []
    for number, path in enumerate(paths):
        texts = numbered_lines(path)
        # The golden ratio moves the place from file to file: a fixed stride could meet the same
        # sample index every time.
        chosen = _spread(texts, OUTPUTS_SHOWN // len(paths), number * 0.618 % 1.0)
        try:
            outputs += [parse_line(text, f"{path}:{at}", _OUTPUT_FIELDS) for at, text in chosen]
        except DataError as error:
            gaps.append(f"{folder.name}: some sampled outputs are not shown. {error}")
    return outputs, gaps


def _spread(items: list[Any], count: int, offset: float) -> list[Any]:
    """At most `count` items in order, evenly spaced. offset: in [0, 1), the place in each space."""
    if len(items) <= count:
        return items
    if offset == 0.0 and count > 1:
        # Both ends are kept.
        return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]
    return [items[int((i + offset) * len(items) / count)] for i in range(count)]
