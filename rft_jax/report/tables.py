"""Tables over the runs of a workdir: results, paired differences, time, use of the machine."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from rft_jax.errors import UserError
from rft_jax.io.paths import Folder
from rft_jax.observe.statistics import PairedDifference, paired_interval
from rft_jax.observe.tables import aligned
from rft_jax.report.load import Line, LoggedRun, is_number, load_runs

BOOTSTRAP_SEED = 0
NOTHING = "-"
"""The cell of a figure that a run does not have."""

PARTS = {
    "sampling": "#332288",
    "verifying": "#DDCC77",
    "updating": "#44AA99",
    "evaluating": "#88CCEE",
    "checkpointing": "#AA4499",
    "other": "#D5D8DD",
}
"""Parts of a run's time that do not overlap, and their colours (Paul Tol's muted palette, so that
they are not taken for runs)."""

_UNITS = (("P", 1e15, 1e15), ("T", 1e12, 1e12), ("G", 1e9, 1e9), ("M", 1e6, 1e6), ("k", 1e3, 1e4))
"""(unit, its size, the least count that is shown in it)."""


class Table(NamedTuple):
    """header and rows of equal width; notes: sentences below it. True when it says anything."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.rows or self.notes)


def summary_table(workdir: Folder) -> str:
    """Results, paired differences and gaps of all runs, as plain text for a terminal.

    Raises UserError where the workdir holds no run.
    """
    runs = load_runs(workdir)
    texts = [
        "\n".join([aligned(table.header, table.rows), *table.notes])
        for table in (results(runs), differences(runs))
        if table
    ]
    gaps = [f"  {gap}" for run in runs for gap in run.gaps]
    return "\n\n".join([*texts, *(["\n".join(["Not shown:", *gaps])] if gaps else [])])


def results(runs: Sequence[LoggedRun]) -> Table:
    """One row a run: its last evaluation, on test where there is one, and what it cost.

    Columns after the second are those that any run has a figure for.
    """
    k = _largest_common_k(runs)
    columns: dict[str, Callable[[LoggedRun], str]] = {
        "run": lambda run: run.name,
        "evaluated on": _evaluated_on,
        "greedy accuracy %": _accuracy,
        "pass@1 %": lambda run: _percent(run.final, "pass_at/1"),
        f"pass@{k} %": lambda run: _percent(run.final, f"pass_at/{k}"),
        "entropy": lambda run: _number(run.final.get("policy/entropy"), ".3f"),
        "distinct correct": lambda run: _number(run.final.get("questions/distinct_correct"), ".2f"),
        "sampled tokens": lambda run: compact(run.last("cost/sampled_tokens")),
        "updates": lambda run: _number(run.last("cost/updates"), ",.0f"),
        "seconds": lambda run: _number(run.last("seconds/elapsed"), ",.0f"),
    }
    cells = {title: [cell(run) for run in runs] for title, cell in columns.items()}
    shown = {
        title: column
        for place, (title, column) in enumerate(cells.items())
        if place < 2 or set(column) != {NOTHING}
    }
    notes = ["± is one standard error over questions; entropy in nats a token."]
    if len({run.split for run in runs if run.split}) > 1:
        notes.append("Runs evaluated on different questions cannot be compared.")
    for run in runs:
        counts = {
            kind: run.series(kind, ("data/too_long",)) for kind in ("train", "validation", "test")
        }
        left_out = [f"{kind} {lines[-1][0]:,.0f}" for kind, lines in counts.items() if lines]
        if left_out:
            notes.append(f"{run.name}: questions left out as too long: {', '.join(left_out)}.")
    return Table(tuple(shown), tuple(zip(*shown.values(), strict=True)), tuple(notes))


class Comparison(NamedTuple):
    """Two groups of runs; a group stands for the mean over its runs, question by question."""

    label: str
    first: tuple[LoggedRun, ...]
    second: tuple[LoggedRun, ...]


