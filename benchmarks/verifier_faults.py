"""Hurt the workers of the verifier in every way, and check that only what must be lost is lost.

    python -m benchmarks.verifier_faults --items 100000 --workers 4 2>/dev/null

One item in a hundred is poison; each kind of poison has a run of its own. Checked: every good item
has its right verdict; poison that hangs, crashes or allocates without bound is undecided; poison
that prints or forks does no harm. With `kill`, processes are killed from outside at random instead,
and no item may be wrong (ten times the items, so that some are hit). No process may be left, and
the wall time must keep the bound

    good work + (poisoned items x (time of one + restart)) / workers + slack

where `good work` is twice what the same verifier takes without poison, the time of a hanging item
is the deadline, that of another at most ALLOCATING seconds, a restart takes RESTART seconds and the
slack is a deadline and a second. What a verifier prints goes to stderr: send it away.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from rft_jax.types import Judgement, Verdict
from rft_jax.verification.pool import Item, VerifierPool
from rft_jax.verification.rules import Limits, VerifierSpec

HANGS = ("hang", "hang-in-c")
CRASHES = ("segfault", "exit", "allocate")
HARMLESS = ("print", "fork")
KINDS = (*CRASHES, *HARMLESS, "kill", *HANGS)
SPEC = VerifierSpec("benchmarks.poison:judge")
RESTART = 0.03
"""Seconds in which a worker is replaced and has imported the verifier's module."""
ALLOCATING = 0.5
"""Seconds within which allocation meets the limit of memory."""
MEMORY_MB = 512


def items_with(poison: str, count: int, share: float, chance: random.Random) -> list[Item]:
    """GSM8K-style items, right and wrong in turn, `share` of them poisoned."""
    items = []
    for number in range(count):
        answer = number % 1000
        output = f"First {answer} - 1 = <<{answer}-1={answer - 1}>>{answer - 1}.\n#### "
        output += str(answer + number % 2)
        harmful = chance.random() < share
        items.append(Item(str(answer), f"poison {poison}" if harmful else output, True))
    return items


def expected(item: Item, number: int, poison: str) -> set[Verdict]:
    """The verdicts that are right for an item."""
    if item.output.startswith("poison "):
        return {Verdict.CORRECT} if poison in HARMLESS else {Verdict.UNDECIDED}
    right = Verdict.INCORRECT if number % 2 else Verdict.CORRECT
    return {right, Verdict.UNDECIDED} if poison == "kill" else {right}


def children() -> list[int]:
    """Processes that this process started, and theirs."""
    shown = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True)
    above: dict[int, int] = {}
    for line in shown.stdout.splitlines():
        pid, parent = map(int, line.split())
        above[pid] = parent
    found = [os.getpid()]
    for parent in found:
        found += [pid for pid, ppid in above.items() if ppid == parent]
    # `ps` itself was one of them, and is gone.
    return [pid for pid in found[1:] if Path(f"/proc/{pid}/exe").exists()]


def _kill_workers(stop: threading.Event, every: float, killed: list[int], keepers: int) -> None:
    chance = random.Random(1)
    while not stop.wait(every):
        # The nursery is the pool's only child; below it are the keepers, and then the workers.
        workers = children()[1 + keepers :]
        if workers:
            with suppress(ProcessLookupError):
                killed.append(chance.choice(workers))
                os.kill(killed[-1], signal.SIGKILL)


def run(poison: str, items: list[Item], limits: Limits) -> dict[str, Any]:
    """Judge the items and say what became of them: seconds, wrong verdicts, reasons, processes."""
    stop = threading.Event()
    killed: list[int] = []
    killer = threading.Thread(target=_kill_workers, args=(stop, 0.05, killed, limits.workers))
    with VerifierPool(SPEC, limits) as pool:
        if poison == "kill":
            killer.start()
        began = time.monotonic()
        judged: list[Judgement] = pool.verify(items)
        seconds = time.monotonic() - began
        stop.set()
        if poison == "kill":
            killer.join()
    wrong = [
        (item, one)
        for number, (item, one) in enumerate(zip(items, judged, strict=True))
        if one.verdict not in expected(item, number, poison)
    ]
    return {
        "poison": poison,
        "seconds": round(seconds, 2),
        "items_per_second": round(len(items) / seconds),
        "poisoned": len(killed) or sum(item.output.startswith("poison ") for item in items),
        "undecided": Counter(one.reason for one in judged if one.verdict is Verdict.UNDECIDED),
        "wrong": len(wrong),
        "first_wrong": repr(wrong[0]) if wrong else "",
        "processes_left": len(children()),
    }


def bound(row: dict[str, Any], clean: float, limits: Limits) -> float:
    """Seconds that a run may take, as the module's text states."""
    each = {"allocate": ALLOCATING}.get(row["poison"], 0.0)
    each = limits.timeout_seconds if row["poison"] in HANGS else each
    harmed = row["poisoned"] if row["poison"] not in HARMLESS else 0
    slack = limits.timeout_seconds + 1.0
    good = 2 * clean * (10 if row["poison"] == "kill" else 1)
    return good + harmed * (each + RESTART) / min(limits.workers, os.cpu_count() or 1) + slack


def main() -> int:
    """Run every kind, print a table, and return 1 when a check failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--poison", type=float, default=0.01, help="share of poisoned items")
    parser.add_argument("--timeout", type=float, default=0.2)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    limits = Limits(arguments.workers, arguments.timeout, memory_mb=MEMORY_MB)
    clean = run("none", items_with("none", arguments.items, 0.0, random.Random(0)), limits)
    rows, failed = [clean], bool(clean["wrong"])
    print("| poison | poisoned | seconds | bound | items/s | wrong | undecided | left |")
    print("|---|---|---|---|---|---|---|---|")
    for kind in ("none", *arguments.kinds):
        share = 0.0 if kind in ("none", "kill") else arguments.poison
        if kind == "none":
            row = clean
        else:
            items = items_with(kind, arguments.items, share, random.Random(0))
            items *= 10 if kind == "kill" else 1  # time enough to hit some
            row = run(kind, items, limits)
            rows.append(row)
        row["bound_seconds"] = round(bound(row, clean["seconds"], limits), 1)
        failed |= bool(row["wrong"]) or row["processes_left"] > 0
        failed |= row["seconds"] > row["bound_seconds"]
        reasons = ", ".join(f"{count} {reason}" for reason, count in row["undecided"].items())
        print(
            f"| {kind} | {row['poisoned']:,} | {row['seconds']} | {row['bound_seconds']} "
            f"| {row['items_per_second']:,} | {row['wrong']} | {reasons} "
            f"| {row['processes_left']} |",
            flush=True,
        )
        if row["first_wrong"]:
            print(row["first_wrong"])
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print("FAILED" if failed else "all checks passed")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
