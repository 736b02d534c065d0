"""The figures of a report, and their PNG files.

Imports matplotlib: import this module where figures are drawn, not at the top of a file. Figures
are made without pyplot, so no window system and no global state takes part.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import (
    EngFormatter,
    FuncFormatter,
    MaxNLocator,
    NullLocator,
    PercentFormatter,
)

from rft_jax.io.paths import Folder, make, write_atomically
from rft_jax.observe.statistics import pass_at_k, standard_error
from rft_jax.report import health
from rft_jax.report.load import Line, LoggedRun, is_number
from rft_jax.report.tables import PARTS, pass_curve, time_parts

Runs = Sequence[LoggedRun]

INK, MUTED, GRID = "#1F2430", "#667085", "#E6E8EC"
WIDTH = 9.6
"""Width of a full figure in inches."""

STYLE: Any = {
    "font.size": 10, "text.color": INK, "axes.labelcolor": MUTED, "axes.labelsize": 9.5,
    "axes.edgecolor": "#C4C9D2", "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": GRID, "grid.linewidth": 0.8,
    "xtick.color": MUTED, "ytick.color": MUTED, "xtick.labelsize": 9, "ytick.labelsize": 9,
    "xtick.major.size": 0, "ytick.major.size": 0, "lines.linewidth": 2.0,
    "lines.solid_capstyle": "round", "figure.facecolor": "white", "text.parse_math": False,
    "figure.constrained_layout.w_pad": 0.09, "figure.constrained_layout.h_pad": 0.09,
}  # fmt: skip
_STAGES = {
    "accepted": ("sampled", "finished", "parsed", "correct", "distinct", "kept"),
    "decided": ("sampled", "decided", "distinct", "kept"),
}
"""Stages of the funnel by the outputs that a method may train on."""

_HISTOGRAM = "questions/pass_rate_histogram"


class Plot(NamedTuple):
    """A figure's name (of its PNG), its title and a sentence on how to read it.

    draw: None for runs without anything to show. narrow: it has one panel and is shown at two
    thirds of the full width.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[Runs], Figure | None]
    narrow: bool = False


def draw_plots(runs: Runs, folder: Folder, plots: Sequence[Plot]) -> list[tuple[Plot, bytes]]:
    """Writes FOLDER/NAME.png for each plot that the runs have figures for; those, with the PNG."""
    make(folder)
    drawn = []
    for plot in plots:
        with rc_context(STYLE):
            figure = plot.draw(runs)
            if figure is None:
                continue
            figure.suptitle(
                plot.title, x=0.012, ha="left", fontsize=12.5, fontweight="bold", color=INK
            )
            png = io.BytesIO()
            figure.savefig(png, dpi=150)
            write_atomically(folder / f"{plot.name}.png", png.getvalue())
            drawn.append((plot, png.getvalue()))
    return drawn


def curves(
    runs: Runs, name: str, label: str, *, error: str = "", percent: bool = False
) -> Figure | None:
    """A validation metric over updates, and over sampled tokens (right) where a run samples.

    Beside runs that sample, one that does not (SFT) is a dotted level where it ended: its own rise
    would flatten theirs.

    Args:
        runs: all of the experiment.
        name: the metric.
        label: of the vertical axis.
        error: the metric of its standard error, drawn as a band.
        percent: whether the metric is shown in percent.
    """
    chosen = [run for run in runs if run.series("validation", ("step", name))]
    if not chosen:
        return None
    figure = Figure(figsize=(WIDTH, max(3.5, 0.9 + 0.19 * len(chosen))), layout="constrained")
    any_samples = any(run.samples for run in chosen)
    x_names = ("step", "cost/sampled_tokens") if any_samples else ("step",)
    panels = figure.subplots(1, len(x_names), sharey=True, squeeze=False)[0]
    for axes, x_name in zip(panels, x_names, strict=True):
        for run in chosen:
            points = run.series("validation", (x_name, name))
            if not points:
                continue
            x, y = np.array(points).T
            if not run.samples and any_samples:
                axes.axhline(y[-1], color=run.colour, linestyle=(0, (1, 2)), linewidth=1.5)
                continue
            marker = "o" if len(x) <= 40 else ""
            axes.plot(x, y, color=run.colour, linestyle=run.dash, marker=marker, markersize=3.5)
            if error:
                bands = run.series("validation", (x_name, name, error))
                _band(axes, run, *np.array(bands).reshape(-1, 3).T, num_runs=len(chosen))
        largest = max([1.0, *(run.last(x_name) or 0.0 for run in chosen)])
        axes.set_xlim(-0.02 * largest, 1.02 * largest)
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    panels[0].set(xlabel="updates", ylabel=label)
    if any_samples:
        panels[1].set(xlabel="sampled tokens")
        panels[1].xaxis.set_major_formatter(EngFormatter(sep=" "))
    if percent:
        panels[0].yaxis.set_major_formatter(PercentFormatter(1.0))
    _from_zero(panels[0])
    ends = [(run.series("validation", ("step", name))[-1][1], run) for run in chosen]
    _name_curves(figure, panels[-1], ends)
    return figure


