"""Tables over the runs of a workdir: results, paired differences, time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from rft_jax.errors import UserError
from rft_jax.io.paths import Folder
from rft_jax.observe.statistics import PairedDifference, paired_interval
from rft_jax.report.palette import PARTS
from rft_jax.report.runs import Run, is_number, load_runs

BOOTSTRAP_SEED = 0
NOTHING = "-"
"""The cell of a figure that a run does not have."""


class Table(NamedTuple):
    """header and rows of equal width; notes: sentences below it."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]


def summary_table(workdir: Folder) -> str:
    """Results, paired differences and gaps of all runs, as plain text for a terminal.

    Raises UserError where the workdir holds no run.
    """
    runs = load_runs(workdir)
    tables = [results(runs), differences(runs)]
    gaps = [gap for run in runs for gap in run.gaps]
    missing = ["Not shown:\n" + "\n".join(f"  {gap}" for gap in gaps)] if gaps else []
    return "\n\n".join([_as_text(table) for table in tables if table.rows or table.notes] + missing)


def results(runs: Sequence[Run]) -> Table:
    """One row a run: its last evaluation, on test where there is one, and what it cost."""
    k = _largest_common_k(runs)
    columns: dict[str, Callable[[Run], str]] = {
        "run": lambda run: run.name,
        "evaluated on": _evaluated_on,
        "greedy accuracy %": _accuracy,
        "pass@1 %": lambda run: _percent(run.final, "pass_at/1"),
    }
    if k > 1:
        columns[f"pass@{k} %"] = lambda run: _percent(run.final, f"pass_at/{k}")
    columns |= {
        "entropy": lambda run: _number(run.final.get("policy/entropy"), ".3f"),
        "distinct correct": lambda run: _number(run.final.get("questions/distinct_correct"), ".2f"),
        "sampled tokens": lambda run: compact(run.last("cost/sampled_tokens")),
        "updates": lambda run: _number(run.last("cost/updates"), ",.0f"),
        "seconds": lambda run: _number(run.last("seconds/elapsed"), ",.0f"),
    }
    rows = tuple(tuple(cell(run) for cell in columns.values()) for run in runs)
    notes = ["± is one standard error over questions; entropy in nats a token."]
    if len({run.split for run in runs if run.split}) > 1:
        notes.append("Runs evaluated on different questions cannot be compared.")
    return Table("Results", tuple(columns), rows, tuple(notes))


class Comparison(NamedTuple):
    """Two groups of runs; a group stands for the mean over its runs, question by question."""

    label: str
    first: tuple[Run, ...]
    second: tuple[Run, ...]


def comparisons(runs: Sequence[Run]) -> list[Comparison]:
    """Every run against the first, and RFT against Online RFT where both are there."""
    first, *others = runs
    pairs = [Comparison(f"{run.name} - {first.name}", (first,), (run,)) for run in others]
    by_method = {
        method: tuple(run for run in runs if run.method == method and run.questions)
        for method in ("rft", "online_rft")
    }
    rft, online = by_method["rft"], by_method["online_rft"]
    if rft and online:
        if len(rft) == len(online) == 1:
            pair = Comparison(f"{online[0].name} - {rft[0].name}", rft, online)
        else:
            label = f"mean of {len(online)} online_rft - mean of {len(rft)} rft"
            pair = Comparison(label, rft, online)
        if pair[1:] not in [one[1:] for one in pairs]:
            pairs.append(pair)
    return pairs


def differences(runs: Sequence[Run]) -> Table:
    """Paired differences with 95 % bootstrap intervals over questions, in percentage points."""
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
    return Table("Paired differences", header, tuple(rows), tuple(notes))


def greedy_difference(first: Run, second: Run) -> PairedDifference | None:
    """The paired difference in greedy accuracy, None where the two cannot be compared."""
    ids = sorted(set(first.questions) & set(second.questions))
    if not ids or first.split != second.split:
        return None
    return _paired(Comparison("", (first,), (second,)), ids, _greedy)


