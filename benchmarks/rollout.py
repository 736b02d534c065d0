"""Sampling side by side: full lengths, ragged lengths, and what log-probs cost.

    python -m benchmarks.rollout --hf-python PATH --tunix-python PATH --rounds 7

Jobs (README.md): sample, ragged, facts. Results go to benchmarks/results/JOB-SIZE.json.
"""

from __future__ import annotations

import argparse

from benchmarks import cli
from benchmarks.contest import Contender
from benchmarks.work import Task

JOBS = ("sample", "ragged", "facts")


def contenders(job: str, pythons: dict[str, str], slots: list[int], cb: bool) -> list[Contender]:
    """Who takes part in a job, and how.

    sample: each package as it is; ragged: ours also with slots, refilled, and transformers also
    with continuous batching when `cb`; facts: each package with and without log-probs (ours:
    and entropies, which the others do not offer).
    """
    found = []
    for package in pythons:
        if job == "facts":
            for name, facts in ((package, True), (f"{package} without", False)):
                found.append(cli.contender(package, name, pythons, facts=facts))
            continue
        found.append(cli.contender(package, package, pythons))
        if job == "ragged" and package == cli.OURS:
            for count in slots:
                name = f"{package}, {count} slots"
                found.append(cli.contender(package, name, pythons, slots=count))
        if job == "ragged" and package == cli.HF and cb:
            name = f"{package}, continuous"
            found.append(cli.contender(package, name, pythons, continuous=True))
    return found


def main() -> None:
    """Run the jobs; the exit status is 1 when a contender failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    cli.add_flags(parser)
    parser.add_argument("--job", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--slots", nargs="*", type=int, default=[32, 64], help="ours, ragged")
    parser.add_argument("--cb", action="store_true", help="transformers' continuous batching too")
    arguments = parser.parse_args()
    pythons = cli.interpreters(arguments)
    clean = True
    for size in arguments.size:
        for job in arguments.job:
            task = Task(
                "ragged" if job == "ragged" else "sample",
                cli.work_of(arguments, size),
                arguments.cores,
                {},
            )
            taking_part = contenders(job, pythons, arguments.slots, arguments.cb)
            clean &= cli.compete(
                taking_part, task, arguments, "benchmarks.rollout", facts=job == "facts"
            )
    raise SystemExit(not clean)


if __name__ == "__main__":
    main()
