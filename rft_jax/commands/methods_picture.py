"""The picture of the table of methods: expected coefficients over the pass rate."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from rft_jax.commands.methods import check_group
from rft_jax.errors import ConfigError
from rft_jax.io.paths import writing
from rft_jax.training.expectation import expected_coefficients
from rft_jax.training.methods import METHODS

PASS_RATES = np.arange(1, 100) / 100
PANELS = ("of a correct output", "of a wrong output", "factor of grad p: their difference")
_DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)))
"""So that a panel's lines differ by more than their colour."""


def curves(group: int) -> dict[str, np.ndarray]:
    """Row -> [3, P]: its expected coefficients (PANELS) over the pass rates; rows that sample."""
    found = {}
    for name, row in METHODS.items():
        if row.source != "demonstrations":  # which have no pass rate
            pairs = np.array(
                [expected_coefficients(row, row.denominator, p, group) for p in PASS_RATES]
            )
            found[name] = np.stack([*pairs.T, pairs[:, 0] - pairs[:, 1]])
    return found


def alike(found: Mapping[str, np.ndarray]) -> list[list[str]]:
    """The rows, those of equal curves together."""
    together: list[list[str]] = []
    for name, values in found.items():
        same = [names for names in together if np.allclose(found[names[0]], values, atol=1e-4)]
        if same:
            same[0].append(name)
        else:
            together.append([name])
    return together


def draw(path: Path, group: int) -> None:
    """Write the picture, in the format of the file's name; rows of one curve share a line."""
    check_group(group)
    if not path.suffix:
        raise ConfigError(f"--picture {path}: name a file of a format, such as methods.svg.")
    found = curves(group)
    settings: Any = {
        "svg.fonttype": "none", "svg.hashsalt": "methods", "axes.grid": True, "grid.alpha": 0.25,
        "axes.spines.top": False, "axes.spines.right": False,
    }  # fmt: skip
    with rc_context(settings):  # a white background is readable beside dark pages, too
        figure = Figure(figsize=(13.5, 6.8), layout="constrained")
        for number, (axes, title) in enumerate(zip(figure.subplots(1, 3), PANELS, strict=True)):
            panel = {name: values[number] for name, values in found.items()}
            for place, names in enumerate(alike(panel)):
                axes.plot(
                    PASS_RATES, panel[names[0]], label=_label(names), linewidth=1.8,
                    color=f"C{place % 10}", linestyle=_DASHES[place % len(_DASHES)],
                )  # fmt: skip
            axes.set(title=title, xlabel="pass rate p of the question", xlim=(0, 1))
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), frameon=False, fontsize=8.5)
        figure.axes[0].set_ylabel(f"expected coefficient, {group} outputs a question")
        with writing(path, f"--picture {path}"):
            figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _label(names: list[str], width: int = 52) -> str:
    return "\n".join(textwrap.wrap(", ".join(names), width))
