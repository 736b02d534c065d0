"""How often each alarm is raised over the runs of workdirs, and when.

    python -m benchmarks.alarms WORKDIR... [--set pass_rate=0.3 ...]

What an older version did not log is computed from what the run left: the spread of rewards from the
histogram of pass rates, turnover from the rows of evaluations.
"""

from __future__ import annotations

import argparse
import ast
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rft_jax.config import AlarmsConfig
from rft_jax.evaluation.evaluate import turnover
from rft_jax.io.jsonl import read_jsonl
from rft_jax.observe.alarms import ALARMS, Alarm, Lines, raised
from rft_jax.observe.log import read


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.alarms", description=__doc__)
    parser.add_argument("workdirs", nargs="+", type=Path, metavar="WORKDIR")
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="of alarms")
    options = parser.parse_args()
    fields = (item.partition("=") for item in options.set)
    config = AlarmsConfig(**{name: ast.literal_eval(value) for name, _, value in fields})
    runs = [
        path.parent for each in options.workdirs for path in sorted(each.glob("*/metrics.jsonl"))
    ]
    found_in = {run: raised(Lines(lines_of(run)), config) for run in runs}
    print(table(found_in))
    for run, found in found_in.items():
        for alarm in found:
            print(f"{run.parent.name}/{run.name}: {alarm}")


def lines_of(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics, with what an older version left out."""
    rows = {
        int(path.stem.rpartition("-")[2]): path
        for path in (run / "evaluation").glob("validation-[0-9]*.jsonl")
    }
    start = read_jsonl(rows[0], {"question_id": int}) if 0 in rows else None
    lines = []
    for line in read(run / "metrics.jsonl"):
        older: dict[str, Any] = {}
        if line["kind"] == "train" and "questions/pass_rate_histogram" in line:
            older["questions/reward_deviation"] = _deviation(line["questions/pass_rate_histogram"])
        elif line["kind"] == "validation" and line["step"] in rows and line["step"] and start:
            older |= turnover(start, read_jsonl(rows[line["step"]], {"question_id": int}))
        lines.append(older | line)
    return lines


def _deviation(histogram: Sequence[int]) -> float:
    """The mean standard deviation of verdicts within questions, of questions by their number of
    correct outputs."""
    group, questions = len(histogram) - 1, max(sum(histogram), 1)
    spread = [math.sqrt(k * (group - k)) / group for k in range(group + 1)]
    return sum(n * one for n, one in zip(histogram, spread, strict=True)) / questions


def table(found_in: Mapping[Path, Sequence[Alarm]]) -> str:
    """By alarm: in how many runs it was raised, and the first steps at which."""
    lines = [
        f"{len(found_in)} runs",
        "| alarm | runs | share | first raised at step |",
        "|---|---|---|---|",
    ]
    for name in ALARMS:
        firsts = [
            min(alarm.since for alarm in found if alarm.name == name)
            for found in found_in.values()
            if any(alarm.name == name for alarm in found)
        ]
        steps = ", ".join(map(str, sorted(firsts)))
        lines.append(
            f"| {name} | {len(firsts)} | {len(firsts) / max(len(found_in), 1):.3f} | {steps} |"
        )
    quiet = sum(not found for found in found_in.values())
    return "\n".join([*lines, f"no alarm at all: {quiet} of {len(found_in)}", ""])


if __name__ == "__main__":
    main()
