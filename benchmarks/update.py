"""The update side by side: forward, backward and AdamW on 128 sequences of 160 tokens.

    python -m benchmarks.update --hf-python PATH --tunix-python PATH --rounds 7

Every contender runs with each number of sequences in a micro-batch, since the best one depends on
the machine's caches; ours are compared with the fastest peer at whichever. Results go to
benchmarks/results/update-SIZE.json.
"""

from __future__ import annotations

import argparse

from benchmarks import cli
from benchmarks.contest import Contender
from benchmarks.work import Task, Work


def contenders(work: Work, pythons: dict[str, str], microbatches: list[int]) -> list[Contender]:
    """Each package with each micro-batch that divides the batch."""
    found = []
    for package in pythons:
        for count in microbatches:
            if work.sequences % count:
                raise SystemExit(f"--microbatches: {count} does not divide {work.sequences}.")
            name = f"{package}, {count} a micro-batch"
            found.append(cli.contender(package, name, pythons, microbatch=count))
    return found


def main() -> None:
    """Run the job; the exit status is 1 when a contender failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    cli.add_flags(parser)
    parser.add_argument("--microbatches", nargs="+", type=int, default=[128, 16])
    arguments = parser.parse_args()
    pythons = cli.interpreters(arguments)
    clean = True
    for size in arguments.size:
        work = cli.work_of(arguments, size)
        taking_part = contenders(work, pythons, arguments.microbatches)
        task = Task("update", work, arguments.cores, {})
        clean &= cli.compete(taking_part, task, arguments, "benchmarks.update")
    raise SystemExit(not clean)


if __name__ == "__main__":
    main()
