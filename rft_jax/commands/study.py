"""`rft-jax study`: the runs of a study, its choice on validation questions, and its results."""

from __future__ import annotations

import json
import logging
import os
import shlex
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from rft_jax.checkpoint.policy import is_finished
from rft_jax.checkpoint.provenance import git_commit, versions
from rft_jax.commands import run as running
from rft_jax.config.study import Study, budget
from rft_jax.errors import ConfigError, DataError
from rft_jax.io.jsonl import read_json
from rft_jax.io.paths import Folder, write_atomically, writing
from rft_jax.observe.tables import aligned
from rft_jax.report import study as reports

ONE_CORE = {
    "JAX_NUM_CPU_DEVICES": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}
"""Variables of a process that has others beside it."""

logger = logging.getLogger(__name__)


class Stopped(NamedTuple):
    """Why a study is not at its end: the run that a signal stopped, and the signal."""

    run: str
    signal: int


def carry_out(
    study: Study,
    name: str,
    workdir: Folder,
    *,
    command: Sequence[str] = (),
    at_once: int = 1,
    report_only: bool = False,
    show: Callable[[str], None] = print,
) -> Stopped | None:
    """Carry out what is not finished of a study, and write WORKDIR/study.json, .md and .png.

    Args:
        name: of the study's file.
        workdir: where each run has its folder.
        command: that carries out one of its runs when `--only RUN` follows; kept in study.json.
        at_once: how many runs are carried out at a time, each in a process of that command.
        report_only: make the results of the seeds that are finished; carry out nothing.
        show: given the budgets before the runs, and the tables at the end.
    """
    if os.environ.get("JAX_COORDINATOR_ADDRESS"):
        raise ConfigError(
            "JAX_COORDINATOR_ADDRESS is set: a study is one process; carry out its runs in jobs "
            "(rft-jax run STUDY --only RUN), and then the study with --report_only."
        )
    runs, tuning = study.runs(), study.tuning()
    show(_plan(study))

    def unfinished(names: Sequence[str]) -> list[str]:
        return [each for each in names if not is_finished(workdir / each, runs[each])]

    def do(names: Sequence[str]) -> Stopped | None:
        if report_only:
            return None
        # Of all seeds at first, so that no process waits for others' work.
        starts = [each for each in unfinished(list(runs)) if each in _starts(study)]
        for wave in (starts, [each for each in unfinished(names) if each not in starts]):
            if at_once > 1 and (signal := _in_processes(command, wave, at_once)):
                return Stopped((unfinished(wave) or wave)[0], signal)
        # What is finished by now is not repeated, and what failed in its process says why here.
        needed = {each: runs[each] for each in runs if each in {*tuning, *names}}
        last, result = list(running.carry_out(needed, name, workdir, names).items())[-1]
        return None if result.finished else Stopped(last, result.stopped_by)

    if stopped := do(tuning) if tuning else None:
        return stopped
    if left := unfinished(tuning):
        raise ConfigError(f"{workdir / left[0]} is not finished, so no settings are chosen yet.")
    scores = reports.scores(study, workdir) if tuning else {}
    # The first of the best.
    chosen = {arm: max(range(len(own)), key=own.__getitem__) for arm, own in scores.items()}
    compared = study.compared(chosen)
    names = list(dict.fromkeys(each for own in compared.values() for each in own.values()))
    if stopped := do(names):
        return stopped
    seeds = [seed for seed, own in compared.items() if not unfinished(list(own.values()))]
    if not seeds:
        raise ConfigError(f"{workdir}: no seed has all of its runs finished: nothing to compare.")
    results = {
        "study": name,
        "command": shlex.join(["rft-jax", *command[3:]]),
        "versions": versions(),
        "git_commit": git_commit(),
    } | reports.collect(study, workdir, scores, chosen, seeds)
    tables = reports.tables(results)
    with writing(workdir):
        write_atomically(workdir / "study.json", json.dumps(results, indent=1) + "\n")
        write_atomically(workdir / "study.md", tables + "\n")
        write_atomically(workdir / "study.png", reports.figure(results))
    show(f"{tables}\n\nresults: {workdir / 'study.json'}")
    return None


def draw(path: Path, show: Callable[[str], None] = print) -> None:
    """Make the tables and the figure of a study.json again; the figure stands beside it."""
    results = read_json(path, DataError)
    try:
        tables, figure = reports.tables(results), reports.figure(results)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} holds no results of a study ({type(error).__name__}: {error}): name the "
            "study.json of one."
        ) from error
    write_atomically(path.with_suffix(".png"), figure)
    show(tables)


def _plan(study: Study) -> str:
    """What will be compared at which budget, as a table for a terminal."""
    rows = []
    for arm, config in study.arms.items():
        known = budget(config).values()
        rows.append([arm, *("?" if count is None else f"{count:,}" for count in known)])
    table = aligned(["arm", "samples", "updates", "tokens at most"], rows)
    runs = {*study.tuning(), *(run for own in study.compared({}).values() for run in own.values())}
    tries = f"{len(study.tries)} tries of each arm on seed 0, chosen by {study.score}; "
    return f"{table}\n{study.seeds} seeds; {tries if study.tuning() else ''}{len(runs)} runs in all"


def _starts(study: Study) -> set[str]:
    return {study.name(start, seed) for start in study.starts for seed in range(study.seeds + 1)}


def _in_processes(command: Sequence[str], names: Sequence[str], at_once: int) -> int:
    """Carry out runs in processes of one core each; the signal that stopped them, 0 for none. One
    that fails begins no others."""
    from rft_jax.distributed.process import stop_on_signals

    environment = ONE_CORE | os.environ
    waiting, working, failed = list(names), list[subprocess.Popen[bytes]](), False
    with stop_on_signals() as signal:
        while working or (waiting and not signal() and not failed):
            while waiting and len(working) < at_once and not signal() and not failed:
                one = [*command, "--only", waiting.pop(0)]
                working.append(subprocess.Popen(one, env=environment, stdout=subprocess.DEVNULL))
            time.sleep(0.1)
            if signal():
                for process in working:
                    process.terminate()
            failed |= any(process.poll() for process in working)
            working = [process for process in working if process.poll() is None]
        return signal()
