"""Is it healthy: the signs that alarms read, as curves, and the alarms themselves.

Imports matplotlib, as figures.py does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from rft_jax.config import AlarmsConfig, CheckpointConfig, ConfigError
from rft_jax.observe.alarms import ALARMS, Alarm, Lines, raised
from rft_jax.report.load import LoggedRun
from rft_jax.report.tables import Table

Runs = Sequence[LoggedRun]


class Panel(NamedTuple):
    """One sign over updates: a curve of each metric that is named, the second dashed; or one of
    `value`, a function of them all. relative: over its first value."""

    title: str
    kind: str
    names: tuple[str, ...]
    value: Callable[..., float] | None = None
    relative: bool = False


PANELS = (
    Panel("entropy, over the start's", "train", ("policy/entropy",), relative=True),
    Panel("spread of rewards within questions", "train", ("questions/reward_deviation",)),
    Panel(
        "groups that tell right from wrong", "train",
        ("questions/all_correct", "questions/none_correct"), lambda a, b: 1 - a - b,
    ),
    Panel("distinct correct outputs", "validation", ("questions/distinct_correct",)),
    Panel("distinct answers", "validation", ("questions/answers",)),
    Panel("solved, change since the start", "validation", ("questions/solved_change",)),
    Panel("gained, and lost (dashed)", "validation", ("questions/gained", "questions/lost")),
    Panel(
        "confidence, calibration error (dashed)", "validation",
        ("calibration/confidence", "calibration/error"),
    ),
    Panel(
        "log-prob of correct, incorrect (dashed)", "train",
        ("policy/log_prob_correct", "policy/log_prob_incorrect"),
    ),
    Panel("KL to pi_ref, in the objective", "train", ("objective/kl",)),
    Panel("KL to pi_ref, of some outputs", "train", ("policy/kl",)),
    Panel(
        "outputs cut at the limit", "train",
        ("funnel/finished", "funnel/sampled"), lambda a, b: 1 - a / max(b, 1),
    ),
    Panel("tokens of an output", "validation", ("lengths/mean",)),
    Panel("gradient norm", "train", ("optimizer/gradient_norm",)),
    Panel("sampler against trainer", "train", ("policy/log_prob_mismatch_mean",)),
)  # fmt: skip


def _curves(run: LoggedRun, panel: Panel) -> list[np.ndarray]:
    """Steps and values, those of training as moving means; none of fewer than two points."""
    groups = [(name,) for name in panel.names] if panel.value is None else [panel.names]
    curves = []
    for names in groups:
        points = run.series(panel.kind, ("step", *names))
        value = panel.value or float
        x, y = np.array([(step, value(*rest)) for step, *rest in points]).reshape(-1, 2).T
        window = max(1, min(10, y.size // 4)) if panel.kind == "train" else 1
        if y.size > 1:
            y = np.convolve(y, np.ones(window) / window, mode="valid")
            scale = y[0] if panel.relative and y[0] else 1
            curves.append(np.array([x[window - 1 :], y / scale]))
    return curves


def signs(runs: Runs) -> Figure | None:
    """A small panel for each sign that a run has, all runs in it."""
    shown = [(panel, [(run, _curves(run, panel)) for run in runs]) for panel in PANELS]
    shown = [(panel, lines) for panel, lines in shown if any(curves for _, curves in lines)]
    if not shown:
        return None
    rows = -(-len(shown) // 3)
    figure = Figure(figsize=(9.6, 0.9 + 1.9 * rows), layout="constrained")
    panels = figure.subplots(rows, 3, squeeze=False)
    drawn = dict[str, str]()
    for axes, (panel, lines) in zip(panels.flat, shown, strict=False):
        for run, curves in lines:
            for (x, y), style in zip(curves, ("-", "--"), strict=False):
                axes.plot(x, y, style, color=run.colour, linewidth=1.3)
                drawn[run.name] = run.colour
        axes.set_title(panel.title, loc="left", fontsize=8.5)
        axes.tick_params(labelsize=7.5)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    for axes in panels.flat[len(shown) :]:
        axes.set_visible(False)
    for name, colour in drawn.items():
        panels.flat[0].plot([], [], color=colour, label=name)
    figure.legend(loc="outside lower center", ncols=6, frameon=False, fontsize=8)
    return figure


def reliability(runs: Runs) -> Figure | None:
    """How often the most frequent answer is right by its share of the outputs, at last."""
    chosen = [(run, points) for run in runs if (points := _voted(run)).shape[1]]
    if not chosen:
        return None
    figure = Figure(figsize=(6.6, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="#98A2B3", linewidth=1, linestyle="--")
    for run, (sure, right) in chosen:
        bins = np.minimum((sure * 10).astype(int), 9)
        counts = np.bincount(bins, minlength=10)
        some = counts > 0
        x, y = (np.bincount(bins, v, 10)[some] / counts[some] for v in (sure, right))
        axes.plot(x, y, color=run.colour, linestyle=run.dash, linewidth=1.4, label=run.name)
        axes.scatter(x, y, 6 + 120 * counts[some] / counts.sum(), color=run.colour)
    axes.set(xlabel="share of outputs with the most frequent answer", ylabel="of which right")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.legend(frameon=False, fontsize=8)
    return figure


def _voted(run: LoggedRun) -> np.ndarray:
    rows = [
        (row["majority_share"], row["majority_correct"])
        for row in run.questions.values()
        if all(isinstance(row.get(f"majority_{n}"), int | float) for n in ("share", "correct"))
    ]
    return np.array(rows, float).reshape(-1, 2).T


def alarms_of(run: LoggedRun) -> tuple[AlarmsConfig, list[Alarm]]:
    """The settings of alarms of a run, the defaults where it has none that are valid, and by them
    its alarms."""
    config = run.info.get("config")
    saved = config if isinstance(config, dict) else {}
    try:
        settings = AlarmsConfig(**saved.get("alarms", {}))
        measure = CheckpointConfig(**saved.get("checkpoint", {})).measure
    except (ConfigError, TypeError, AttributeError):
        settings, measure = AlarmsConfig(), CheckpointConfig.measure
    return settings, raised(Lines(run.metrics, measure), settings)


def alarms_table(runs: Runs) -> Table:
    """Every alarm that was raised, and the settings that are at hand against it."""
    rows, notes = [], []
    for run in runs:
        settings, found = alarms_of(run)
        for alarm in found:
            kind, until = ALARMS[alarm.name], alarm.until
            seen = f"{alarm.what} is {alarm.value:.3g}, against {alarm.reference:.3g}"
            steps = f"{alarm.since}" if until is None else f"{alarm.since} to {until}"
            helps = f"{kind.meaning}; {', '.join(kind.remedies)}"
            rows.append((run.name, alarm.name, steps, seen, helps))
        if settings.action in ("stop", "best") and any(alarm.until is None for alarm in found):
            last = max(line["step"] for line in run.metrics)
            tested = f"; its last evaluation is of step {run.final['step']}" if run.final else ""
            action = f"alarms.action={settings.action}"
            notes.append(f"{run.name} was ended at step {last} ({action}){tested}.")
    if not rows and any(run.metrics for run in runs):
        notes.append("No alarm was raised.")
    header = ("run", "alarm", "at step", "what was seen", "what it means; what helps")
    return Table(header, tuple(rows), tuple(notes))
