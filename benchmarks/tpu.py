"""What the TPU compiler makes of sampling and of the update, with no TPU at hand; writes tpu.json.

    python -m benchmarks.tpu                     # needs pip install "jax[tpu]"; some ten minutes
    python -m benchmarks.tpu --only decode       # or update, or v5p, v5e

The decode program and the update program of DeepSeekMath-7B's shape are compiled ahead of time for
a slice of v5p and one of v5e, from shapes alone. Memory is what the compiler allots to a device.
Collectives are read from the compiled text, each counted as often as the loops around it run: a
loop's trips are the constant in its condition, or, where the program is told them at run time, one
decode step or all micro-batches.

**Time** is for one decode step, with every slot full and the ring at its full length, and for one
update. The compiler's count of a program takes the body of a loop once, whatever its trips. So it
is asked about programs without loops, which are the real functions traced with their loops opened,
with one and with two layers: for decoding one step, in whatever layouts the compiler likes best;
for the update the gradient of a micro-batch, and an update with one micro-batch. The cost of L
layers and M micro-batches follows, as it is linear in both. The compiler's `optimal_seconds` is the
estimate where it is plausible (see `plausible`); elsewhere it is a roofline, the longest of FLOPs,
bytes and bytes of collectives over the chip's published rates. Both suppose that each operation
runs at full rate. Beside it stands the **schedule**: cycles that the compiler puts down for every
operation of the real program, times the trips of its loops. It knows of slow operations; it takes
collectives and kernels written by hand (splash attention) for nothing. On v5p it grants a product
that streams weights half of the published bandwidth, on v5e nearly all.

Floors: decoding must read every weight of a device but the embedding, and its caches, once a step;
an update must do the products of `floors.py`, with nothing recomputed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import math
import os
import sys
from collections import defaultdict
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jax

from benchmarks import floors, results
from benchmarks.tpu_costs import decode_cost, fitting, of_layers, plausible, roofline, update_costs
from benchmarks.tpu_programs import (
    PROGRAMS,
    SHAPE,
    Program,
    decode_arguments,
    decode_settings,
    model,
    slice_mesh,
    update_arguments,
    update_settings,
)
from benchmarks.tpu_table import markdown
from benchmarks.tpu_text import collectives, copied, cycles, slowest
from rft_jax.sampling import sampler
from rft_jax.training import update as training


def local_bytes(tree: Any) -> int:
    """Bytes that a device holds of arrays."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def decode_floor(arguments: Any, program: Program, layers: int) -> floors.Cost:
    """One step, per device."""
    params, _, slots, *_ = arguments
    shape, devices = replace(SHAPE, layers=layers), math.prod(program.sizes)
    read = {name: leaf for name, leaf in params.items() if name != "embedding"}
    seen = program.prompt_len + program.new_tokens
    flops = program.questions * program.samples * floors.token_flops(shape, seen) / devices
    return floors.Cost(flops, local_bytes(read) + local_bytes(slots.cache))


def update_floor(program: Program, layers: int) -> floors.Cost:
    """One update, per device, each row a sequence of its own."""
    shape, devices = replace(SHAPE, layers=layers), math.prod(program.sizes)
    rows, n = program.microbatches * program.rows, program.row_len
    forward = 2.0 * floors.weights(shape) * n + floors.attention_flops(shape, n * (n + 1) / 2)
    return floors.Cost(3 * rows * forward / devices, floors.weights(shape) * 36 / devices)


def report(program: Program, layers: int) -> results.Record:
    """Compile a program and say what came out."""
    chip = program.chip
    mesh, config, few = slice_mesh(program), model(layers), (model(1), model(2))
    decoding = program.kind == "decode"
    if decoding:
        arguments = decode_arguments(program, mesh, config)
        floor, otherwise = decode_floor(arguments, program, layers), 1
        counted = of_layers([decode_cost(program, mesh, small) for small in few], layers)
        whole = fitting(sampler.decode, arguments, **decode_settings(program, mesh, config))
    else:
        arguments = update_arguments(program, mesh, config)
        floor, otherwise = update_floor(program, layers), program.microbatches
        costs = zip(*(update_costs(program, mesh, small) for small in few), strict=True)
        micro, update = (of_layers(pair, layers) for pair in costs)
        counted = update.plus(micro.scaled(program.microbatches - 1))
        whole = fitting(training.update, arguments, **update_settings(program, mesh, config))
    groups: dict[tuple[str, bool], list[int]] = defaultdict(lambda: [0, 0])
    text = "" if isinstance(whole, str) else whole.as_text()
    if text:
        for one in collectives(text, otherwise):
            groups[one.kind, one.in_loop][0] += one.times
            groups[one.kind, one.in_loop][1] += one.times * one.bytes
        # Those of the real program: the partitioner may decide otherwise about a few layers.
        inside = [of[1] for (_, in_loop), of in groups.items() if in_loop or not decoding]
        counted = counted._replace(links=float(sum(inside)))
    least = floors.Rates(chip.flops, chip.bandwidth).seconds(floor)
    bound = roofline(counted, chip)
    by_compiler = plausible(counted.seconds, least, bound)
    record = {
        "program": asdict(program) | {"layers": layers},
        "chip": chip._asdict(),
        "floor": floor._asdict() | {"seconds": least},
        "counted": counted._asdict(),
        "roofline_seconds": bound,
        "estimate": {
            "seconds": counted.seconds if by_compiler else bound,
            "by": "compiler" if by_compiler else "roofline",
        },
    }
    if not text:
        return record | {"does_not_fit": whole}
    memory = whole.memory_analysis()
    scheduled = sum(
        runs.times * count
        for runs, count in cycles(text, otherwise)
        if runs.in_loop or not decoding
    )
    return record | {
        "memory": {
            "arguments": memory.argument_size_in_bytes,
            "outputs": memory.output_size_in_bytes,
            "aliases": memory.alias_size_in_bytes,
            "temporaries": memory.temp_size_in_bytes,
        },
        "collectives": [
            {"kind": kind, "in_loop": in_loop, "count": many, "bytes": moved}
            for (kind, in_loop), (many, moved) in sorted(groups.items())
        ],
        "schedule_seconds": scheduled / chip.clock,
        "copied_outside_loops": copied(text, loop=False),
        "slowest": slowest(text, chip.clock, otherwise, loop=True),
    }


def main() -> None:
    """Compile all programs, write the record and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--only", nargs="+", default=[""], help="parts of decode v5p:2x2x2 etc.")
    parser.add_argument("--layers", type=int, default=SHAPE.layers)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    if importlib.util.find_spec("libtpu") is None:
        raise SystemExit(
            "the TPU compiler, libtpu, is not installed in this interpreter: "
            'pip install "jax[tpu]" (no TPU is needed).'
        )
    jax.config.update("jax_platforms", "cpu")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # no metadata server to ask
    chosen = [p for p in PROGRAMS if any(w in f"{p.kind} {p.topology}" for w in arguments.only)]
    records = []
    for program in chosen:
        print(f"{program.kind} for {program.topology}", file=sys.stderr, flush=True)
        records.append(report(program, arguments.layers))
    versions = {name: importlib.metadata.version(name) for name in ("jax", "libtpu", "flax")}
    content = {
        "versions": versions,
        "command": results.command("benchmarks.tpu", sys.argv[1:]),
        "programs": records,
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "tpu.json").write_text(json.dumps(content, indent=1) + "\n")
    print(markdown(records))


if __name__ == "__main__":
    main()
