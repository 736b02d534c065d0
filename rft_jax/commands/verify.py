"""`rft-jax verify` and `rft_jax.verify`: a verdict for each output. Imports no jax."""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rft_jax.commands.options import Judging
from rft_jax.errors import DataError
from rft_jax.io.jsonl import data_rows
from rft_jax.io.paths import check_file, new_file
from rft_jax.observe.progress import Progress
from rft_jax.types import Judgement, Verdict
from rft_jax.verification import symbolic
from rft_jax.verification.functions import GIVEN
from rft_jax.verification.pool import Item, VerifierPool
from rft_jax.verification.rules import Limits, VerifierSpec

ROWS_AT_ONCE = 4096
"""Rows sent to the workers together; two such blocks are in memory."""


REASONS_SHOWN = 40
"""Rows of the table, the most frequent; a function of the user's may give each output its own."""


class Scores(NamedTuple):
    """counts: rows by (verdict, reason); skipped: malformed rows, which have no row in the output
    and were skipped because that was asked for."""

    counts: Counter[tuple[str, str]]
    skipped: int


def score_file(
    path: Path, out: Path, spec: VerifierSpec, limits: Limits, *, skip_bad: bool
) -> Scores:
    """Write the rows of `path` (JSONL with `reference` and `output`) to `out` in order, each with
    `verdict` and `reason` added.

    The whole input is checked first, and `out` appears complete or not at all. Raises DataError
    for an unusable file or row, VerifierError when the verifier cannot run.
    """
    if out.exists() and path.exists() and out.samefile(path):
        raise DataError(f"--out is {out}, the file that is read: name another.")
    check_file(out)
    total, skipped = _checked(path, spec, skip_bad)
    counts: Counter[tuple[str, str]] = Counter()
    with (
        new_file(out) as file,
        VerifierPool(spec, limits) as pool,
        Progress(total, 0, f"verify {path.name}", unit="row") as progress,
    ):
        for row, judgement in _judged(path, pool):
            row |= {"verdict": judgement.verdict.value, "reason": judgement.reason}
            said = {
                "stated": judgement.answer,
                "reward": judgement.reward,
                "steps": judgement.steps or None,
            }
            row |= {name: value for name, value in said.items() if value is not None}
            file.write(json.dumps(row) + "\n")
            counts[row["verdict"], row["reason"]] += 1
            done = counts.total()
            if done % ROWS_AT_ONCE == 0 or done == total:
                progress.update(done)
    return Scores(counts, skipped)


def verify(
    rows: Iterable[Mapping[str, Any]],
    *,
    verifier: str | None = None,
    comparison: Literal["exact", "math"] | None = None,
    checks: Sequence[str] | None = None,
    tolerance: float | str | Fraction | None = None,
    workers: int | None = None,
    timeout_seconds: float | None = None,
) -> list[Judgement]:
    """Judge outputs, each in a worker process.

    Args:
        rows: of `reference` (a bare answer, or a solution that ends in `#### 18`) and `output`; for
            a function of yours also `question` and whatever it reads.
        verifier: auto (the default), hash, boxed, tagged, lenient_last_number or module:function.
        comparison: exact, or math, the default where math-verify is installed.
        checks: what a correct output must also pass: equations, ends_with_answer, module:function.
        tolerance: largest relative difference of two numbers, 0 by default.
        workers: processes, by default one a core.
        timeout_seconds: that one output may take, 10 by default; past them it is undecided.

    Returns: a verdict and its reason for each row, in order.

    Raises DataError for a malformed row, ConfigError and VerifierError for a verifier that cannot
    run.
    """
    judging = Judging.of(
        verifier=verifier,
        comparison=comparison,
        checks=checks,
        tolerance=tolerance,
        workers=workers,
        timeout_seconds=timeout_seconds,
    )
    spec, limits = judge(judging)
    items = []
    for number, row in enumerate(rows):
        if (problem := _problem(row, spec)) is not None:
            raise DataError(f"rows[{number}]: {problem}: fix the row, or leave it out.")
        items.append(_item(row, spec))
    with VerifierPool(spec, limits) as pool:
        return pool.verify(items)


def judge(judging: Judging) -> tuple[VerifierSpec, Limits]:
    """The verifier and its limits where no run has any: what is not given has its own default."""
    comparison: Any = "math" if symbolic.available() else "exact"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return override(VerifierSpec("auto", comparison), Limits(cores or 1, 10.0), judging)


