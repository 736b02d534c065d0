"""`rft-jax run`: the runs of an experiment one after another, in the job that there may be."""

from __future__ import annotations

import json
import logging
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rft_jax.commands.run_options import RunOptions
from rft_jax.config import Config
from rft_jax.distributed.collectives import by_main, is_main
from rft_jax.distributed.mesh import make_mesh
from rft_jax.distributed.process import joined, keep_programs, split_cpu
from rft_jax.io.paths import Folder, make, write_atomically, writing
from rft_jax.runs import setup
from rft_jax.runs.run import run

logger = logging.getLogger(__name__)


def carry_out(
    path: Path,
    experiment: Mapping[str, Config],
    selected: Sequence[str],
    options: RunOptions,
    *,
    report: Callable[[Folder], None],
) -> int:
    """Carry out, or go on with, the selected runs; returns the exit status.

    path: of the experiment file; report: writes a workdir's report.
    """
    workdir = options.workdir
    keep_programs()
    split_cpu(
        [experiment[name].mesh for name in selected],
        [experiment[name].update.rows_per_microbatch for name in selected],
    )
    with joined(options.limits) as at:
        for name in selected:  # before the first of them takes its hours
            if not (workdir / name / "finished.json").is_file():
                setup.check_devices(experiment[name], make_mesh(experiment[name].mesh))
        by_main("experiment.json", lambda: _save_experiment(workdir, path, experiment))
        for name in selected:
            result = run(name, experiment, workdir, options.profile, at)
            if not result.finished:
                if is_main():
                    print(
                        f"rft-jax: run {name} is stopped and saved; the same command goes on with "
                        "it.",
                        file=sys.stderr,
                    )
                return 128 + (result.stopped_by or signal.SIGINT)
            if result.steps_done == 0:
                logger.info("%s: already finished", name)
        by_main("report", lambda: report(workdir))
    return 0


def _save_experiment(workdir: Folder, path: Path, experiment: Mapping[str, Config]) -> None:
    """WORKDIR/experiment.json: the file's name and the runs in order."""
    content = {"experiment": path.name, "runs": list(experiment)}
    with writing(workdir):
        make(workdir)
        write_atomically(workdir / "experiment.json", json.dumps(content, indent=2) + "\n")
