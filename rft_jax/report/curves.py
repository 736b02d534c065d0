"""Figures with one curve a run: validation metrics and pass@k. Imports matplotlib."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, NullLocator, PercentFormatter

from rft_jax.observe.statistics import pass_at_k, standard_error
from rft_jax.report.palette import MUTED, WIDTH, run_colour, run_dash
from rft_jax.report.runs import Run, is_number
from rft_jax.report.tables import pass_curve


def spread(positions: Sequence[float], gap: float) -> list[float]:
    """Positions moved apart to at least `gap`, in their order and as near as they can stay.

    Groups that would overlap are merged and centred on their mean.
    """
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    groups: list[list[int]] = []
    for i in order:
        groups.append([i])
        while len(groups) > 1:
            below, above = (_placed(group, positions, gap) for group in groups[-2:])
            if above[0] - below[-1] >= gap:
                break
            groups[-2:] = [groups[-2] + groups[-1]]
    moved = [0.0] * len(positions)
    for group in groups:
        for i, place in zip(group, _placed(group, positions, gap), strict=True):
            moved[i] = place
    return moved


def _placed(group: list[int], positions: Sequence[float], gap: float) -> list[float]:
    middle = sum(positions[i] for i in group) / len(group)
    return [middle + gap * (place - (len(group) - 1) / 2) for place in range(len(group))]


def _labels(figure: Figure, axes: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Names the curves at the right edge. ends: (last y, name, colour)."""
    figure.draw_without_rendering()  # fixes the layout, so heights are known
    low, high = axes.get_ylim()
    height = axes.get_window_extent().height / figure.dpi * 72  # in points
    heights = spread([(y - low) / (high - low) for y, _, _ in ends], 11.5 / height)
    for (_, name, colour), place in zip(ends, heights, strict=True):
        axes.annotate(
            name, (1, place), xytext=(6, 0), xycoords="axes fraction", textcoords="offset points",
            color=colour, va="center", fontsize=9, fontweight="bold", annotation_clip=False,
        )  # fmt: skip


def curves(
    runs: Sequence[Run], name: str, label: str, *, error: str = "", percent: bool = False
) -> Figure | None:
    """A validation metric over updates (left) and over sampled tokens (right).

    error: the metric of its standard error, drawn as a band. Beside runs that sample, one that does
    not (SFT) is a dotted level where it ended: its own rise would flatten theirs.
    """
    chosen = [
        (place, run) for place, run in enumerate(runs) if run.series("validation", ("step", name))
    ]
    if not chosen:
        return None
    figure = Figure(figsize=(WIDTH, max(3.5, 0.9 + 0.19 * len(chosen))), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    ends = []
    opacity = _band_opacity(len(chosen))
    samplers = [run for _, run in chosen if _samples(run)]
    for place, run in chosen:
        colour, dash = run_colour(place), run_dash(place)
        for axes, x_name in zip(panels, ("step", "cost/sampled_tokens"), strict=True):
            points = run.series("validation", (x_name, name))
            bands = run.series("validation", (x_name, name, error)) if error else []
            if not points:
                continue
            x, y = np.array(points).T
            if run not in samplers and (samplers or x_name != "step"):
                axes.axhline(y[-1], color=colour, linestyle=(0, (1, 2)), linewidth=1.5)
                continue
            marker = "o" if len(x) <= 40 else ""
            axes.plot(x, y, color=colour, linestyle=dash, marker=marker, markersize=3.5)
            if bands:
                x, y, half = np.array(bands).T
                axes.fill_between(x, y - half, y + half, color=colour, alpha=opacity, linewidth=0)
        ends.append((run.series("validation", ("step", name))[-1][1], run.name, colour))
    panels[0].set(xlabel="updates", ylabel=label)
    panels[1].set(xlabel="sampled tokens")
    panels[1].xaxis.set_major_formatter(EngFormatter(sep=" "))
    if percent:
        panels[0].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    for axes in panels:
        axes.margins(x=0.02)
    _labels(figure, panels[1], ends)
    return figure


def _samples(run: Run) -> bool:
    return any(tokens for (tokens,) in run.series("validation", ("cost/sampled_tokens",)))


def pass_at_k_curves(runs: Sequence[Run]) -> Figure | None:
    chosen = [(place, run) for place, run in enumerate(runs) if pass_curve(run.final)]
    if not chosen:
        return None
    figure = Figure(figsize=(6.6, max(3.8, 0.9 + 0.19 * len(chosen))), layout="constrained")
    axes = figure.subplots()
    ends, ks_seen, majorities = [], set(), set()
    opacity = _band_opacity(len(chosen))
    for place, run in chosen:
        curve = pass_curve(run.final)
        ks, y, colour = np.array(list(curve)), np.array(list(curve.values())), run_colour(place)
        ks_seen |= set(curve)
        axes.plot(ks, y, color=colour, linestyle=run_dash(place), marker="o", markersize=4)
        half = np.array([_pass_error(run, k) for k in curve])
        axes.fill_between(ks, y - half, y + half, color=colour, alpha=opacity, linewidth=0)
        majority = f"maj_at/{ks[-1]}"
        if is_number(run.final, majority):
            majorities.add(majority.replace("maj_at/", "maj@"))
            axes.plot(
                ks[-1], run.final[majority], "D", color="white", markeredgecolor=colour,
                markersize=6, markeredgewidth=1.6, clip_on=False, zorder=3,
            )  # fmt: skip
        ends.append((y[-1], run.name, colour))
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(ks_seen))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda k, _: f"{k:.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set(xlabel="k", ylabel="pass@k")
    if majorities:
        axes.plot(
            [], [], "D", color="white", markeredgecolor=MUTED, label=", ".join(sorted(majorities))
        )
        axes.legend(frameon=False, fontsize=9, labelcolor=MUTED, loc="upper left")
    _labels(figure, axes, ends)
    return figure


def _band_opacity(num_runs: int) -> float:
    return 0.15 if num_runs <= 6 else 0.06


def _pass_error(run: Run, k: int) -> float:
    """Standard error of pass@k over the last evaluation's questions; NaN draws no band."""
    counts = [
        (line["num_samples"], line["num_correct"])
        for line in run.questions.values()
        if line["num_samples"] >= k
    ]
    n, c = np.array(counts, np.int64).reshape(-1, 2).T
    return standard_error(pass_at_k(n, c, k))
