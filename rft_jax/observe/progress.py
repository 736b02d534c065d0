"""One progress bar per run on a terminal, plain log lines elsewhere. Imports no jax."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType

import rich.progress
from rich.console import Console
from rich.markup import escape

PLAIN_LINE_SECONDS = 30.0
"""Least time between two plain lines; the first and the last step always get one."""

_SHARES = ("acceptance", "accuracy")
"""Figures in [0, 1] that are shown in percent."""

logger = logging.getLogger(__name__)


class Progress:
    """Shows how far a run is: `with Progress(total, start, name) as progress: progress.update(..)`.

    On a terminal, log through a handler that looks up sys.stderr for each record, or lines and bar
    overwrite each other.

    Args:
        total: the run's last step.
        start: the step it resumed from, 0 for none; steps before it do not count for the time left.
        description: the run's name.
        unit: what a step is called.
    """

    def __init__(self, total: int, start: int, description: str, unit: str = "step") -> None:
        self._unit = unit
        self._total = total
        self._start = start
        self._description = description
        self._figures: dict[str, float | int] = {}
        self._began = time.monotonic()
        self._next_line = self._began
        self._bar: rich.progress.Progress | None = None
        if sys.stderr.isatty():
            self._bar = rich.progress.Progress(
                rich.progress.TextColumn("[bold]{task.description}"),
                rich.progress.BarColumn(bar_width=24),
                rich.progress.MofNCompleteColumn(),
                rich.progress.TextColumn("{task.fields[figures]}"),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task(
                escape(description), total=total, completed=start, figures=""
            )

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, step: int, **figures: float | int | None) -> None:
        """Step `step` is done. figures: e.g. acceptance, accuracy, tokens_per_second; the last
        value of each is shown until the next, and None changes nothing."""
        self._figures.update({name: new for name, new in figures.items() if new is not None})
        now = time.monotonic()
        text = "  ".join(
            [_figure(name, value) for name, value in self._figures.items()] + self._time_left(step)
        )
        if self._bar is not None:
            self._bar.update(self._task, completed=step, figures=text)
        elif now >= self._next_line or step == self._total:
            logger.info("%s  %s %d/%d  %s", self._description, self._unit, step, self._total, text)
            self._next_line = now + PLAIN_LINE_SECONDS

    def _time_left(self, step: int) -> list[str]:
        done, left = step - self._start, self._total - step
        if done <= 0 or left <= 0:
            return []
        return ["left " + _duration((time.monotonic() - self._began) / done * left)]


def _figure(name: str, value: float | int) -> str:
    if name in _SHARES:
        return f"{name} {100 * value:.1f}%"
    unit = name.replace("_per_second", "/s").replace("_", " ")
    return f"{value:,.0f} {unit}" if unit.endswith("/s") else f"{unit} {value:.4g}"


def _duration(seconds: float | int) -> str:
    """Hours, minutes and seconds as h:mm:ss, or m:ss below one hour."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
