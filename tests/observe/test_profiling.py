"""Traces: which steps are in them, under which names, and how they end."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from rft_jax.config.steps import Steps
from rft_jax.errors import UserError
from rft_jax.observe.profiling import PHASES, STEP, open_profiler, phase, warn_of_done


def names(folder: Path) -> list[tuple[str, int | None]]:
    """(name, number of the step) of the loop's own events in the one trace below `folder`."""
    (path,) = folder.rglob("*.xplane.pb")
    data = jax.profiler.ProfileData.from_file(str(path))
    events = [event for plane in data.planes for line in plane.lines for event in line.events]
    own = [event for event in events if event.name in (STEP, *PHASES)]
    own.sort(key=lambda event: event.start_ns)
    return [(event.name, dict(event.stats).get("step_num")) for event in own]


def work(folder: Path, steps: Steps | None, numbers: Sequence[int], *, done: int = 0) -> None:
    """Turns of a loop with two phases each."""
    with open_profiler(folder, steps, done=done) as profiler:
        for number in numbers:
            with profiler.step(number):
                with phase("sampling"):
                    jax.block_until_ready(jnp.ones(3) + number)
                with phase("updating"):
                    pass


def turn(number: int) -> list[tuple[str, int | None]]:
    return [(STEP, number), ("sampling", None), ("updating", None)]


def test_only_the_steps_asked_for_are_traced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "rft_jax"):
        work(tmp_path, Steps(2, 3), range(1, 6))
    assert names(tmp_path / "profile") == turn(2) + turn(3)
    assert [record.message for record in caplog.records] == [
        f"trace of steps 2..3: {tmp_path / 'profile'}"
    ]
    assert list(tmp_path.rglob("*.trace.json.gz"))  # for viewers other than TensorBoard's
    # Where TensorBoard looks for it.
    assert (tmp_path / "profile/plugins/profile/steps-2-3").is_dir()


def test_one_step(tmp_path: Path) -> None:
    work(tmp_path, Steps(1, 1), range(1, 3))
    assert names(tmp_path) == turn(1)


def test_without_a_range_nothing_is_written(tmp_path: Path) -> None:
    work(tmp_path, None, range(1, 3))
    assert list(tmp_path.iterdir()) == []


def test_a_loop_that_ends_early_leaves_what_there_is(tmp_path: Path) -> None:
    work(tmp_path, Steps(2, 9), range(1, 4))
    assert names(tmp_path) == turn(2) + turn(3)


def test_an_error_within_a_step_ends_the_trace(tmp_path: Path) -> None:
    with (
        pytest.raises(KeyError),
        open_profiler(tmp_path, Steps(1, 2), done=0) as profiler,
        profiler.step(1),
        phase("verifying"),
    ):
        raise KeyError
    assert names(tmp_path) == [(STEP, 1), ("verifying", None)]
    work(tmp_path / "again", Steps(1, 1), [1])  # another trace can start


def test_a_resumed_run_traces_what_is_left(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    work(tmp_path / "x", Steps(2, 4), range(4, 6), done=3)
    assert names(tmp_path) == turn(4)
    assert caplog.records[0].message == (
        "x: --profile is 'steps 2..4' and 3 steps are done already: only steps 4..4 will be traced;"
        " give another --workdir to trace the others."
    )


def test_a_run_that_is_past_the_range_traces_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    work(tmp_path / "x", Steps(2, 4), range(5, 7), done=4)
    assert list(tmp_path.iterdir()) == []
    assert caplog.records[0].message == (
        "x: --profile is 'steps 2..4' and 4 steps are done already: nothing will be traced; give "
        "another --workdir to trace the others."
    )
    caplog.clear()
    warn_of_done(tmp_path / "x", Steps(5, 6), done=4)
    warn_of_done(tmp_path / "x", None, done=4)
    assert caplog.records == []


def test_a_trace_that_cannot_start(tmp_path: Path) -> None:
    jax.profiler.start_trace(tmp_path / "other")
    try:
        with pytest.raises(UserError, match=r"^step 1: jax cannot start a trace \(.*already"):
            work(tmp_path / "x", Steps(1, 2), range(1, 3))
    finally:
        jax.profiler.stop_trace()
    assert not (tmp_path / "x").exists()


def test_processes_write_a_folder_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for index in range(2):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        work(tmp_path, Steps(1, 1), [1])
        assert names(tmp_path / f"profile/process-00{index}") == turn(1)