def _from_zero(axes: Axes) -> None:
    """Has an axis of what is never negative not begin below zero, where all of it is zero."""
    low, high = axes.get_ylim()
    if low < 0 < high:
        axes.set_ylim(-0.02 * high, high)


def pass_at_k_curves(runs: Runs) -> Figure | None:
    """pass@k of each run's last evaluation, with maj@k of all k samples as a diamond."""
    chosen = [(run, pass_curve(run.final)) for run in runs if pass_curve(run.final)]
    if not chosen:
        return None
    figure = Figure(figsize=(6.6, max(3.8, 0.9 + 0.19 * len(chosen))), layout="constrained")
    axes = figure.subplots()
    majorities = set()
    for run, curve in chosen:
        ks, y = np.array(list(curve)), np.array(list(curve.values()))
        axes.plot(ks, y, color=run.colour, linestyle=run.dash, marker="o", markersize=4)
        half = np.array([_pass_error(run, k) for k in curve])
        _band(axes, run, ks, y, half, num_runs=len(chosen))
        if is_number(run.final, f"maj_at/{ks[-1]}"):
            majorities.add(f"maj@{ks[-1]}")
            axes.plot(
                ks[-1], run.final[f"maj_at/{ks[-1]}"], "D", color="white", zorder=3,
                markeredgecolor=run.colour, markersize=6, markeredgewidth=1.6, clip_on=False,
            )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted({k for _, curve in chosen for k in curve}))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda k, _: f"{k:.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set(xlabel="k", ylabel="pass@k")
    _from_zero(axes)
    if majorities:
        label = ", ".join(sorted(majorities))
        axes.plot([], [], "D", color="white", markeredgecolor=MUTED, label=label)
        axes.legend(frameon=False, fontsize=9, labelcolor=MUTED, loc="upper left")
    _name_curves(figure, axes, [(list(curve.values())[-1], run) for run, curve in chosen])
    return figure


def _band(
    axes: Axes, run: LoggedRun, x: np.ndarray, y: np.ndarray, half: np.ndarray, *, num_runs: int
) -> None:
    opacity = 0.15 if num_runs <= 6 else 0.06
    axes.fill_between(x, y - half, y + half, color=run.colour, alpha=opacity, linewidth=0)


def _pass_error(run: LoggedRun, k: int) -> float:
    """Standard error of pass@k over the last evaluation's questions; NaN draws no band."""
    counts = [
        (line["num_samples"], line["num_correct"])
        for line in run.questions.values()
        if line["num_samples"] >= k
    ]
    n, c = np.array(counts, np.int64).reshape(-1, 2).T
    return standard_error(pass_at_k(n, c, k))


def _name_curves(figure: Figure, axes: Axes, ends: Sequence[tuple[float, LoggedRun]]) -> None:
    """Names the curves at the right edge. ends: (last y, run)."""
    figure.draw_without_rendering()  # fixes the layout, so heights are known
    low, high = axes.get_ylim()
    height = axes.get_window_extent().height / figure.dpi * 72  # in points
    heights = spread([(y - low) / (high - low) for y, _ in ends], 11.5 / height)
    for (_, run), place in zip(ends, heights, strict=True):
        axes.annotate(
            run.name, (1, place), xytext=(6, 0), xycoords="axes fraction", color=run.colour,
            textcoords="offset points", va="center", fontsize=9, fontweight="bold",
            annotation_clip=False,
        )  # fmt: skip


def spread(positions: Sequence[float], gap: float) -> list[float]:
    """Positions moved apart to at least `gap`, in their order and as near as they can stay.

    Groups that would overlap are merged and centred on their mean.
    """

    def placed(group: list[int]) -> list[float]:
        middle = sum(positions[i] for i in group) / len(group)
        return [middle + gap * (place - (len(group) - 1) / 2) for place in range(len(group))]

    groups: list[list[int]] = []
    for i in sorted(range(len(positions)), key=lambda i: positions[i]):
        groups.append([i])
        while len(groups) > 1 and placed(groups[-1])[0] - placed(groups[-2])[-1] < gap:
            groups[-2:] = [groups[-2] + groups[-1]]
    moved = {i: place for group in groups for i, place in zip(group, placed(group), strict=True)}
    return [moved[i] for i in range(len(positions))]


