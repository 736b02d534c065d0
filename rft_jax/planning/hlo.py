"""What the text of a compiled program says: collectives, cycles and copies, in loops or not."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "collective-permute", "all-to-all")
BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16}
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\(")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_SHAPE = re.compile(r"\b(pred|bf16|[a-z]\d+)(?:e\w+)?\[([\d,]*)\]")
_CALLED = re.compile(
    r"\b(calls|body|condition|to_apply|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


def shape_bytes(text: str) -> list[int]:
    """Bytes of each array in a type."""
    found = []
    for dtype, sizes in _SHAPE.findall(text):
        bits = BITS.get(dtype) or int(re.sub(r"\D", "", dtype))
        found.append(math.prod(int(size) for size in sizes.split(",") if size) * bits // 8)
    return found


class Instruction(NamedTuple):
    """One line. called: (how, computation) pairs."""

    name: str
    type: str
    opcode: str
    called: list[tuple[str, str]]
    line: str


class Runs(NamedTuple):
    """An instruction, how often it runs, and whether a loop is around it."""

    instruction: Instruction
    times: int
    in_loop: bool
    inside: str


def parse(text: str) -> tuple[str, dict[str, list[Instruction]]]:
    """(name of the entry, instructions of every computation) of a compiled program."""
    entry, computations, current = "", dict[str, list[Instruction]](), list[Instruction]()
    for line in text.splitlines():
        if head := _HEAD.match(line):
            current = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif found := _INSTRUCTION.match(line):
            called = _CALLED.findall(line)
            for names in _BRANCHES.findall(line):
                called += [("branch", name.strip().lstrip("%")) for name in names.split(",")]
            current.append(Instruction(found[1], found[2], found[3], called, line))
    return entry, computations


def trips(condition: Sequence[Instruction], otherwise: int) -> int:
    """How often a loop runs: the one constant that its condition compares with, if there is one."""
    texts = [re.search(r" constant\((\d+)\)", i.line) for i in condition]
    limits = [int(found[1]) for found in texts if found]
    return limits[0] if len(limits) == 1 else otherwise


def walk(text: str, otherwise: int = 1) -> Iterator[Runs]:
    """Every instruction that runs; `otherwise`: trips of a loop that is told them at run time."""
    entry, computations = parse(text)

    def of(name: str, times: int, in_loop: bool) -> Iterator[Runs]:
        for instruction in computations[name]:
            yield Runs(instruction, times, in_loop, name)
            called = dict(instruction.called)
            again = 1
            if instruction.opcode == "while":
                again = trips(computations[called["condition"]], otherwise)
            for how, inner in instruction.called:
                if how not in ("to_apply", "condition"):
                    yield from of(inner, times * again, in_loop or how == "body")

    yield from of(entry, 1, False)


class Collective(NamedTuple):
    """kind: one of KINDS; bytes: that it brings to a device, twice its result for an all-reduce;
    group: devices that take part, 0 for all; shapes: of what it returns."""

    kind: str
    in_loop: bool
    times: int
    bytes: int
    group: int = 0
    shapes: tuple[tuple[int, ...], ...] = ()


def group_size(line: str) -> int:
    """Devices of one group of a collective; 0 where the line names none, which means all."""
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(found[1])
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return found[1].count(",") + 1
    return 2 if "source_target_pairs=" in line else 0


def shapes_of(text: str) -> tuple[tuple[int, ...], ...]:
    """Of each array in a type."""
    return tuple(
        tuple(int(size) for size in sizes.split(",") if size) for _, sizes in _SHAPE.findall(text)
    )


def collectives(text: str, otherwise: int = 1) -> list[Collective]:
    """All collectives of a program.

    A reduce-scatter may be written as an all-reduce in a fusion named after it. One that goes on
    beside several products stands in the fusion of each, under one channel: it counts once.
    """
    found, channels = [], set[str]()
    for runs in walk(text, otherwise):
        kind = runs.instruction.opcode.removesuffix("-start")
        channel = re.search(r"channel_id=\d+", runs.instruction.line)
        if kind not in KINDS or (channel and channel[0] in channels):
            continue
        channels |= {channel[0]} if channel else set()
        sizes = shape_bytes(runs.instruction.type)
        # A start returns its operand, its result and perhaps counters.
        moved = max(sizes) if runs.instruction.opcode != kind else sum(sizes)
        if kind == "all-reduce" and "reduce-scatter" in runs.inside:
            kind = "reduce-scatter"
        elif kind == "all-reduce":
            moved *= 2
        of = runs.instruction
        found.append(
            Collective(
                kind, runs.in_loop, runs.times, moved, group_size(of.line), shapes_of(of.type)
            )
        )
    return found


def cycles(text: str, otherwise: int = 1) -> list[tuple[Runs, int]]:
    """(instruction, cycles that the compiler puts down for it each time), the slowest first."""
    found = []
    for runs in walk(text, otherwise):
        if estimate := re.search(r'"estimated_cycles":"(\d+)"', runs.instruction.line):
            found.append((runs, int(estimate[1])))
    return sorted(found, key=lambda pair: -pair[0].times * pair[1])


def slowest(text: str, clock: float, otherwise: int, *, loop: bool, most: int = 8) -> list[Any]:
    """The kinds of operation that take longest: what, how many, ms, type; in or out of loops."""
    groups: dict[tuple[str, str], list[Any]] = defaultdict(lambda: [0, 0.0, ""])
    for runs, count in cycles(text, otherwise):
        if runs.in_loop != loop:
            continue
        source = re.search(r'op_name="([^"]*)"', runs.instruction.line)
        label = "/".join(source[1].split("/")[-3:]) if source else ""
        name = re.sub(r"(\.\d+|\.clone|\.remat)+$", "", runs.instruction.name)
        group = groups[name, label]
        group[0] += runs.times
        group[1] += 1e3 * runs.times * count / clock
        group[2] = re.sub(r"\{[^}]*\}", "", runs.instruction.type)[:80]
    ranked = sorted(groups.items(), key=lambda item: -item[1][1])[:most]
    return [
        {"operation": f"{name} ({label})", "count": of[0], "ms": round(of[1], 3), "type": of[2]}
        for (name, label), of in ranked
    ]


def copied(text: str, *, loop: bool) -> int:
    """Bytes written by copies of a megabyte and more: of one trip, or outside of loops."""
    return sum(
        sum(sizes)
        for runs in walk(text)
        if runs.instruction.opcode == "copy" and runs.in_loop == loop
        if max(sizes := shape_bytes(runs.instruction.type), default=0) >= 2**20
    )
