"""Colours of the report: one per run in every figure and on the page."""

from __future__ import annotations

# Okabe and Ito's palette, told apart by colour-blind readers; its yellow and black, too light and
# too heavy for lines on white, are left out, and grey stands first: for the run the others are
# compared with.
_COLOURS = ("#5F6670", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_DASHES = ("-", "--", ":", "-.")

INK = "#1F2430"
MUTED = "#667085"
GRID = "#E6E8EC"

WIDTH = 9.6
"""Width of a full figure in inches."""

PARTS = {
    "sampling": "#332288",
    "verifying": "#DDCC77",
    "updating": "#44AA99",
    "evaluating": "#88CCEE",
    "checkpointing": "#AA4499",
    "other": "#D5D8DD",
}
"""Parts of a run's time that do not overlap (Paul Tol's muted palette), so that they are not taken
for runs."""


def run_colour(place: int) -> str:
    """Colour of the run at that place of the experiment; repeats after seven."""
    return _COLOURS[place % len(_COLOURS)]


def run_dash(place: int) -> str:
    """Line style of the run at that place: changes when the colours repeat."""
    return _DASHES[place // len(_COLOURS) % len(_DASHES)]


def text_on(colour: str) -> str:
    """White or dark, whichever is read better on `#RRGGBB` (perceived brightness of Rec. 601)."""
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 145 else INK