def _panels(
    chosen: Runs,
    draw: Callable[[Axes, LoggedRun], None],
    *,
    x_label: str = "",
    y_label: str = "",
    share_y: bool = True,
) -> Figure | None:
    """One small panel a run, in its colour, on common axes."""
    if not chosen:
        return None
    columns = min(3, max(2, len(chosen)))
    rows = -(-len(chosen) // columns)
    figure = Figure(figsize=(WIDTH, 0.5 + 2.3 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=share_y, squeeze=False)
    for axes, run in zip(panels.flat, chosen, strict=False):
        draw(axes, run)
        axes.set_title(run.name, loc="left", fontsize=10, fontweight="bold", color=run.colour)
    for axes in panels.flat[len(chosen) :]:
        axes.set_visible(False)
    for axes in panels.flat[max(len(chosen) - columns, 0) : len(chosen)]:  # none below them
        axes.set_xlabel(x_label)
        axes.tick_params(labelbottom=bool(x_label))
    for axes in panels[:, 0]:
        axes.set_ylabel(y_label)
    return figure


def funnel(runs: Runs) -> Figure | None:
    """How many of all sampled outputs pass each stage."""

    def stages(run: LoggedRun) -> tuple[str, ...]:
        return _STAGES.get(run.trains_on, _STAGES["accepted"])

    def count(run: LoggedRun, stage: str) -> float:
        if stage == "decided":
            return run.total("funnel/sampled") - run.total("funnel/undecided")
        return run.total(f"funnel/{stage}")

    def draw(axes: Axes, run: LoggedRun) -> None:
        names = stages(run)
        counts = [count(run, stage) for stage in names]
        shares = [one / counts[0] for one in counts]
        axes.barh(names, [1.0] * len(shares), color="#F2F4F7", height=0.72)
        axes.barh(names, shares, color=run.colour, height=0.72)
        for place, (share, one) in enumerate(zip(shares, counts, strict=True)):
            inside = share > 0.55
            axes.text(
                share + (-0.02 if inside else 0.02), place, f"{100 * share:.1f}%  {one:,.0f}",
                ha="right" if inside else "left", va="center", fontsize=8,
                color=_text_on(run.colour) if inside else INK,
            )  # fmt: skip
        axes.set_xlim(0, 1)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)

    chosen = [run for run in runs if run.total("funnel/sampled") > 0]
    return _panels(chosen, draw, share_y=len({stages(run) for run in chosen}) == 1)


def pass_rates(runs: Runs) -> Figure | None:
    """Histograms of the questions' pass rates, early and late in training."""

    def draw(axes: Axes, run: LoggedRun) -> None:
        counts = [line[_HISTOGRAM] for line in run.metrics if _has_histogram(line)]
        # Earlier versions had other bins.
        lines = np.array([each for each in counts if len(each) == len(counts[-1])])
        quarter = max(1, len(lines) // 4)
        early, late = lines[:quarter].sum(axis=0), lines[-quarter:].sum(axis=0)
        edges = np.linspace(0, 1, lines.shape[1] + 1)
        axes.stairs(late / max(late.sum(), 1), edges, fill=True, color=run.colour, alpha=0.75)
        axes.stairs(early / max(early.sum(), 1), edges, color=INK, linewidth=1.4)
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))

    chosen = [run for run in runs if any(map(_has_histogram, run.metrics))]
    return _panels(chosen, draw, x_label="pass rate of a question", y_label="questions")


def _has_histogram(line: Line) -> bool:
    counts = line.get(_HISTOGRAM)
    return (
        line["kind"] == "train"
        and isinstance(counts, list)
        and bool(counts)
        and all(isinstance(count, int | float) for count in counts)
    )


