"""What the TPU compiler makes of the programs, as tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.results import Record

GB, MS = 1e9, 1e-3


def markdown(records: Sequence[Record]) -> str:
    """The tables: time and memory of each program; its collectives; where its time goes."""
    lines = [
        "### decoding and the update of DeepSeekMath-7B's shape, by the TPU compiler",
        "",
        "| program | mesh | HBM, GB of | arguments + temporaries | floor, ms | estimate, ms (by) "
        "| roofline, ms | schedule, ms | estimate / floor | schedule / floor |",
        "|" + " --- |" * 10,
    ]
    for record in records:
        memory, least = record.get("memory"), record["floor"]["seconds"]
        estimate = record["estimate"]
        cells = [
            *_names(record),
            f"{held(memory) / GB:.1f} of {record['chip']['memory'] / GB:.0f}" if memory else "-",
            f"{memory['arguments'] / GB:.1f} + {memory['temporaries'] / GB:.1f}"
            if memory
            else "does not fit",
            f"{least / MS:,.1f}",
            f"{estimate['seconds'] / MS:,.1f} ({estimate['by']})",
            f"{record['roofline_seconds'] / MS:,.1f}",
            f"{record['schedule_seconds'] / MS:,.1f}" if memory else "-",
            f"{estimate['seconds'] / least:.2f}",
            f"{record['schedule_seconds'] / least:.2f}" if memory else "-",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "| program | mesh | collectives, in loops and outside (GB to a device) |"]
    lines.append("|" + " --- |" * 3)
    for record in records:
        said = [
            f"{one['count']:,} {one['kind']} {'in' if one['in_loop'] else 'out'} "
            f"({one['bytes'] / GB:,.3g})"
            for one in record.get("collectives", [])
        ] or [record.get("does_not_fit", "none")]
        lines.append("| " + " | ".join([*_names(record), ", ".join(said)]) + " |")
    for record in records:
        if "slowest" not in record:
            continue
        copies = record["copied_outside_loops"] / GB
        lines += ["", f"{', '.join(_names(record))}: slowest in loops by the schedule; "
                  f"{copies:,.1f} GB copied outside of loops."]  # fmt: skip
        for one in record["slowest"]:
            lines.append(
                f"- {one['ms']:,.2f} ms, {one['count']:,} x {one['operation']} {one['type']}"
            )
    return "\n".join(lines)


def held(memory: dict[str, int]) -> int:
    """Bytes of a device's memory in use at most."""
    parts = memory["arguments"] + memory["outputs"] + memory["temporaries"]
    return parts - memory["aliases"]


def _names(record: Record) -> list[str]:
    of = record["program"]
    axes = zip(("data", "fsdp", "tensor"), of["sizes"], strict=True)
    mesh = " x ".join(f"{name} {size}" for name, size in axes if size > 1)
    return [of["kind"], f"{of['topology']}, {mesh}"]
