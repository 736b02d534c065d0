"""Tables of what the runs rest on, and of what has changed between their starts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rft_jax.report.load import LoggedRun
from rft_jax.report.tables import Table

_DIGEST = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")


def inputs(runs: Sequence[LoggedRun]) -> Table:
    """What each run rests on, as its config.json says; nothing of older versions."""
    rows = [(run.name, *row) for run in runs for row in input_rows(run.info)]
    note = "The first 12 characters of each SHA-256; config.json has all of it."
    return Table(("run", "what", "where", "sha256"), tuple(rows), (note,) if rows else ())


def changes(runs: Sequence[LoggedRun]) -> Table:
    """What each run was resumed with that had been other before."""
    rows = [(run.name, *row) for run in runs for row in change_rows(run.info)]
    return Table(("run", "step", "what", "was", "now"), tuple(rows), ())


def input_rows(info: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(what, where, digest) of the inputs that a config.json holds."""
    held = info.get("inputs")
    return [
        (name, str(one.get("where")), _shown(one["sha256"]))
        for name, one in (held.items() if isinstance(held, Mapping) else ())
        if isinstance(one, Mapping) and one.get("sha256")
    ]


def change_rows(info: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """(step, what, was, now) of the changes that a config.json holds."""
    held = info.get("changes")
    return [
        (str(one.get("step")), str(one.get("what")), _shown(one.get("was")), _shown(one.get("now")))
        for one in (held if isinstance(held, list) else ())
        if isinstance(one, Mapping)
    ]


def _shown(value: object) -> str:
    """A value; of a digest or a commit the beginning."""
    text = str(value)
    return text[:12] if _DIGEST.fullmatch(text) else text
