"""Writes WORKDIR/report.html: one page without any outside reference, and its figures as PNGs."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from rft_jax.io.paths import Folder, in_bucket, write_atomically
from rft_jax.report import record
from rft_jax.report.load import Line, LoggedRun, is_number, load_outputs, load_runs
from rft_jax.report.tables import (
    differences,
    greedy_difference,
    interval,
    results,
    time_table,
    utilization_table,
)


def write_report(workdir: Folder) -> Folder:
    """Writes WORKDIR/plots/*.png and WORKDIR/report.html; the page's path.

    Raises UserError where the workdir holds no run; a run that lacks something is shown with a
    sentence on what is missing.
    """
    from rft_jax.report.figures import HEALTH, PLOTS, Plot, draw_plots  # matplotlib takes a second
    from rft_jax.report.health import alarms_table

    def drawn(plots: Sequence[Plot]) -> list[tuple[Plot, str]]:
        pairs = draw_plots(runs, workdir / "plots", plots)
        return [(plot, base64.b64encode(png).decode("ascii")) for plot, png in pairs]

    runs = load_runs(workdir)
    loaded = {run.name: load_outputs(workdir / run.name) for run in runs}
    sections = {
        "Results": results(runs),
        "Paired differences": differences(runs),
        "Is it healthy?": (alarms_table(runs), drawn(HEALTH)),
        "Curves": ([], drawn(PLOTS)),
        "Time": time_table(runs),
        "Use of the machine": utilization_table(runs),
        "Sampled outputs": [
            _shown(name, output) for name, (outputs, _) in loaded.items() for output in outputs
        ],
        "What the runs rest on": record.inputs(runs),
        "Changes": record.changes(runs),
        "Settings": [
            (run.name, run.method, json.dumps(run.info, indent=2, ensure_ascii=False))
            for run in runs
            if run.info
        ],
    }
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("page.html.jinja").render(
        name=(workdir if in_bucket(workdir) else workdir.resolve()).name,
        facts=_facts(runs),
        colours={run.name: run.colour for run in runs},
        cards=_cards(runs),
        gaps=[gap for run in runs for gap in (*run.gaps, *_output_gaps(run, *loaded[run.name]))],
        sections={title: content for title, content in sections.items() if _says(content)},
    )
    path = workdir / "report.html"
    # Sampled bytes may decode to half of a surrogate pair, which UTF-8 cannot hold.
    write_atomically(path, page.encode("utf-8", errors="replace"))
    return path


def _says(content: Any) -> bool:
    return any(map(bool, content)) if type(content) is tuple else bool(content)


def _output_gaps(run: LoggedRun, outputs: Sequence[Line], gaps: Sequence[str]) -> Sequence[str]:
    if run.total("seconds/sampling") and not outputs and not gaps:
        return (f"{run.name}: its rollouts are missing: no sampled outputs shown.",)
    return gaps


def _facts(runs: Sequence[LoggedRun]) -> list[str]:
    """Number of runs, devices, commits and versions; each value once, whatever runs share it."""
    infos = [run.info for run in runs]
    packages = [info["versions"] for info in infos if isinstance(info.get("versions"), dict)]
    facts = [
        {f"{len(runs)} run{'s' if len(runs) > 1 else ''}"},
        {str(info["device"]) for info in infos if info.get("device")},
        {f"commit {str(info['git_commit'])[:12]}" for info in infos if info.get("git_commit")},
        {
            f"{package} {versions[package]}"
            for versions in packages
            for package in ("rft_jax", "jax", "flax")
            if package in versions
        },
    ]
    return [", ".join(sorted(values)) for values in facts if values]


def _cards(runs: Sequence[LoggedRun]) -> list[dict[str, str]]:
    """The greedy accuracy of each run in large figures, and its difference to the first."""
    cards = []
    for run in runs:
        if not is_number(run.final, "greedy/accuracy"):
            continue
        error = run.final.get("greedy/standard_error")
        pair = greedy_difference(runs[0], run) if run.place else None
        cards.append(
            {
                "run": run.name,
                "percent": f"{100 * run.final['greedy/accuracy']:.1f}",
                "spread": f" ± {100 * error:.1f}" if isinstance(error, int | float) else "",
                "split": run.split,
                "against": f"{interval(pair)} against {runs[0].name}" if pair else "",
            }
        )
    return cards


def _shown(run: str, output: dict[str, Any]) -> dict[str, Any]:
    """What the browser of outputs shows of one."""
    names = ("step", "question_id", "sample_index", "verdict", "reason", "finished", "question",
             "text", "answer")  # fmt: skip
    shown = {name: output[name] for name in names}
    if not isinstance(shown["answer"], str):  # of a checker of the user's own
        shown["answer"] = json.dumps(shown["answer"])
    return {"run": run, "tokens": len(output["tokens"])} | shown
