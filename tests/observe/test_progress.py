"""The progress of a run, on a terminal and in a log."""

from __future__ import annotations

import io
import logging

import pytest

from rft_jax.observe import progress
from rft_jax.observe.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still; its one element is the time."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_lines_come_seldom_and_at_the_first_and_last_step(
    caplog: pytest.LogCaptureFixture, clock: list[float]
) -> None:
    caplog.set_level(logging.INFO)
    with Progress(100, 0, "online_rft") as bar:
        for step in range(1, 101):
            clock[0] += 1.0
            bar.update(step, acceptance=0.25, tokens_per_second=12_345.6)
    steps = [record.getMessage().split("step ")[1].split("/")[0] for record in caplog.records]
    assert steps == ["1", "31", "61", "91", "100"]
    assert caplog.records[1].getMessage() == (
        "online_rft  step 31/100  acceptance 25.0%  12,346 tokens/s  left 1:09"
    )
    assert "left" not in caplog.records[-1].getMessage()


def test_the_last_value_of_a_figure_stays(
    caplog: pytest.LogCaptureFixture, clock: list[float]
) -> None:
    caplog.set_level(logging.INFO)
    with Progress(2, 0, "rft") as bar:
        bar.update(1, accuracy=0.5, gradient_norm=1.23456)
        bar.update(2, accuracy=None)
    assert caplog.records[-1].getMessage() == ("rft  step 2/2  accuracy 50.0%  gradient norm 1.235")


def test_steps_before_a_resume_do_not_count_for_the_time_left(
    caplog: pytest.LogCaptureFixture, clock: list[float]
) -> None:
    caplog.set_level(logging.INFO)
    with Progress(100, 90, "rft") as bar:
        clock[0] += 3600.0
        bar.update(91)
    assert caplog.records[0].getMessage().endswith("left 9:00:00")


def test_a_terminal_gets_a_bar_and_no_lines(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with Progress(10, 0, "run [a]") as bar:
        bar.update(10, acceptance=0.5)
    text = terminal.getvalue()
    assert "run [a]" in text
    assert "10/10" in text
    assert "acceptance 50.0%" in text
    assert caplog.records == []


def test_an_error_inside_passes_through_and_stops_the_bar(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    bar = Progress(10, 0, "run")
    with pytest.raises(KeyError, match="stop"), bar:
        raise KeyError("stop")
    assert terminal.getvalue().endswith("\x1b[?25h")  # the cursor is back
