"""Records as tables in Markdown.

python -m benchmarks.table                       # all of benchmarks/results
python -m benchmarks.table benchmarks/results/sample-tiny.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.results import Record, read
from rft_jax.planning import tables as plan_tables

RESULTS = Path(__file__).parent / "results"

WHAT = {
    "sample": "sampling, all outputs of full length",
    "ragged": "sampling, outputs of ragged length",
    "facts": "what log-probs and entropies cost while sampling",
    "update": "update",
}
BUSY = 0.25
"""Cores that others used during a call: from here on it is said."""


def markdown(record: Record) -> str:
    """A heading, a table and what holds for all its rows."""
    title = f"### {WHAT[record['job']]}: {record['size']}, {_where(record)}"
    return "\n\n".join([title, _table(record), "\n".join(_remarks(record))])


def _where(record: Record) -> str:
    device = record.get("machine", {}).get("device", "cpu")
    if device != "cpu":
        return str(device)
    cores = record["cores"]
    return f"{cores} core{'s' if cores > 1 else ''} of {record['processor']}"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _table(record: Record) -> str:
    headings = [
        "contender", "tokens/s", "min", "max", "ratio to the faster peer", "min to max",
        "share of the floor", "first call, s", "peak memory, GiB",
    ]  # fmt: skip
    rows = [_row(headings), _row(["---"] * len(headings))]
    for name, of in record["contenders"].items():
        if "seconds" not in of:
            rows.append(
                _row([name, f"failed: {of.get('error', 'no time left for a round')}", *[""] * 7])
            )
            continue
        speed, ratio = of["tokens_per_second"], of.get("ratio")
        share = of.get("floor_share")
        cells = [
            name,
            f"{speed['median']:,.0f}",
            f"{speed['min']:,.0f}",
            f"{speed['max']:,.0f}",
            f"{ratio['median']:.2f}" if ratio else "",
            f"{ratio['min']:.2f} to {ratio['max']:.2f}" if ratio else "",
            f"{100 * share:.1f} %" if share is not None else "",
            f"{of['first_call_seconds']:.1f}",
            f"{of['peak_memory_gib']:.2f}",
        ]
        rows.append(_row(cells))
    return "\n".join(rows)


def _remarks(record: Record) -> list[str]:
    """Lines of a list: rates and floor, shares, versions, disturbances, the command."""
    lines = []
    if "floor" in record:
        flops, moved = record["machine"]["flops"], record["machine"]["bytes"]
        lines.append(
            f"- Machine, measured in the same rounds (min, median, max): "
            f"{_three(flops, 1e9)} GFLOP/s, {_three(moved, 1e9)} GB/s."
        )
        floor = record["floor"]
        phases = ", ".join(
            f"{name} {1e3 * of['seconds']:,.1f} ms ({of['bound']}: {of['flops'] / 1e9:,.1f} GFLOP, "
            f"{of['bytes'] / 1e9:,.2f} GB)"
            for name, of in floor["phases"].items()
        )
        lines.append(f"- Floor: {floor['tokens_per_second']:,.0f} tokens/s; {phases}.")
    for name, share in record.get("fact_share", {}).items():
        lines.append(
            f"- {name}: {100 * share['median']:.1f} % of a call "
            f"({100 * share['min']:.1f} to {100 * share['max']:.1f})."
        )
    lines.append(
        f"- {record['work']['useful_tokens']:,} tokens a call. Versions: {_versions(record)}."
    )
    lines += _disturbances(record)
    for what in record.get("left_out", []):
        lines.append(f"- Left out: {what}.")
    lines.append(f"- `{record['command']}`")
    return lines


def _three(values: dict[str, float], unit: float) -> str:
    return ", ".join(f"{values[key] / unit:,.0f}" for key in ("min", "median", "max"))


def _versions(record: Record) -> str:
    """What each contender ran with; variants of one package share an interpreter."""
    found: dict[str, str] = {}
    for name, of in record["contenders"].items():
        used = ", ".join(f"{package} {version}" for package, version in of["versions"].items())
        found.setdefault(name.replace(",", " ").split()[0], used)
    return "; ".join(f"{name}: {used}" for name, used in found.items() if used)


def _disturbances(record: Record) -> list[str]:
    """Rounds during which something else kept cores busy."""
    lines = []
    for key, what in (
        ("foreign_cores", "other processes"),
        ("waiting_cores", "waiting contenders"),
    ):
        worst = {name: max(of[key]) for name, of in record["contenders"].items() if of.get(key)}
        busy = [f"{name} {most:.2f}" for name, most in worst.items() if most >= BUSY]
        if busy:
            lines.append(f"- Disturbed: cores used by {what} in the worst call: {', '.join(busy)}.")
    return lines


def main() -> None:
    """Print the tables of the files named, or of all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("files", nargs="*", type=Path)
    files = parser.parse_args().files or sorted(RESULTS.glob("*.json"))
    tables = []
    for path in files:
        content = json.loads(path.read_text(encoding="utf-8"))
        if "plans" in content:
            tables += [plan_tables.markdown(plan) for plan in content["plans"]]
        else:
            tables += [markdown(record) for record in read(path)]
    print("\n\n".join(tables) if tables else f"no results yet in {RESULTS.name}/")


if __name__ == "__main__":
    main()
