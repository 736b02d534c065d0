"""`rft-jax report` and `rft_jax.read_metrics`: what the runs of a workdir have measured. No jax."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from typing import Any

from rft_jax.errors import UserError
from rft_jax.io.paths import Folder, folder_of

METRICS = "metrics.jsonl"


def write(workdir: Folder, show: Callable[[str], None] | None = None) -> None:
    """Write WORKDIR/report.html and its plots. show: given the tables of results as text."""
    from rft_jax.report.page import write_report
    from rft_jax.report.tables import summary_table

    path = write_report(workdir)
    if show is not None:
        show(f"{summary_table(workdir)}\n\nreport: {path}")


def read_metrics(folder: str | PathLike[str]) -> list[dict[str, Any]]:
    """The metrics of a workdir's runs, or of one run (WORKDIR/RUN), as rows of a table.

    Returns: a row for each line of metrics.jsonl, with the columns `run`, `kind` (train,
    validation or test), `step` and a column a metric; pandas.DataFrame takes it.

    Raises UserError for a folder without metrics, DataError for a damaged file.
    """
    from rft_jax.observe.log import read

    place = folder_of(folder)
    runs = (
        [place]
        if (place / METRICS).is_file()
        else sorted(path.parent for path in place.glob(f"*/{METRICS}"))
    )
    if not runs:
        raise UserError(f"{place} has no {METRICS}: name a workdir with runs, or WORKDIR/RUN.")
    return [{"run": run.name, **line} for run in runs for line in read(run / METRICS)]
