"""The floors of decoding, prefill and the update per token, as a table in Markdown.

python -m benchmarks.floor_table                       # at this machine's rates, measured now
python -m benchmarks.floor_table --flops 2e11 --bytes 3e10
"""

from __future__ import annotations

import argparse

from benchmarks import cli, floors, gpu
from benchmarks.contest import available_cores, contest
from benchmarks.floors import Rates
from benchmarks.work import Task, Work
from rft_jax.observe.flops import Cost

CPU = ((Work(size="tiny"), Work(size="tiny")), (Work(size="small"), Work(size="small")))
GPU = ((gpu.SAMPLING, gpu.TRAINING),)
"""Pairs: what is sampled, and what an update is made on."""


def costs(work: Work, training: Work) -> dict[str, Cost]:
    """Per token: of a prompt, of a decoded token half way with all slots full, of an update."""
    prompts, trained = work.prompts * work.prompt_len, training.useful_tokens("update")
    own = work.new_tokens // 2
    slots = {"slots": work.sequences, "samples": work.samples}
    first, update = floors.prefill(work), floors.update(training)
    return {
        "prefill": Cost(first.flops / prompts, first.bytes / prompts),
        "decode": floors.per_token(work.size, work.dtype, **slots, prompt=work.prompt_len, own=own),
        "update": Cost(update.flops / trained, update.bytes / trained),
    }


def rows(work: Work, training: Work, rates: Rates) -> list[str]:
    """One line for each of `costs`."""
    found = []
    for phase, cost in costs(work, training).items():
        cells = [
            work.size,
            phase,
            f"{cost.flops / 1e6:,.1f}",
            f"{cost.bytes / 1e3:,.1f}",
            f"{cost.flops / cost.bytes:,.0f}",
            f"{1 / rates.seconds(cost):,.0f}",
            rates.bound(cost),
        ]
        found.append("| " + " | ".join(cells) + " |")
    return found


def measured(cores: int, options: dict[str, int]) -> Rates:
    """The rates of this machine: the best of three rounds."""
    task = Task("sample", Work(), cores, dict(options))
    (entry,) = contest([cli.RATES], task, 3)
    if not entry.calls:
        raise SystemExit(f"the rates could not be measured: {entry.error}")
    return Rates(*(max(call[key] for call in entry.calls) for key in ("flops", "bytes")))


def main() -> None:
    """Print the table for the CPU's sizes, or with given rates for all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--flops", type=float, help="rate of matrix products, FLOP/s")
    parser.add_argument("--bytes", type=float, help="memory bandwidth, bytes/s")
    parser.add_argument("--cores", type=int, default=available_cores())
    arguments = parser.parse_args()
    if (arguments.flops is None) != (arguments.bytes is None):
        raise SystemExit("give both --flops and --bytes, or neither, to have them measured.")
    pairs: tuple[tuple[Work, Work], ...]
    if arguments.flops is None:
        rates, pairs = measured(arguments.cores, cli.STREAMS), CPU
    else:
        rates, pairs = Rates(arguments.flops, arguments.bytes), (*CPU, *GPU)
    print(f"At {rates.flops / 1e9:,.0f} GFLOP/s and {rates.bytes / 1e9:,.0f} GB/s:\n")
    print("| size | phase | MFLOP a token | kB a token | FLOP/byte | floor, tokens/s | bound by |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    print("\n".join(row for pair in pairs for row in rows(*pair, rates)))


if __name__ == "__main__":
    main()