def comparisons(runs: Sequence[LoggedRun]) -> list[Comparison]:
    """Every run against the first; and among methods that sample, each against those before it."""
    first, *others = runs
    pairs = [Comparison(f"{run.name} - {first.name}", (first,), (run,)) for run in others]
    groups: dict[str, tuple[LoggedRun, ...]] = {}
    for run in runs:
        if run.samples and run.questions:
            groups[run.method] = (*groups.get(run.method, ()), run)
    for (a, before), (b, after) in itertools.combinations(groups.items(), 2):
        label = f"{after[0].name} - {before[0].name}"
        if len(before) > 1 or len(after) > 1:
            label = f"mean of {len(after)} {b} - mean of {len(before)} {a}"
        pair = Comparison(label, before, after)
        if pair[1:] not in [other[1:] for other in pairs]:
            pairs.append(pair)
    return pairs


def differences(runs: Sequence[LoggedRun]) -> Table:
    """Paired differences with 95 % intervals over questions, in percentage points."""
    header = ("paired difference", "greedy accuracy, points", "pass@1, points", "questions")
    rows, notes = [], []
    for comparison in comparisons(runs):
        chosen = (*comparison.first, *comparison.second)
        if not all(run.questions for run in chosen):
            continue  # the run's gap says why
        if len({run.split for run in chosen}) > 1:
            notes.append(f"{comparison.label}: one is on test, one on validation: not compared.")
            continue
        ids = sorted(set.intersection(*(set(run.questions) for run in chosen)))
        if not ids:
            notes.append(f"{comparison.label}: no question in common: not compared.")
            continue
        greedy = _paired(comparison, ids, _greedy)
        sampled = _paired(comparison, ids, _pass_rate)
        if greedy is None and sampled is None:
            notes.append(f"{comparison.label}: no question decided in both: not compared.")
            continue
        rows.append((comparison.label, interval(greedy), interval(sampled), f"{len(ids):,}"))
    if rows:
        notes = [
            "[95 % interval over questions], * where it excludes zero. It does not cover the "
            "spread between training seeds.",
            *notes,
        ]
    return Table(header, tuple(rows), tuple(notes))


def greedy_difference(first: LoggedRun, second: LoggedRun) -> PairedDifference | None:
    """The paired difference in greedy accuracy, None where the two cannot be compared."""
    ids = sorted(set(first.questions) & set(second.questions))
    if not ids or first.split != second.split:
        return None
    return _paired(Comparison("", (first,), (second,)), ids, _greedy)


def time_parts(run: LoggedRun) -> dict[str, float]:
    """Seconds of each part of PARTS; they do not overlap and sum up to the whole time.

    Hidden verification and compilation happen within other parts and are no part of their own.
    """
    parts = {name: run.total(f"seconds/{name}") for name in PARTS if name != "other"}
    # Evaluation lines count every evaluation, also the last one on test.
    evaluating = run.total("seconds/evaluating", ("validation", "test"))
    parts["evaluating"] = evaluating or parts["evaluating"]
    elapsed = run.last("seconds/elapsed") or 0.0
    parts["other"] = max(elapsed - sum(parts.values()), 0.0)
    return parts


def time_table(runs: Sequence[LoggedRun]) -> Table:
    """Seconds of each part of each run, with its share; and what is hidden inside those parts."""
    header = ("run", *PARTS, "all", "(hidden verifying)", "(compiling)")
    rows = tuple(
        (
            run.name,
            *(f"{parts[name]:,.1f} ({100 * parts[name] / whole:.0f} %)" for name in PARTS),
            f"{whole:,.1f}",
            f"{run.total('seconds/verifying_hidden'):,.1f}",
            f"{run.counted('seconds/compiling'):,.1f}",
        )
        for run, parts in ((run, time_parts(run)) for run in runs)
        if (whole := sum(parts.values()))
    )
    note = (
        "Seconds. Verification that ran beside sampling, and compilation, are inside the other "
        "columns and no part of the sum."
    )
    return Table(header, rows, (note,) if rows else ())


