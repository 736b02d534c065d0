"""From the rounds of a contest to one record: figures, ratios, shares of the floor; as JSON.

A record (all times in seconds, all rates per second):

    {"job", "size", "work": {...}, "shape": {...}, "rounds", "cores", "device", "command",
     "machine": {"flops": {min, median, max}, "bytes": {min, median, max}},
     "floor": {"seconds", "tokens_per_second", "phases": {PHASE: {flops, bytes, seconds, bound}}},
     "contenders": {NAME: {"peer", "options", "versions", "device", "first_call_seconds",
        "peak_memory_gib", "seconds": [...], "tokens_per_second": {min, median, max},
        "floor_share", "ratio": {min, median, max}, "waiting_cores": [...], "foreign_cores": [...],
        "error"}},
     "fact_share": {NAME: {min, median, max}}}
"""

from __future__ import annotations

import json
import platform
import shlex
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import floors
from benchmarks.contest import Entry
from benchmarks.floors import Rates
from benchmarks.work import Task

MACHINE = "machine"
"""The contender that measures rates (machine.py)."""

LOSS_GAP = 0.02
"""Contenders whose first losses, in nats, differ by more do not do the same work: their weights are
different draws of one law, so losses differ by some 0.001."""

PATHS = ("--hf-python", "--tunix-python", "--out", "--workdir")
"""Flags whose value is a path of the machine."""

Record = dict[str, Any]


def spread(values: Sequence[float]) -> dict[str, float]:
    """The least, the middle and the largest value."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def command(program: str, arguments: Sequence[str]) -> str:
    """The command line; a flag's name in capitals stands for a path of the machine."""
    words: list[str] = []
    for word in arguments:
        named = words[-1] if words else ""
        flag, joined, _ = word.partition("=")
        if named in PATHS:
            word = named[2:].replace("-", "_").upper()
        elif joined and flag in PATHS:
            word = f"{flag}={flag[2:].replace('-', '_').upper()}"
        words.append(word)
    return shlex.join(("python", "-m", program, *words))


def processor() -> str:
    """The CPU's name, where the system says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _ratios(ours: Entry, peers: Sequence[Entry]) -> list[float]:
    """How many times as fast as the fastest peer, round by round, where both have the round."""
    found = []
    for call in ours.calls:
        theirs = [
            other["seconds"]
            for peer in peers
            for other in peer.calls
            if other["round"] == call["round"]
        ]
        if theirs:
            found.append(min(theirs) / call["seconds"])
    return found


def _share(with_facts: Entry, without: Entry) -> list[float]:
    """The part of a call that goes to log-probs and entropies, round by round."""
    plain = {call["round"]: call["seconds"] for call in without.calls}
    return [
        1.0 - plain[call["round"]] / call["seconds"]
        for call in with_facts.calls
        if call["round"] in plain
    ]


def _check_losses(entries: Sequence[Entry]) -> None:
    """ValueError when contenders that train start from different losses."""
    losses = {e.contender.name: e.first["loss"] for e in entries if "loss" in e.first}
    if losses and max(losses.values()) - min(losses.values()) > LOSS_GAP:
        raise ValueError(f"contenders do not compute the same loss: {losses}.")


def make_record(
    entries: Sequence[Entry], task: Task, rounds: int, *, command: str, facts: bool = False
) -> Record:
    """The record of a contest. facts: contenders come in pairs NAME and `NAME without`, and the
    share of NAME's time that log-probs and entropies take is wanted.

    The floor is taken at the highest rates seen in any round, so shares of it are not flattered.
    """
    _check_losses(entries)
    work, useful = task.work, task.work.useful_tokens(task.job)
    by_name = {entry.contender.name: entry for entry in entries}
    record: Record = {
        "job": "facts" if facts else task.job,
        "size": work.size,
        "work": asdict(work) | {"useful_tokens": useful},
        "shape": asdict(work.shape),
        "rounds": rounds,
        "cores": task.cores,
        "processor": processor(),
        "command": command,
    }
    floor_seconds = None
    machine = by_name.pop(MACHINE, None)
    if machine is not None and machine.calls:
        measured = {
            key: spread([call[key] for call in machine.calls]) for key in ("flops", "bytes")
        }
        rates = Rates(measured["flops"]["max"], measured["bytes"]["max"])
        costs = floors.phases(work, task.job)
        floor_seconds = floors.seconds(costs, rates)
        record["machine"] = measured | {"device": machine.ready["device"]}
        record["floor"] = {
            "seconds": floor_seconds,
            "tokens_per_second": useful / floor_seconds,
            "phases": {
                name: {
                    "flops": cost.flops,
                    "bytes": cost.bytes,
                    "seconds": rates.seconds(cost),
                    "bound": rates.bound(cost),
                }
                for name, cost in costs.items()
            },
        }
    peers = [entry for entry in by_name.values() if entry.contender.peer]
    record["contenders"] = {
        name: _contender(entry, useful, floor_seconds, [] if facts else peers)
        for name, entry in by_name.items()
    }
    if facts:
        shares = {
            name: _share(entry, by_name[f"{name} without"])
            for name, entry in by_name.items()
            if f"{name} without" in by_name
        }
        record["fact_share"] = {name: spread(values) for name, values in shares.items() if values}
    return record


def _contender(
    entry: Entry, useful: int, floor_seconds: float | None, peers: Sequence[Entry]
) -> Record:
    """One contender's part of a record."""
    found: Record = {
        "peer": entry.contender.peer,
        "options": entry.contender.options,
        "versions": entry.ready.get("ready", {}),
        "device": entry.ready.get("device", ""),
    }
    if entry.error:
        found["error"] = entry.error.splitlines()[0]
    if not entry.calls:
        return found
    times = [call["seconds"] for call in entry.calls]
    found |= {
        "first_call_seconds": entry.first["seconds"],
        "peak_memory_gib": max(call["peak_memory_gib"] for call in entry.calls),
        "seconds": times,
        "tokens_per_second": spread([useful / seconds for seconds in times]),
        "waiting_cores": [call["waiting_cores"] for call in entry.calls],
        "foreign_cores": [call["foreign_cores"] for call in entry.calls],
    }
    if "loss" in entry.first:
        found["first_loss"] = entry.first["loss"]
    if floor_seconds is not None:
        found["floor_share"] = floor_seconds / statistics.median(times)
    if peers and not entry.contender.peer:
        ratios = _ratios(entry, peers)
        if ratios:
            found["ratio"] = spread(ratios)
    return found


def write(records: Sequence[Record], path: Path) -> None:
    """Write records as {"records": [...]}."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"records": list(records)}, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {path.name}", file=sys.stderr)


def read(path: Path) -> list[Record]:
    """The records of a file that `write` wrote."""
    return list(json.loads(path.read_text(encoding="utf-8"))["records"])
