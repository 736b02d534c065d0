"""Seconds and live bytes of a step of each row of the table of methods, against Online RFT.

    python -m benchmarks.method_cost

Every row starts from one SFT model and, at a learning rate of almost 0, samples the same outputs in
all its steps: what differs is what it trains on. Seconds are of one core (of this process, whatever
else the machine does), and runs of a few steps take turns. A step lasts from one update's begin to
the next one's; the first, which compiles, is left out. A row of a pool has its share of the pool's
seconds in each step. Live bytes are the arrays on the device while an update runs; what XLA holds
within it is not among them. Medians of rounds.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.results import command, processor, spread
from rft_jax.checkpoint.provenance import git_commit, versions
from rft_jax.config import Config, TokenizerConfig
from rft_jax.distributed.process import keep_programs
from rft_jax.observe import log as metrics
from rft_jax.runs.run import run
from rft_jax.training.methods import METHODS

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))
from paradigm import BASELINE, ONE_CORE, Plan, arm
from small_start import START

ALMOST_ZERO = 1e-12
"""A learning rate that leaves a float32 policy as it is."""


def config_of(name: str, start: Path, steps: int) -> Config:
    """A short run of a row from the model in START/start, without evaluation."""
    found = arm(Plan(steps=steps, warmup=0), name, ALMOST_ZERO, 0, test=False)
    return replace(
        found,
        init_from=f"workdir:{start / 'start'}",
        tokenizer=TokenizerConfig(path=str(start / "tokenizer.model")),
        evaluation=replace(found.evaluation, every_steps=0, samples_per_question=0),
    )


def live_bytes() -> int:
    """Of all arrays on the first device. Several may be one buffer."""
    gc.collect()
    buffers: dict[int, int] = {}
    for array in jax.live_arrays():
        for shard in () if array.is_deleted() else array.addressable_shards:
            if shard.device == jax.devices()[0]:
                buffers[shard.data.unsafe_buffer_pointer()] = shard.data.nbytes
    return sum(buffers.values())


def measure(config: Config, workdir: Path) -> dict[str, float]:
    """One run: median seconds of a step and of its sampling, and the live bytes of an update."""
    marks: list[tuple[str, float]] = []
    live: list[int] = []
    before = live_bytes()

    def at(where: str) -> None:
        if where == "result of the update of step 1":
            live.append(live_bytes() - before)
        marks.append((where, time.process_time()))

    run("x", {"x": config}, workdir, at=at)
    begins = [seconds for where, seconds in marks if where.startswith("update of step")]
    pool = [seconds for where, seconds in marks if where.startswith("pool of step")]
    share = statistics.median(np.diff(pool)) if pool else 0.0
    rollouts = [
        after - began
        for (where, began), (_, after) in pairwise(marks)
        if where.startswith("rollout of step")
    ]
    lines = metrics.read(workdir / "x" / "metrics.jsonl")
    trained = [line["update/sequences"] for line in lines if line.get("update/sequences")]
    return {
        "step": float(statistics.median(np.diff(begins)[1:])) + share,
        "sampling": float(statistics.median(rollouts[2:])) if rollouts else share,
        "sequences": float(statistics.median(trained)),
        "live_bytes": live[0],
    }


def table(record: dict[str, Any]) -> str:
    """Medians, and their ratios to Online RFT, in Markdown."""
    head = ("row", "outputs trained on", "sampling, ms", "step, ms", "/ online_rft's",
            "live MiB", "/ online_rft's")  # fmt: skip
    rows = [head, ("---",) * len(head)]
    for name, found in record["rows"].items():
        middle = {key: value["median"] for key, value in found.items()}
        seconds = (f"{1000 * middle[part]:.0f}" for part in ("sampling", "step"))
        live = f"{middle['live_bytes'] / 2**20:.2f}"
        ratios = f"{middle['step_ratio']:.2f}", f"{middle['live_ratio']:.2f}"
        rows.append((name, f"{middle['sequences']:.0f}", *seconds, ratios[0], live, ratios[1]))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def compare(names: Sequence[str], rounds: int, steps: int, workdir: Path) -> dict[str, Any]:
    """Rounds of all rows, in turn. Ratios are to Online RFT of the same round."""
    names = list(dict.fromkeys([BASELINE, *names]))
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    run("start", {"start": START}, workdir)
    for _ in range(rounds):
        for name in names:
            with tempfile.TemporaryDirectory() as folder:
                found[name].append(measure(config_of(name, workdir.resolve(), steps), Path(folder)))
    for values in found.values():
        for one, base in zip(values, found[BASELINE], strict=True):
            one["step_ratio"] = one["step"] / base["step"]
            one["live_ratio"] = one["live_bytes"] / base["live_bytes"]
    return {
        name: {key: spread([one[key] for one in values]) for key in values[0]}
        for name, values in found.items()
    }


def main() -> None:
    """Measure, write the record and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rows", nargs="+", default=list(METHODS), help="leave out the others")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument(
        "--workdir", type=Path, default=Path("runs/paradigm"),
        help="of the paradigm study, whose SFT model is the start; trained if it is not there",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/method-cost.json"))
    arguments = parser.parse_args()
    os.environ.setdefault("XLA_FLAGS", ONE_CORE)
    keep_programs()
    record = {
        "command": command("benchmarks.method_cost", sys.argv[1:]),
        "processor": processor(),
        "versions": versions(),
        "git_commit": git_commit(),
        "rounds": arguments.rounds,
        "rows": compare(arguments.rows, arguments.rounds, arguments.steps, arguments.workdir),
    }
    arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(table(record))


if __name__ == "__main__":
    main()
