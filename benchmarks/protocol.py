"""What a worker process and the one that times it say to each other, as lines of JSON.

A worker is a process of its own, in the interpreter of its package. It is started with its task
as the only argument, prepares, and says {"ready": versions, ...}. Then each line on its standard
input, a number, asks for one timed call, and it answers {"seconds": ..., ...}. It ends at the end
of its input. Between calls it waits for a line, so it uses no core (`contest.py` measures that).

Standard library and numpy only.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import sys
import time
import traceback
from collections.abc import Callable
from importlib import metadata
from typing import Any

from benchmarks.work import Task

Call = Callable[[int], dict[str, Any]]
"""Do the job once, to the end; the number is the seed. Returns facts for the record, with `tokens`
made or trained on."""

Prepare = Callable[[Task], Call]


def task() -> Task:
    """The task of this worker, from its command line."""
    return Task.from_json(json.loads(sys.argv[1]))


def versions(*names: str) -> dict[str, str]:
    """Versions of Python and of those distributions that are installed."""
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def peak_memory_gib() -> float:
    """The most resident memory this process has had, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)


def serve(prepare: Prepare, *, packages: tuple[str, ...], device: Callable[[], str]) -> None:
    """Run a worker: prepare its task, then make one call per line of input.

    packages: distributions whose versions are reported; device: names the device in use.
    """
    # Whatever a package prints must not come between the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(values: dict[str, Any]) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    try:
        began = time.perf_counter()
        call = prepare(task())
        prepared = time.perf_counter() - began
        facts = {"ready": versions(*packages), "device": device(), "prepare_seconds": prepared}
        answer(facts)
        for line in sys.stdin:
            number = int(line)
            began = time.perf_counter()
            facts = call(number)
            seconds = time.perf_counter() - began
            answer({"seconds": seconds, "peak_memory_gib": peak_memory_gib()} | facts)
    except Exception as error:
        traceback.print_exc()
        answer({"error": f"{type(error).__name__}: {error}".splitlines()[0][:300]})
        raise SystemExit(1) from error
