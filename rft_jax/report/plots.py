"""Writes the figures of a report as PNG files.

Imports matplotlib: import this module where figures are drawn, not at the top of a file. Figures
are made without pyplot, so no window system and no global state takes part.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from matplotlib import rc_context
from matplotlib.figure import Figure

from rft_jax.io.paths import Folder, make, write_atomically
from rft_jax.report.bars import funnel, lengths_by_verdict, pass_rates, time
from rft_jax.report.curves import curves, pass_at_k_curves
from rft_jax.report.palette import GRID, INK, MUTED
from rft_jax.report.runs import Run

_STYLE: Any = {
    "font.size": 10, "text.color": INK, "axes.labelcolor": MUTED, "axes.labelsize": 9.5,
    "axes.edgecolor": "#C4C9D2", "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": GRID, "grid.linewidth": 0.8,
    "xtick.color": MUTED, "ytick.color": MUTED, "xtick.labelsize": 9, "ytick.labelsize": 9,
    "xtick.major.size": 0, "ytick.major.size": 0, "lines.linewidth": 2.0,
    "lines.solid_capstyle": "round", "figure.facecolor": "white", "text.parse_math": False,
    "figure.constrained_layout.w_pad": 0.09, "figure.constrained_layout.h_pad": 0.09,
}  # fmt: skip


class Plot(NamedTuple):
    """A figure's name (of its PNG), its title and a sentence on how to read it.

    narrow: it has one panel and is shown at two thirds of the full width.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[Sequence[Run]], Figure | None]
    narrow: bool = False


def draw_plots(runs: Sequence[Run], folder: Folder) -> list[tuple[Plot, Folder]]:
    """Writes FOLDER/NAME.png for each plot that the runs have figures for; those, with paths."""
    make(folder)
    drawn = []
    for plot in PLOTS:
        with rc_context(_STYLE):
            figure = plot.draw(runs)
            if figure is None:
                continue
            figure.suptitle(
                plot.title, x=0.012, ha="left", fontsize=12.5, fontweight="bold", color=INK
            )
            path = folder / f"{plot.name}.png"
            content = io.BytesIO()
            figure.savefig(content, dpi=150)
            write_atomically(path, content.getvalue())
            drawn.append((plot, path))
    return drawn


_BOTH = (
    "Left over updates, right over sampled tokens. A dotted level is the end of a run that samples "
    "nothing, and an upright line one that samples its whole pool before the first update."
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
        "Filled: the last quarter of the run; line: the first quarter; RFT has one pool for the "
        "whole run, where both agree. Only questions between 0 "
        "and 100 % tell right from wrong outputs.",
        pass_rates,
    ),
    Plot(
        "time", "Where the time goes",
        "Verification that ran beside sampling, and compilation, are inside the other parts.",
        time,
    ),
)  # fmt: skip
