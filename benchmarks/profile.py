"""Where the time of one call of ours goes, by kind of operation, on a CPU.

    JAX_PLATFORMS=cpu python -m benchmarks.profile --job update --size tiny
    JAX_PLATFORMS=cpu python -m benchmarks.profile --job ragged --size small

Times are those of all threads together, from a profiler trace of one call after a first one. XLA
names a fusion after the operations in it; `ynn_fusion` and `dot` are matrix products. A `while`
holds the operations of its body, which are listed themselves, so it is left out.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

from benchmarks.contest import available_cores
from benchmarks.peers.ours import prepare
from benchmarks.work import SHAPES, Task, Work


def by_kind(events: Iterable[Mapping[str, Any]]) -> dict[str, tuple[float, int]]:
    """Kind of operation -> (seconds, how often), the longest first; kinds are names without their
    numbers."""
    seconds, count = Counter[str](), Counter[str]()
    for event in events:
        name = event.get("args", {}).get("hlo_op", "")
        kind = re.sub(r"(\.\d+|\.clone|\.remat\d*)+$", "", name)
        if kind and kind != "while":
            seconds[kind] += event["dur"] / 1e6
            count[kind] += 1
    return {kind: (seconds[kind], count[kind]) for kind, _ in seconds.most_common()}


def main() -> None:
    """Profile one call and print its kinds of operation."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--job", choices=("sample", "ragged", "update"), default="update")
    parser.add_argument("--size", choices=SHAPES, default="tiny")
    parser.add_argument("--microbatch", type=int, default=8, help="sequences of one, in update")
    parser.add_argument("--most", type=int, default=15, help="kinds to print")
    arguments = parser.parse_args()
    options = {"microbatch": arguments.microbatch} if arguments.job == "update" else {}
    work = Work(size=arguments.size)
    call = prepare(Task(arguments.job, work, available_cores(), options))
    call(0)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            call(1)
        (path,) = Path(folder).rglob("*.trace.json.gz")
        with gzip.open(path, "rt", encoding="utf-8") as file:
            found = by_kind(json.load(file)["traceEvents"])
    whole = sum(seconds for seconds, _ in found.values())
    print("| operation | ms | share | how often |\n| --- | --- | --- | --- |")
    for kind, (seconds, count) in list(found.items())[: arguments.most]:
        print(f"| {kind} | {1e3 * seconds:,.1f} | {100 * seconds / whole:.1f} % | {count:,} |")


if __name__ == "__main__":
    main()
