"""All benchmarks of one GPU in one call, within ten minutes; writes gpu.json.

    python -m benchmarks.gpu                 # on the machine with the card
    python -m benchmarks.gpu --cpu           # the same in small on a CPU: does it run?

A random model of Qwen2.5-1.5B's shape in bfloat16. Three contests, the surest first:

sample  64 questions x 8 outputs of exactly 512 tokens after prompts of 128: all 512 slots are full
        from the first step to the last, so its share of the floor is that of decoding.
update  64 sequences of 640 tokens, float32 masters; its share of the floor is that of the measured
        matrix rate.
ragged  as sample with lengths from 16 to 512, mean 160: ours with all slots and with refilled ones,
        transformers' continuous batching, Tunix.

A package that the interpreter cannot import is reported as missing. Results are written after each
contest. Nothing is started after --budget-s; what that leaves out is in the results too.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import cli, results, table
from benchmarks.contest import Contender, available_cores, contest
from benchmarks.results import Record
from benchmarks.work import Task, Work

SAMPLING = Work(
    "qwen2.5-1.5b",
    prompts=64, samples=8, prompt_len=128, new_tokens=512, min_len=16, mean_len=160.0,
    dtype="bfloat16",
)  # fmt: skip
TRAINING = replace(SAMPLING, prompts=8)
SMALL = Work("nano", prompts=8, prompt_len=16, new_tokens=48, min_len=4, mean_len=12.0)
"""In the place of SAMPLING on a CPU, whose XLA has not every bfloat16 product."""

SLOTS = 256
"""Of the refilled variant; half of the outputs at a time."""
UPDATES = ({"microbatch": 4, "remat": "none"}, {"microbatch": 4, "remat": "full"})
"""Settings of the update, the next one tried when one does not fit the memory."""
PROBES = {cli.HF: "import torch, transformers", cli.TUNIX: "import tunix.generate.sampler"}
PATIENCE = 240.0
"""Seconds that one answer of a worker may take, compilation included."""


@dataclass
class Session:
    """One call. missing: packages left out, with the reason; records: written so far."""

    arguments: argparse.Namespace
    environment: dict[str, str]
    deadline: float
    missing: list[str]
    records: list[Record]

    def run(self, contenders: Sequence[Contender], task: Task, rounds: int) -> bool:
        """One contest, its record written and printed; whether no contender failed."""
        rates = {"matrix": 512, "mebibytes": 64} if self.arguments.cpu else _STREAMS
        task = replace(task, options=task.options | rates)
        entries = contest(
            [cli.RATES, *contenders], task, rounds,
            environment=self.environment,
            deadline=self.deadline,
            patience=min(PATIENCE, max(self.deadline - time.monotonic(), 1.0)),
        )  # fmt: skip
        record = results.make_record(
            entries, task, rounds, command=results.command("benchmarks.gpu", sys.argv[1:])
        )
        record["left_out"] = list(self.missing)
        self.add(record)
        return not any(entry.error for entry in entries)

    def add(self, record: Record) -> None:
        """Keep a record, and write and print what there is."""
        self.records.append(record)
        name = "gpu-on-cpu.json" if self.arguments.cpu else "gpu.json"
        results.write(self.records, self.arguments.out / name)
        print(table.markdown(record), end="\n\n", flush=True)

    def in_time(self, what: str) -> bool:
        """Whether there is time left; says so where there is none."""
        if time.monotonic() < self.deadline:
            return True
        note = f"{what}: the time of --budget-s was spent"
        print(note, flush=True)
        if self.records:
            self.records[-1].setdefault("left_out", []).append(note)
            self.add(self.records.pop())
        return False


_STREAMS = {"matrix": 8192, "mebibytes": 2048}


def probe(python: str, statement: str, environment: dict[str, str]) -> str:
    """The last line of what goes wrong when an interpreter runs a statement; empty if nothing."""
    done = subprocess.run(
        [python, "-c", statement], capture_output=True, text=True, env=os.environ | environment
    )
    return done.stderr.strip().splitlines()[-1] if done.returncode else ""


def find_peers(
    arguments: argparse.Namespace, environment: dict[str, str]
) -> tuple[dict[str, str], list[str]]:
    """(interpreter of each package that can be imported, what is missing)."""
    pythons, missing = {cli.OURS: sys.executable}, []
    for name, python in ((cli.HF, arguments.hf_python), (cli.TUNIX, arguments.tunix_python)):
        problem = probe(python, PROBES[name], environment)
        if problem:
            missing.append(f"{name}, which this interpreter cannot import ({problem})")
            print(f"missing: {missing[-1]}", flush=True)
        else:
            pythons[name] = str(Path(python).absolute())
    return pythons, missing


def main() -> None:
    """Run the three contests; the exit status is 1 when one of ours failed for good."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--cpu", action="store_true", help="tiny shapes on a CPU")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--budget-s", type=float, default=540.0, help="seconds for everything")
    parser.add_argument("--hf-python", default=sys.executable)
    parser.add_argument("--tunix-python", default=sys.executable)
    parser.add_argument("--out", type=Path, default=table.RESULTS)
    arguments = parser.parse_args()
    deadline = time.monotonic() + arguments.budget_s
    with tempfile.TemporaryDirectory() as cache:
        # Contenders share the card: memory is taken as it is needed. Programs that several of our
        # workers need are compiled once.
        environment = {
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95",
            "JAX_COMPILATION_CACHE_DIR": cache,
        }
        if arguments.cpu:
            environment |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        pythons, missing = find_peers(arguments, environment)
        session = Session(arguments, environment, deadline, missing, [])
        sampling = SMALL if arguments.cpu else SAMPLING
        training = replace(SMALL, prompts=2) if arguments.cpu else TRAINING
        cores = available_cores()
        ours = cli.contender(cli.OURS, cli.OURS, pythons)
        clean = session.run([ours], Task("sample", sampling, cores, {}), arguments.rounds)
        trained = False
        for settings in UPDATES:
            if trained or not session.in_time(f"update with {settings}"):
                break
            name = f"{cli.OURS}, {settings['microbatch']} a micro-batch, remat {settings['remat']}"
            taking_part = [cli.contender(cli.OURS, name, pythons, **settings)]
            task = Task("update", training, cores, {})
            trained = session.run(taking_part, task, arguments.rounds)
        if session.in_time("ragged"):
            slots = sampling.sequences // (SAMPLING.sequences // SLOTS)
            refilled = cli.contender(cli.OURS, f"{cli.OURS}, {slots} slots", pythons, slots=slots)
            taking_part = [ours, refilled]
            if cli.TUNIX in pythons:
                taking_part.append(cli.contender(cli.TUNIX, cli.TUNIX, pythons))
            # Last, as its cache takes most of the memory that is free then.
            if cli.HF in pythons:
                name = f"{cli.HF}, continuous"
                taking_part.append(cli.contender(cli.HF, name, pythons, continuous=True))
            session.run(taking_part, Task("ragged", sampling, cores, {}), arguments.rounds)
    raise SystemExit(not (clean and trained))


if __name__ == "__main__":
    main()