def lengths_by_verdict(runs: Runs) -> Figure | None:
    """Moving means of the lengths of correct and of incorrect samples."""

    def draw(axes: Axes, run: LoggedRun) -> None:
        for label, dash in (("correct", "-"), ("incorrect", "--")):
            points = np.array(run.series("train", ("step", f"lengths/{label}")))
            if not points.size:
                continue
            x, y = points.T
            window = max(1, len(y) // 20)
            smooth = np.convolve(y, np.ones(window) / window, mode="valid")
            axes.plot(x[window - 1 :], smooth, dash, color=run.colour, label=label, linewidth=1.6)
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        axes.legend(frameon=False, fontsize=8, handlelength=2.2)

    chosen = [run for run in runs if len(run.series("train", ("lengths/correct",))) > 1]
    return _panels(chosen, draw, x_label="updates", y_label="tokens")


def time(runs: Runs) -> Figure | None:
    """One bar a run: seconds of each part of its time."""
    chosen = [(run, time_parts(run)) for run in runs]
    chosen = [(run, parts) for run, parts in chosen if sum(parts.values()) > 0]
    if not chosen:
        return None
    figure = Figure(figsize=(WIDTH, 1.35 + 0.42 * len(chosen)), layout="constrained")
    axes = figure.subplots()
    longest = max(sum(parts.values()) for _, parts in chosen)
    left = np.zeros(len(chosen))
    for name, colour in PARTS.items():
        widths = np.array([parts[name] for _, parts in chosen])
        axes.barh(range(len(chosen)), widths, left=left, color=colour, label=name, height=0.62,
                  edgecolor="white", linewidth=0.8)  # fmt: skip
        for place, (start, width) in enumerate(zip(left, widths, strict=True)):
            if width > 0.05 * longest:
                axes.text(start + width / 2, place, f"{width:,.0f}", ha="center", va="center",
                          fontsize=8, color=_text_on(colour))  # fmt: skip
        left += widths
    axes.set_yticks(range(len(chosen)), [run.name for run, _ in chosen])
    for tick, (run, _) in zip(axes.get_yticklabels(), chosen, strict=True):
        tick.set(color=run.colour, fontweight="bold")
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set(xlabel="seconds")
    axes.legend(
        ncols=len(PARTS), loc="lower left", bbox_to_anchor=(0, 1), frameon=False, fontsize=8.5,
        handlelength=1, handleheight=1, borderaxespad=0.2, columnspacing=1.4,
    )  # fmt: skip
    return figure


def _text_on(colour: str) -> str:
    """White or dark, whichever is read better on `#RRGGBB` (perceived brightness of Rec. 601)."""
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 145 else INK


_BOTH = (
    "Over updates, and on the right over sampled tokens where a run samples. A dotted level is the "
    "end of a run that samples nothing, and an upright line one that samples its whole pool before "
    "the first update."
)
HEALTH = (
    Plot(
        "health",
        "Signs of health",
        "Over updates; what is measured in training is a moving mean. None decides by itself: the "
        "alarms above read them together (docs/alarms.md).",
        health.signs,
    ),
    Plot(
        "reliability",
        "Is a policy as often right as it is sure?",
        "The last evaluation: questions by the share of outputs that agree, in ten bins; larger "
        "dots are of more questions. Below the diagonal it is overconfident.",
        health.reliability,
        narrow=True,
    ),
)
PLOTS = (
    Plot(
        "accuracy", "Greedy accuracy on validation questions",
        f"{_BOTH} Bands: one standard error over questions.",
        lambda runs: curves(
            runs, "greedy/accuracy", "greedy accuracy", error="greedy/standard_error", percent=True
        ),
    ),
    Plot(
        "pass_at_k", "pass@k of the final policy",
        "Unbiased estimate on the last evaluation (test where there is one); bands: one standard "
        "error over questions; diamonds: maj@k of all k samples.",
        pass_at_k_curves, narrow=True,
    ),
    Plot(
        "entropy", "Entropy of the policy on validation questions",
        f"{_BOTH} Mean over sampled tokens; a fall to zero is a collapse of diversity.",
        lambda runs: curves(runs, "policy/entropy", "entropy (nats)"),
    ),
    Plot(
        "lengths", "Length of outputs on validation questions", _BOTH,
        lambda runs: curves(runs, "lengths/mean", "tokens per output"),
    ),
    Plot(
        "lengths_by_verdict", "Length of correct and incorrect training samples",
        "Moving mean over a twentieth of the run.",
        lengths_by_verdict,
    ),
    Plot(
        "funnel", "From sampled to trained outputs",
        "Share and number of all outputs sampled over the run that pass each stage.",
        funnel,
    ),
    Plot(
        "pass_rates", "Pass rates of training questions",
        "Filled: the last quarter of the run; line: the first quarter; a pool is one for the whole "
        "run, where both agree. Only questions between 0 and 100 % tell right from wrong outputs.",
        pass_rates,
    ),
    Plot(
        "time", "Where the time goes",
        "Verification that ran beside sampling, and compilation, are inside the other parts.",
        time,
    ),
)  # fmt: skip