def utilization_table(runs: Sequence[LoggedRun]) -> Table:
    """What a step of each run has to compute and to move, and the share of the devices' rates."""
    parts = (
        ("FLOP of an update", "utilization/update_flops", "MFU %", "utilization/update_mfu"),
        ("FLOP of sampling", "utilization/sampling_flops", "MFU %", "utilization/sampling_mfu"),
        ("bytes of decoding", "utilization/decode_bytes", "bandwidth %",
         "utilization/decode_bandwidth"),
    )  # fmt: skip
    header = ("run", *(title for part in parts for title in (part[0], part[2])))
    rows = []
    for run in runs:
        cells = []
        for _, work, _, share in parts:
            used = _median(run, share)
            cells += [compact(_median(run, work)), _number(used and 100 * used, ".1f")]
        if set(cells) != {NOTHING}:
            rows.append((run.name, *cells))
    note = (
        "Medians over steps. Work that no implementation can avoid, over what the devices could do "
        "in that time at published rates; shares are missing where these are not known."
    )
    return Table(header, tuple(rows), (note,) if rows else ())


def interval(pair: PairedDifference | None) -> str:
    """`+3.1 [+1.0, +5.2] *` in percentage points; * marks an interval that excludes zero."""
    if pair is None:
        return NOTHING
    mark = " *" if pair.excludes_zero else ""
    return f"{100 * pair.difference:+.1f} [{100 * pair.low:+.1f}, {100 * pair.high:+.1f}]{mark}"


def compact(count: float | int | None) -> str:
    """A count with its unit, such as 950, 12.3 k or 4.6 M."""
    if count is None:
        return NOTHING
    for unit, size, least in _UNITS:
        if count >= least:
            return f"{count / size:.1f} {unit}"
    return f"{count:,.0f}"


def _largest_common_k(runs: Sequence[LoggedRun]) -> int:
    """The largest k whose pass@k every run with any pass@k has; 1 for none."""
    curves = [set(pass_curve(run.final)) for run in runs]
    curves = [curve for curve in curves if curve]
    return max(set.intersection(*curves), default=1) if curves else 1


def pass_curve(line: Line) -> dict[int, float]:
    """k -> pass@k of one evaluation line, k rising."""
    names = [name for name in line if name.startswith("pass_at/") and is_number(line, name)]
    return dict(sorted((int(name.removeprefix("pass_at/")), float(line[name])) for name in names))


def _median(run: LoggedRun, name: str) -> float | None:
    """Over the train lines that have a number of that name; None where none has."""
    values = run.series("train", (name,))
    return float(np.median(values)) if values else None


def _greedy(line: Line) -> float:
    correct = line["greedy_correct"]
    return math.nan if correct is None else float(correct)


def _pass_rate(line: Line) -> float:
    return line["num_correct"] / line["num_samples"] if line["num_samples"] else math.nan


def _paired(
    comparison: Comparison, ids: Sequence[int], value: Callable[[Line], float]
) -> PairedDifference | None:
    first, second = (
        np.mean([[value(run.questions[i]) for i in ids] for run in group], axis=0)
        for group in comparison[1:]
    )
    try:
        return paired_interval(first, second, seed=BOOTSTRAP_SEED)
    except UserError:  # no question decided in both
        return None


def _evaluated_on(run: LoggedRun) -> str:
    if run.split == "validation":
        return f"validation, step {run.final['step']}"
    return run.split or NOTHING


def _accuracy(run: LoggedRun) -> str:
    text = _percent(run.final, "greedy/accuracy")
    if is_number(run.final, "greedy/standard_error"):
        text += f" ± {100 * run.final['greedy/standard_error']:.1f}"
    return text


def _percent(line: Line, name: str) -> str:
    return f"{100 * line[name]:.1f}" if is_number(line, name) else NOTHING


def _number(value: object, form: str) -> str:
    return format(value, form) if isinstance(value, int | float) else NOTHING
