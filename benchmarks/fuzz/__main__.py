"""Give the commands thousands of odd inputs, each of which must end in a result or in one line.

    python -m benchmarks.fuzz --inputs 3000 --seed 0
    python -m benchmarks.fuzz --folder FOLDER --seed 0 --only workdir:17

Inputs are command lines, fields of runs, experiment files, rows of data, files of workdirs and
folders of models, made by a seeded generator (inputs.py) from a tiny experiment (material.py). Each
is given to the command line in a process of its own (attempt.py), which must end in time, in
bounded memory, by no signal and without a traceback, with status 0 or with one line that says what
is wrong; and what it computed from a damaged checkpoint must be what the undamaged one gives.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
import time
from collections import Counter
from itertools import islice
from pathlib import Path

from benchmarks.fuzz import material as materials
from benchmarks.fuzz import odd

QUICK = {"command_line", "experiment"}
"""Kinds that need no workdir: nearly all of their inputs are refused before one is read."""


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--inputs", type=int, default=3000, help="of all kinds together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first of each kind")
    parser.add_argument("--kinds", nargs="+", default=[], help="leave out the others")
    parser.add_argument("--only", default="", metavar="KIND:NUMBER", help="one input, shown whole")
    parser.add_argument("--folder", type=Path, help="of the material and of what was found")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--deadline", type=float, default=600.0, help="seconds on the clock for one input"
    )
    return parser.parse_args()


def main() -> int:
    """Fuzz, print what was found by its cause, and return 1 where anything was."""
    arguments = _arguments()
    folder = (arguments.folder or Path(tempfile.mkdtemp(prefix="rft_jax-fuzz-"))).absolute()
    os.environ.update(materials.environment(folder))
    whole = not arguments.kinds or not {*arguments.kinds} <= QUICK
    material = materials.make(folder / "material", whole=whole or bool(arguments.only))
    # Imported once, before any fork, with the settings above; no device is in use yet.
    from benchmarks.fuzz import attempt, inputs
    from rft_jax.commands import convert, evaluate, plan, sample  # noqa: F401
    from rft_jax.runs import run  # noqa: F401

    kinds = arguments.kinds or list(inputs.KINDS)
    each = range(arguments.first, arguments.first + -(-arguments.inputs // len(kinds)))
    chosen = [(kind, number) for number in each for kind in kinds][: arguments.inputs]
    if arguments.only:
        kind, _, number = arguments.only.partition(":")
        chosen = [(kind, int(number))]
    waiting, running = iter(chosen), list[attempt.Attempt]()
    endings = list[attempt.Ending]()
    found = dict[str, list[attempt.Ending]]()
    began = time.monotonic()
    while len(endings) < len(chosen):
        for kind, number in islice(waiting, arguments.jobs - len(running)):
            at = folder / "inputs" / f"{kind}-{number}"
            if at.exists():
                odd.remove(at)
            running.append(attempt.Attempt(kind, arguments.seed, number, material, at))
        for one in [*running]:
            if (ending := one.ended(arguments.deadline)) is None:
                continue
            running.remove(one)
            endings.append(ending)
            if cause := attempt.cause(ending, material):
                found.setdefault(f"{ending.kind}: {cause}", []).append(ending)
            else:
                odd.remove(ending.folder)
        time.sleep(0.005)
    if arguments.only:
        (only,) = endings
        print(shlex.join(only.words), only.what, only.stdout, only.stderr, sep="\n")
    for cause, of_cause in sorted(found.items(), key=lambda item: -len(item[1])):
        first = min(of_cause, key=lambda one: len(str(one.words)))
        print(f"{len(of_cause):>5}  {cause}")
        print(f"       {first.label}: {first.what!r:.160}\n       {shlex.join(first.words):.200}")
    statuses = Counter((one.kind, str(one.status)) for one in endings)
    for (kind, status), count in sorted(statuses.items()):
        print(f"{count:>6,}  {kind}: status {status}")
    slowest = max(endings, key=lambda one: one.seconds)
    largest = max(endings, key=lambda one: one.resident)
    print(f"slowest: {slowest.label}, {slowest.seconds:.0f} s; "
          f"largest: {largest.label}, {largest.resident / 2**20:,.0f} MiB")  # fmt: skip
    print(f"{len(endings):,} inputs in {time.monotonic() - began:.0f} s: "
          f"{sum(map(len, found.values()))} findings of {len(found)} causes")  # fmt: skip
    if found:
        print(f"again: python -m benchmarks.fuzz --folder {folder} --seed {arguments.seed} "
              "--only KIND:NUMBER")  # fmt: skip
    elif not arguments.folder:
        odd.remove(folder)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
