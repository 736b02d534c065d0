"""Figures with one panel or one bar a run: funnel, pass rates, lengths, time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from rft_jax.report.palette import INK, PARTS, WIDTH, run_colour, text_on
from rft_jax.report.runs import Run
from rft_jax.report.tables import time_parts

_STAGES = ("sampled", "finished", "parsed", "correct", "distinct", "kept")


def _multiples(
    runs: Sequence[Run],
    has: Callable[[Run], bool],
    draw: Callable[[Axes, Run, str], None],
    *,
    x_label: str = "",
    y_label: str = "",
) -> Figure | None:
    """One small panel a run, in its colour, on common axes."""
    chosen = [(place, run) for place, run in enumerate(runs) if has(run)]
    if not chosen:
        return None
    columns = min(3, max(2, len(chosen)))
    rows = -(-len(chosen) // columns)
    figure = Figure(figsize=(WIDTH, 0.5 + 2.3 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes, (place, run) in zip(panels.flat, chosen, strict=False):
        draw(axes, run, run_colour(place))
        axes.set_title(
            run.name, loc="left", fontsize=10, fontweight="bold", color=run_colour(place)
        )
    for axes in panels.flat[len(chosen) :]:
        axes.set_visible(False)
    for axes in panels.flat[max(len(chosen) - columns, 0) : len(chosen)]:  # none below them
        axes.set_xlabel(x_label)
        axes.tick_params(labelbottom=bool(x_label))
    for axes in panels[:, 0]:
        axes.set_ylabel(y_label)
    return figure


def funnel(runs: Sequence[Run]) -> Figure | None:
    def draw(axes: Axes, run: Run, colour: str) -> None:
        counts = [run.total(f"funnel/{stage}") for stage in _STAGES]
        shares = [count / counts[0] for count in counts]
        axes.barh(_STAGES, [1.0] * len(shares), color="#F2F4F7", height=0.72)
        axes.barh(_STAGES, shares, color=colour, height=0.72)
        for place, (share, count) in enumerate(zip(shares, counts, strict=True)):
            inside = share > 0.55
            axes.text(
                share + (-0.02 if inside else 0.02), place, f"{100 * share:.1f}%  {count:,.0f}",
                ha="right" if inside else "left", va="center", fontsize=8,
                color=text_on(colour) if inside else INK,
            )  # fmt: skip
        axes.set_xlim(0, 1)
        axes.set_ylim(len(_STAGES) - 0.5, -0.5)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)

    return _multiples(runs, lambda run: run.total("funnel/sampled") > 0, draw)


def pass_rates(runs: Sequence[Run]) -> Figure | None:
    name = "questions/pass_rate_histogram"

    def draw(axes: Axes, run: Run, colour: str) -> None:
        lines = np.array([line[name] for line in run.metrics if _has_histogram(line)])
        quarter = max(1, len(lines) // 4)
        early, late = lines[:quarter].sum(axis=0), lines[-quarter:].sum(axis=0)
        edges = np.linspace(0, 1, lines.shape[1] + 1)
        axes.stairs(late / max(late.sum(), 1), edges, fill=True, color=colour, alpha=0.75)
        axes.stairs(early / max(early.sum(), 1), edges, color=INK, linewidth=1.4)
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))

    def _has_histogram(line: dict[str, Any]) -> bool:
        counts = line.get(name)
        return line["kind"] == "train" and isinstance(counts, list) and None not in counts

    return _multiples(
        runs,
        lambda run: any(map(_has_histogram, run.metrics)),
        draw,
        x_label="pass rate of a question",
        y_label="questions",
    )


def lengths_by_verdict(runs: Sequence[Run]) -> Figure | None:
    names = {"lengths/correct": ("-", "correct"), "lengths/incorrect": ("--", "incorrect")}

    def draw(axes: Axes, run: Run, colour: str) -> None:
        for name, (dash, label) in names.items():
            points = np.array(run.series("train", ("step", name)))
            if not points.size:
                continue
            x, y = points.T
            window = max(1, len(y) // 20)
            smooth = np.convolve(y, np.ones(window) / window, mode="valid")
            axes.plot(x[window - 1 :], smooth, dash, color=colour, label=label, linewidth=1.6)
        axes.legend(frameon=False, fontsize=8, handlelength=2.2)

    return _multiples(
        runs,
        lambda run: len(run.series("train", ("lengths/correct",))) > 1,
        draw,
        x_label="updates",
        y_label="tokens",
    )


def time(runs: Sequence[Run]) -> Figure | None:
    chosen = [(place, run, time_parts(run)) for place, run in enumerate(runs)]
    chosen = [(place, run, parts) for place, run, parts in chosen if sum(parts.values()) > 0]
    if not chosen:
        return None
    figure = Figure(figsize=(WIDTH, 1.35 + 0.42 * len(chosen)), layout="constrained")
    axes = figure.subplots()
    longest = max(sum(parts.values()) for _, _, parts in chosen)
    left = np.zeros(len(chosen))
    for name, colour in PARTS.items():
        widths = np.array([parts[name] for _, _, parts in chosen])
        axes.barh(range(len(chosen)), widths, left=left, color=colour, label=name, height=0.62,
                  edgecolor="white", linewidth=0.8)  # fmt: skip
        for place, (start, width) in enumerate(zip(left, widths, strict=True)):
            if width > 0.05 * longest:
                axes.text(start + width / 2, place, f"{width:,.0f}", ha="center", va="center",
                          fontsize=8, color=text_on(colour))  # fmt: skip
        left += widths
    axes.set_yticks(range(len(chosen)), [run.name for _, run, _ in chosen])
    for tick, (place, _, _) in zip(axes.get_yticklabels(), chosen, strict=True):
        tick.set(color=run_colour(place), fontweight="bold")
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set(xlabel="seconds")
    axes.legend(
        ncols=len(PARTS), loc="lower left", bbox_to_anchor=(0, 1), frameon=False, fontsize=8.5,
        handlelength=1, handleheight=1, borderaxespad=0.2, columnspacing=1.4,
    )  # fmt: skip
    return figure
