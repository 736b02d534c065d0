"""What the commands have in common: flags, which contenders take part, and the run of one job."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks import results, table
from benchmarks.contest import Contender, available_cores, contest
from benchmarks.work import SHAPES, Task, Work

OURS, HF, TUNIX = "ours", "transformers", "tunix"
PACKAGES = (OURS, HF, TUNIX)
MODULES = {
    OURS: "benchmarks.peers.ours",
    HF: "benchmarks.peers.hf",
    TUNIX: "benchmarks.peers.tunix",
}
FLAGS = {HF: "--hf-python", TUNIX: "--tunix-python"}
RATES = Contender(results.MACHINE, "benchmarks.machine")
STREAMS = {"matrix": 3072, "mebibytes": 512}
"""With what rates are measured: side of the matrices, MiB of each stream (far above caches)."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `rollout` and `update`."""
    parser.add_argument("--size", nargs="+", choices=SHAPES, default=["tiny", "small"])
    parser.add_argument("--rounds", type=int, default=5, help="timed calls of each contender")
    parser.add_argument("--cores", type=int, default=available_cores(), help="CPU cores of each")
    parser.add_argument(FLAGS[HF], default="", help="interpreter that has transformers and torch")
    parser.add_argument(FLAGS[TUNIX], default="", help="interpreter that has google-tunix")
    parser.add_argument("--only", nargs="+", choices=PACKAGES, default=list(PACKAGES))
    parser.add_argument("--without", nargs="+", choices=PACKAGES, default=[])
    parser.add_argument("--out", type=Path, default=table.RESULTS, help="folder of the JSON files")
    for name, kind, what in (
        ("prompts", int, "questions of a call"),
        ("samples", int, "outputs of a question"),
        ("prompt_len", int, "tokens of a prompt"),
        ("new_tokens", int, "tokens of the longest output"),
        ("min_len", int, "tokens of the shortest ragged output"),
        ("mean_len", float, "mean tokens of ragged outputs"),
    ):
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=kind, default=getattr(Work, name), help=what)
    parser.add_argument(
        "--machine", type=json.loads, default=STREAMS,
        help="side of the matrices and MiB of each stream with which rates are measured",
    )  # fmt: skip


def work_of(arguments: argparse.Namespace, size: str) -> Work:
    """The work that the flags describe."""
    names = ("prompts", "samples", "prompt_len", "new_tokens", "min_len", "mean_len")
    return Work(size=size, **{name: getattr(arguments, name) for name in names})


def interpreters(arguments: argparse.Namespace) -> dict[str, str]:
    """The interpreter of each package that takes part.

    Exits with a message that names the flag when one is not given: nothing is left out silently.
    """
    taking_part = [name for name in arguments.only if name not in arguments.without]
    given = {OURS: sys.executable, HF: arguments.hf_python, TUNIX: arguments.tunix_python}
    for name in taking_part:
        if not given[name]:
            raise SystemExit(
                f"{name}: name its interpreter with {FLAGS[name]} (benchmarks/README.md says how "
                f"to install it), or leave it out with --without {name}."
            )
        if name != OURS and not Path(given[name]).is_file():
            raise SystemExit(f"{FLAGS[name]} is {given[name]}: there is no such file.")
    # Workers start in another folder. Links stay: an environment is known by where it is called.
    return {name: str(Path(given[name]).absolute()) for name in taking_part}


def contender(package: str, name: str, pythons: dict[str, str], **options: object) -> Contender:
    """A package under a name of its own with options of its worker."""
    return Contender(name, MODULES[package], pythons[package], options, peer=package != OURS)


def compete(
    contenders: Sequence[Contender],
    task: Task,
    arguments: argparse.Namespace,
    program: str,
    *,
    facts: bool = False,
) -> bool:
    """Run one contest, write OUT/JOB-SIZE.json and print its table; whether nobody failed."""
    task = replace(task, options=task.options | arguments.machine)
    entries = contest([RATES, *contenders], task, arguments.rounds)
    record = results.make_record(
        entries, task, arguments.rounds,
        command=results.command(program, sys.argv[1:]), facts=facts,
    )  # fmt: skip
    results.write([record], arguments.out / f"{record['job']}-{task.work.size}.json")
    print(table.markdown(record), end="\n\n", flush=True)
    return not any(entry.error for entry in entries)