def time_parts(run: Run) -> dict[str, float]:
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


def time_table(runs: Sequence[Run]) -> Table:
    """Seconds of each part of each run, with its share; and what is hidden inside those parts."""
    header = ("run", *PARTS, "all", "(hidden verifying)", "(compiling)")
    rows = []
    for run in runs:
        parts = time_parts(run)
        whole = sum(parts.values())
        if whole == 0:
            continue
        rows.append(
            (
                run.name,
                *(f"{parts[name]:,.1f} ({100 * parts[name] / whole:.0f} %)" for name in PARTS),
                f"{whole:,.1f}",
                f"{run.total('seconds/verifying_hidden'):,.1f}",
                f"{run.counted('seconds/compiling'):,.1f}",
            )
        )
    notes = (
        "Seconds. Verification that ran beside sampling, and compilation, are inside the other "
        "columns and no part of the sum.",
    )
    return Table("Where the time goes", header, tuple(rows), notes)


def utilization_table(runs: Sequence[Run]) -> Table:
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
    return Table("Use of the machine", header, tuple(rows), (note,) if rows else ())


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
    for unit, size, least in (
        ("P", 1e15, 1e15),
        ("T", 1e12, 1e12),
        ("G", 1e9, 1e9),
        ("M", 1e6, 1e6),
        ("k", 1e3, 1e4),
    ):
        if count >= least:
            return f"{count / size:.1f} {unit}"
    return f"{count:,.0f}"


def _largest_common_k(runs: Sequence[Run]) -> int:
    """The largest k whose pass@k every run with any pass@k has; 0 for none."""
    curves = [pass_curve(run.final) for run in runs]
    common = set.intersection(*(set(curve) for curve in curves if curve)) if any(curves) else set()
    return max(common, default=0)


def pass_curve(line: dict[str, Any]) -> dict[int, float]:
    """k -> pass@k of one evaluation line, k rising."""
    names = [name for name in line if name.startswith("pass_at/") and is_number(line, name)]
    return dict(sorted((int(name.removeprefix("pass_at/")), float(line[name])) for name in names))


def _median(run: Run, name: str) -> float | None:
    """Over the train lines that have a number of that name; None where none has."""
    values = [value for (value,) in run.series("train", (name,))]
    return float(np.median(values)) if values else None


def _greedy(line: dict[str, Any]) -> float:
    correct = line["greedy_correct"]
    return math.nan if correct is None else float(correct)


def _pass_rate(line: dict[str, Any]) -> float:
    return line["num_correct"] / line["num_samples"] if line["num_samples"] else math.nan


def _paired(
    comparison: Comparison, ids: Sequence[int], value: Callable[[dict[str, Any]], float]
) -> PairedDifference | None:
    def means(group: Sequence[Run]) -> np.ndarray:
        return np.mean([[value(run.questions[i]) for i in ids] for run in group], axis=0)

    try:
        return paired_interval(
            means(comparison.first), means(comparison.second), seed=BOOTSTRAP_SEED
        )
    except UserError:  # no question decided in both
        return None


def _evaluated_on(run: Run) -> str:
    if not run.split:
        return NOTHING
    return "test" if run.split == "test" else f"validation, step {run.final['step']}"


def _accuracy(run: Run) -> str:
    text = _percent(run.final, "greedy/accuracy")
    if is_number(run.final, "greedy/standard_error"):
        text += f" ± {100 * run.final['greedy/standard_error']:.1f}"
    return text


def _percent(line: dict[str, Any], name: str) -> str:
    return f"{100 * line[name]:.1f}" if is_number(line, name) else NOTHING


def _number(value: object, form: str) -> str:
    return format(value, form) if isinstance(value, int | float) else NOTHING


def _as_text(table: Table) -> str:
    """Columns of equal width: the first to the left, the others to the right."""
    lines = [table.header, *table.rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(table.header))]
    texts = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([texts[0], "-" * max(map(len, texts)), *texts[1:], *table.notes])