def override(spec: VerifierSpec, limits: Limits, judging: Judging) -> tuple[VerifierSpec, Limits]:
    """A verifier and its limits with what is given in place of their own."""
    spec_values: dict[str, Any] = {
        "name": judging.verifier,
        "comparison": judging.comparison,
        "checks": judging.checks,
        "tolerance": judging.tolerance,
    }
    limit_values: dict[str, Any] = {
        "workers": judging.workers,
        "timeout_seconds": judging.timeout_seconds,
    }
    return spec._replace(**_given(spec_values)), limits._replace(**_given(limit_values))


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def table(scores: Scores) -> str:
    """Rows by verdict and reason, the most frequent first, in Markdown."""
    total = scores.counts.total()
    lines = ["| verdict | reason | rows | share |", "|---|---|---|---|"]
    order = [verdict.value for verdict in Verdict]
    frequent = scores.counts.most_common(REASONS_SHOWN)
    for (verdict, reason), count in sorted(
        frequent, key=lambda item: (order.index(item[0][0]), -item[1], item[0][1])
    ):
        reason = reason.replace("|", "\\|")
        lines.append(f"| {verdict} | {reason} | {count:,} | {count / total:.1%} |")
    decided = {v: sum(n for (w, _), n in scores.counts.items() if w == v) for v in order}
    if rest := total - sum(count for _, count in frequent):
        others = len(scores.counts) - len(frequent)
        lines.append(f"| | {others:,} other reasons | {rest:,} | {rest / total:.1%} |")
    known = decided["correct"] + decided["incorrect"]
    rate = f"{decided['correct'] / known:.1%}" if known else "none decided"
    lines.append(f"\n{total:,} rows; correct among decided: {rate}")
    if scores.skipped:
        lines.append(f"{scores.skipped:,} malformed rows skipped")
    return "\n".join(lines)


def _judged(path: Path, pool: VerifierPool) -> Iterator[tuple[dict[str, Any], Judgement]]:
    """Rows with their judgements, in order; one block is judged while the next is read."""
    rows = _good_rows(path, pool.spec)
    waiting: list[tuple[list[dict[str, Any]], Future[list[Judgement]]]] = []
    while block := list(islice(rows, ROWS_AT_ONCE)):
        items = [_item(row, pool.spec) for row in block]
        waiting.append((block, pool.submit(items)))
        if len(waiting) > 1:
            done, future = waiting.pop(0)
            yield from zip(done, future.result(), strict=True)
    for done, future in waiting:
        yield from zip(done, future.result(), strict=True)


def _item(row: Mapping[str, Any], spec: VerifierSpec) -> Item:
    """A row as a verifier takes it; a function of the user's reads its question and columns too."""
    columns = {name: row[name] for name in row if name not in GIVEN}
    output = (str(row.get("opened", "")) if spec.is_rule else "") + row["output"]
    return Item(row["reference"], output, True, str(row.get("question", "")), columns)


def _checked(path: Path, spec: VerifierSpec, skip_bad: bool) -> tuple[int, int]:
    """(good rows, malformed rows); DataError for the first malformed one unless skip_bad."""
    good = bad = 0
    for number, row in _rows(path, spec):
        if isinstance(row, dict):
            good += 1
        elif skip_bad:
            bad += 1
        else:
            raise DataError(f"{path}:{number}: {row}: fix the row, or pass --skip_bad.")
    if not good:
        raise DataError(f"{path}: there is no row to verify.")
    return good, bad


def _good_rows(path: Path, spec: VerifierSpec) -> Iterator[dict[str, Any]]:
    return (row for _, row in _rows(path, spec) if isinstance(row, dict))


def _rows(path: Path, spec: VerifierSpec) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """(line number from 1, the row or what is wrong with it)."""
    try:
        with contextlib.closing(data_rows(path)) as rows:
            for number, row in rows:
                yield number, row if isinstance(row, str) else _problem(row, spec) or row
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from error


def _problem(row: object, spec: VerifierSpec) -> str | None:
    """What is wrong with a row."""
    if not isinstance(row, Mapping):
        return f"the row is a {type(row).__name__}, not an object"
    for name in ("reference", "output"):
        known = name in row and name == "reference" and spec.takes_any_answer
        if not known and not isinstance(row.get(name), str):
            held = type(row[name]).__name__ if name in row else "missing"
            return f"field {name!r} must be text, it is {held}"
    return None
