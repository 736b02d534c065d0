"""Writes WORKDIR/report.html: one page without any outside reference, and its figures as PNGs."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from html import escape
from typing import Any

from rft_jax.io.paths import Folder, in_bucket, write_atomically
from rft_jax.report.assets import SCRIPT, STYLE
from rft_jax.report.palette import run_colour
from rft_jax.report.runs import Run, is_number, load_outputs, load_runs
from rft_jax.report.tables import (
    Table,
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
    from rft_jax.report.plots import draw_plots  # matplotlib takes a second to import

    runs = load_runs(workdir)
    plots = draw_plots(runs, workdir / "plots")
    outputs: dict[str, list[dict[str, Any]]] = {}
    gaps = [gap for run in runs for gap in run.gaps]
    for run in runs:
        outputs[run.name], missing = load_outputs(workdir / run.name)
        gaps += missing
    figures = "".join(
        f'<figure class="panel"><img class="{"narrow" if plot.narrow else ""}" '
        f'alt="{escape(plot.title)}" src="data:image/png;base64,{_base64(path)}">'
        f"<figcaption>{escape(plot.caption)}</figcaption></figure>\n"
        for plot, path in plots
    )
    sections = {
        "Results": _table(results(runs), runs),
        "Paired differences": _table(differences(runs), runs),
        "Curves": figures,
        "Time": _table(time_table(runs), runs),
        "Use of the machine": _table(utilization_table(runs), runs),
        "Sampled outputs": _browser(runs, outputs),
        "Settings": "".join(_settings(run) for run in runs),
    }
    sections = {title: body for title, body in sections.items() if body}
    anchors = {title: title.lower().replace(" ", "-") for title in sections}
    links = "".join(f'<a href="#{anchors[title]}">{title}</a>' for title in sections)
    body = "".join(
        f'<section id="{anchors[title]}"><h2>{title}</h2>\n{text}</section>\n'
        for title, text in sections.items()
    )
    name = escape((workdir if in_bucket(workdir) else workdir.resolve()).name)
    page = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{name}: report</title><style>{STYLE}</style></head>\n<body>\n"
        f"<header><h1>{name}</h1>{_provenance(runs)}<nav>{links}</nav>"
        f"{_cards(runs)}{_gaps(gaps)}</header>\n<main>\n{body}</main>\n"
        f"<p>&nbsp;</p>{_script() if any(outputs.values()) else ''}</body></html>\n"
    )
    path = workdir / "report.html"
    # Sampled bytes may decode to half of a surrogate pair, which UTF-8 cannot hold.
    write_atomically(path, page.encode("utf-8", errors="replace"))
    return path


def _base64(path: Folder) -> str:
    return base64.b64encode(path.read_bytes()).decode("ascii")


def _run_style(runs: Sequence[Run], name: str) -> str:
    place = next(place for place, run in enumerate(runs) if run.name == name)
    return f'style="--run: {run_colour(place)}"'


def _provenance(runs: Sequence[Run]) -> str:
    """Device, commit and versions; each value once, however many runs share it."""
    devices = sorted({str(run.info["device"]) for run in runs if run.info.get("device")})
    commits = sorted(
        {str(run.info["git_commit"])[:12] for run in runs if run.info.get("git_commit")}
    )
    versions = sorted(
        {
            f"{package} {version}"
            for run in runs
            if isinstance(run.info.get("versions"), dict)
            for package, version in run.info["versions"].items()
            if package in ("rft_jax", "jax", "flax")
        }
    )
    facts = [
        f"{len(runs)} run{'s' if len(runs) > 1 else ''}",
        ", ".join(devices),
        f"commit {', '.join(commits)}" if commits else "",
        ", ".join(versions),
    ]
    return f"<p>{escape(' · '.join(fact for fact in facts if fact))}</p>"


def _cards(runs: Sequence[Run]) -> str:
    """The greedy accuracy of each run in large figures, and its difference to the first."""
    cards = []
    for place, run in enumerate(runs):
        if not is_number(run.final, "greedy/accuracy"):
            continue
        error = run.final.get("greedy/standard_error")
        spread = f" ± {100 * error:.1f}" if isinstance(error, int | float) else ""
        pair = greedy_difference(runs[0], run) if place else None
        against = f"<div>{interval(pair)} against {escape(runs[0].name)}</div>" if pair else ""
        cards.append(
            f'<div class="card" {_run_style(runs, run.name)}><b>{escape(run.name)}</b>'
            f'<div class="big" style="color: var(--ink)">'
            f"{100 * run.final['greedy/accuracy']:.1f}<small> %{spread}</small></div>"
            f"<div>greedy accuracy on {escape(run.split)}</div>{against}</div>"
        )
    return f'<div class="cards">{"".join(cards)}</div>' if cards else ""


def _gaps(gaps: Sequence[str]) -> str:
    if not gaps:
        return ""
    lines = "".join(f"<p>{escape(gap)}</p>" for gap in gaps)
    return f'<div class="panel gaps"><b>Not shown</b>{lines}</div>'


def _table(table: Table, runs: Sequence[Run]) -> str:
    """A panel with the table; a row that is named after a run has its coloured dot."""
    if not table.rows and not table.notes:
        return ""
    names = {run.name for run in runs}
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.header)
    rows = "".join(
        "<tr>"
        + "".join(
            f'<td><span class="dot" {_run_style(runs, cell)}></span>{escape(cell)}</td>'
            if column == 0 and cell in names
            else f"<td>{escape(cell)}</td>"
            for column, cell in enumerate(row)
        )
        + "</tr>"
        for row in table.rows
    )
    body = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>" if rows else ""
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in table.notes)
    return f'<div class="panel">{body}{notes}</div>'


def _settings(run: Run) -> str:
    if not run.info:
        return ""
    text = escape(json.dumps(run.info, indent=2, ensure_ascii=False))
    return (
        f"<details><summary>{escape(run.name)}<span>{escape(run.method)}</span></summary>"
        f"<pre>{text}</pre></details>\n"
    )


def _browser(runs: Sequence[Run], outputs: dict[str, list[dict[str, Any]]]) -> str:
    """Filters and an empty list; the script fills it from the JSON, as text and never as HTML."""
    rows = [
        {
            "run": name,
            **{key: line[key] for key in ("step", "question_id", "sample_index", "verdict")},
            **{key: line[key] for key in ("reason", "finished", "question", "text", "answer")},
            "tokens": len(line["tokens"]),
        }
        for name, lines in outputs.items()
        for line in lines
    ]
    if not rows:
        return ""
    colours = {run.name: run_colour(place) for place, run in enumerate(runs)}
    data = json.dumps({"runs": colours, "outputs": rows}, ensure_ascii=False)
    # Inside <script> only these could end the element or open a comment.
    for sign in "<>&":
        data = data.replace(sign, f"\\u{ord(sign):04x}")
    filters = "".join(
        f'<label>{name}<select id="outputs-{name}"><option value="">all</option></select></label>'
        for name in ("run", "verdict", "reason", "step")
    )
    return (
        '<p class="note">Outputs spread evenly over the rollouts of each run, whatever their '
        "verdict; every output is in RUN/rollouts.</p>"
        f'<div class="filters">{filters}<label>text<input id="outputs-search" type="search" '
        'placeholder="in question or output"></label></div>'
        '<p class="note" id="outputs-count">The browser of outputs needs JavaScript.</p>'
        '<div id="outputs-list"></div><button id="outputs-more" hidden>Show more</button>'
        f'<script type="application/json" id="outputs-data">{data}</script>'
    )


def _script() -> str:
    return f"<script>{SCRIPT}</script>"
