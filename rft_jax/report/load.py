"""Reads the runs of a workdir. What is missing or damaged becomes a stated gap of its run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rft_jax.config.method import resolve
from rft_jax.errors import ConfigError, DataError, UserError
from rft_jax.io.jsonl import JSON, Fields, numbered_lines, parse, parse_line, read_jsonl
from rft_jax.io.paths import Folder
from rft_jax.observe import log

OUTPUTS_SHOWN = 200
"""Sampled outputs of a run that the report shows, spread evenly over its rollouts."""

_FILES = ("config.json", "metrics.jsonl")
"""Either tells that a folder is a run's."""

_ROLLOUTS_READ = 40
_QUESTION_FIELDS: Fields = {"question_id": int, "greedy_correct": (bool, type(None))}
_SAMPLED_FIELDS: Fields = {"num_samples": int, "num_correct": int}
"""Of a question that was sampled beside its greedy output."""
_OUTPUT_FIELDS: Fields = {
    "question_id": int, "sample_index": int, "step": int, "text": str, "tokens": list,
    "finished": bool, "verdict": str, "reason": str, "question": str, "answer": JSON,
}  # fmt: skip

# Okabe and Ito's palette, told apart by colour-blind readers; its yellow and black, too light and
# too heavy for lines on white, are left out, and grey stands first: for the run the others are
# compared with.
COLOURS = ("#5F6670", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_DASHES = ("-", "--", ":", "-.")

Line = dict[str, Any]
"""A line of a log."""


@dataclass(frozen=True)
class LoggedRun:
    """What a run left behind.

    place: in the experiment, from 0. info: config.json (name, config, versions, git_commit,
    device), empty where it is unreadable. metrics: lines of metrics.jsonl in order of their steps.
    final: the line of its last evaluation, on test where there is one. questions: the lines of that
    evaluation by question id. gaps: sentences on what cannot be shown.
    """

    name: str
    place: int
    info: Line
    metrics: tuple[Line, ...]
    final: Line
    questions: dict[int, Line]
    gaps: tuple[str, ...]

    @property
    def split(self) -> str:
        """What the last evaluation was made on: "test", "validation", or "" without one."""
        return str(self.final.get("kind", ""))

    @property
    def method(self) -> str:
        """The method's name; empty where config.json does not say."""
        method = _config(self.info).get("method", "")
        # A row that is not of the package's table is saved with its fields.
        return str(method.get("name", "") if isinstance(method, dict) else method)

    @property
    def trains_on(self) -> str:
        """Which outputs the method may train on (config/method.py)."""
        method = _config(self.info).get("method")
        if isinstance(method, dict):
            return str(method.get("trains_on", "accepted"))
        try:
            return resolve(self.method).trains_on if ":" not in self.method else "accepted"
        except ConfigError:  # of another version's table
            return "accepted"

    @property
    def samples(self) -> bool:
        """Whether outputs were sampled to train on."""
        return bool(self.last("cost/sampled_tokens"))

    @property
    def colour(self) -> str:
        """The run's colour in every figure and on the page; repeats after seven runs."""
        return COLOURS[self.place % len(COLOURS)]

    @property
    def dash(self) -> str:
        """The run's line style, which changes when the colours repeat."""
        return _DASHES[self.place // len(COLOURS) % len(_DASHES)]

    def last(self, name: str) -> float | None:
        """The last value of a metric over all lines, None where there is none."""
        lines = (line for line in reversed(self.metrics) if is_number(line, name))
        return next((float(line[name]) for line in lines), None)

    def series(self, kind: str, names: Sequence[str]) -> list[tuple[float, ...]]:
        """(value of each name) for the lines of a kind that have a number for all of them."""
        return [
            tuple(float(line[name]) for name in names)
            for line in self.metrics
            if line["kind"] == kind and all(is_number(line, name) for name in names)
        ]

    def total(self, name: str, kinds: Sequence[str] = ("train",)) -> float:
        """The sum of a metric over the lines of those kinds."""
        return sum((value for kind in kinds for (value,) in self.series(kind, (name,))), start=0.0)

    def counted(self, name: str) -> float:
        """The sum of a train counter that starts at zero again whenever the run resumes."""
        values = [value for (value,) in self.series("train", (name,))]
        before = [0.0, *values][: len(values)]
        return sum((v - b if v >= b else v for v, b in zip(values, before, strict=True)), start=0.0)


def _config(info: Line) -> Line:
    config = info.get("config")
    return config if isinstance(config, dict) else {}


def is_number(line: Line, name: str) -> bool:
    """Whether the line has a number (not null, not a list) of that name."""
    return isinstance(line.get(name), int | float)


def load_runs(workdir: Folder) -> list[LoggedRun]:
    """The runs of a workdir, in the order of WORKDIR/experiment.json or else by name.

    Raises UserError where the folder or any run is missing, or experiment.json is damaged.
    """
    if not workdir.is_dir():
        raise UserError(
            f"{workdir} is not a folder: give the workdir of an experiment, such as runs/NAME."
        )
    present = sorted({path.parent.name for file in _FILES for path in workdir.glob(f"*/{file}")})
    if not present:
        raise UserError(
            f"{workdir} holds no run (no RUN/config.json): run the experiment first, or name the "
            "workdir that it wrote to."
        )
    # Runs that are not (or no longer) in the experiment file come last.
    names = dict.fromkeys([*_experiment_order(workdir), *present])
    return [_load_run(workdir / name, place) for place, name in enumerate(names)]


def _experiment_order(workdir: Folder) -> list[str]:
    path = workdir / "experiment.json"
    if not path.exists():
        return []
    try:
        names = parse(path.read_bytes())["runs"]
    except (OSError, ValueError, KeyError, TypeError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(
            f'{path} does not read {{"runs": [NAME, ...]}}: remove it (runs are then sorted by '
            "name) or run the experiment again."
        )
    return names


def _load_run(folder: Folder, place: int) -> LoggedRun:
    name, path = folder.name, folder / "config.json"
    if not any((folder / file).exists() for file in _FILES):
        return LoggedRun(name, place, {}, (), {}, {}, (f"{name}: not started.",))
    gaps: list[str] = []
    try:
        info = parse(path.read_bytes())
    except (OSError, ValueError):
        info = None
    if not isinstance(info, dict):
        damage = "not a JSON object" if path.exists() else "missing"
        gaps.append(f"{name}: {path} is {damage}: no settings shown.")
        info = {}

    metrics: list[Line] = []
    try:
        if (folder / "metrics.jsonl").exists():
            metrics = log.read(folder / "metrics.jsonl")
            if not any(line["kind"] == "train" for line in metrics):
                gaps.append(f"{name}: no line of a step in metrics.jsonl: no training shown.")
        else:
            gaps.append(f"{name}: no metrics.jsonl: no curves shown.")
    except (DataError, OSError) as error:
        gaps.append(f"{name}: no metrics shown. {error}")

    tests = [line for line in metrics if line["kind"] == "test"]
    final = (tests or [line for line in metrics if line["kind"] == "validation"] or [{}])[-1]
    if metrics and not final:
        gaps.append(f"{name}: no evaluation: no accuracy shown.")
    questions: dict[int, Line] = {}
    if final:
        file = "test.jsonl" if tests else f"validation-{final['step']:06d}.jsonl"
        path = folder / "evaluation" / file
        try:
            questions = _load_questions(path)
        except FileNotFoundError:
            gaps.append(f"{name}: {path} is missing: no paired differences shown.")
        except (DataError, OSError) as error:
            gaps.append(f"{name}: no paired differences shown. {error}")
    return LoggedRun(name, place, info, tuple(metrics), final, questions, tuple(gaps))


def _load_questions(path: Folder) -> dict[int, Line]:
    """The lines of one evaluation by question id. Raises DataError for impossible counts too."""
    lines = read_jsonl(path, _QUESTION_FIELDS)
    if not path.read_bytes().endswith(b"\n"):  # it is written whole or not at all
        raise DataError(f"{path} ends within a line: evaluate again (rft-jax evaluate).")
    if any(name in line for line in lines for name in _SAMPLED_FIELDS):
        lines = read_jsonl(path, {**_QUESTION_FIELDS, **_SAMPLED_FIELDS})
    else:  # greedy outputs only
        lines = [line | dict.fromkeys(_SAMPLED_FIELDS, 0) for line in lines]
    for line in lines:
        if not 0 <= line["num_correct"] <= line["num_samples"]:
            raise DataError(
                f"{path}: question {line['question_id']} has {line['num_correct']} correct of "
                f"{line['num_samples']} samples, expected no more than there are: remove the line."
            )
    return {line["question_id"]: line for line in lines}


def load_outputs(folder: Folder) -> tuple[list[Line], list[str]]:
    """Up to OUTPUTS_SHOWN sampled outputs of RUN/rollouts, and what could not be read.

    Spread evenly over the steps and within each step's file, whatever their verdicts, so that
    what one sees is what was sampled.
    """
    paths = _spread(sorted((folder / "rollouts").glob("step-*.jsonl")), _ROLLOUTS_READ, 0.0)
    outputs: list[Line] = []
    gaps: list[str] = []
    for number, path in enumerate(paths):
        try:
            texts = numbered_lines(path)
            if not texts:
                raise DataError(f"{path} is empty.")
            # The golden ratio moves the place from file to file: a fixed stride could meet the
            # same sample index every time.
            chosen = _spread(texts, OUTPUTS_SHOWN // len(paths), number * 0.618 % 1.0)
            outputs += [parse_line(text, f"{path}:{at}", _OUTPUT_FIELDS) for at, text in chosen]
        except (DataError, OSError) as error:
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
