"""What the text of a compiled program says: collectives and cycles, in loops or not."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "collective-permute", "all-to-all")
BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16}
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\(")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_SHAPE = re.compile(r"\b(pred|bf16|[a-z]\d+)(?:e\w+)?\[([\d,]*)\]")
_CALLED = re.compile(r"\b(calls|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


class Instruction(NamedTuple):
    """One line. called: (how, computation) pairs."""

    name: str
    type: str
    opcode: str
    called: list[tuple[str, str]]
    line: str


class Runs(NamedTuple):
    """An instruction, how often it runs, whether a loop is around it, and its computation."""

    instruction: Instruction
    times: int
    in_loop: bool
    inside: str


class Collective(NamedTuple):
    """kind: one of KINDS; bytes: that it brings to a device, twice its result for an all-reduce;
    group: devices that take part, 0 for all; shapes: of what it returns."""

    kind: str
    in_loop: bool
    times: int
    bytes: int
    group: int = 0
    shapes: tuple[tuple[int, ...], ...] = ()


def shapes_of(text: str) -> list[tuple[tuple[int, ...], int]]:
    """(shape, bytes) of each array in a type."""
    found = []
    for dtype, sizes in _SHAPE.findall(text):
        bits = BITS.get(dtype) or int(re.sub(r"\D", "", dtype))
        shape = tuple(int(size) for size in sizes.split(",") if size)
        found.append((shape, math.prod(shape) * bits // 8))
    return found


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
    limits = re.findall(r" constant\((\d+)\)", "\n".join(one.line for one in condition))
    return int(limits[0]) if len(limits) == 1 else otherwise


def walk(text: str, otherwise: int = 1) -> Iterator[Runs]:
    """Every instruction that runs; `otherwise`: trips of a loop that is told them at run time."""
    entry, computations = parse(text)

    def within(name: str, times: int, in_loop: bool) -> Iterator[Runs]:
        for instruction in computations[name]:
            yield Runs(instruction, times, in_loop, name)
            again = 1
            if instruction.opcode == "while":
                again = trips(computations[dict(instruction.called)["condition"]], otherwise)
            for how, inner in instruction.called:
                if how != "condition":
                    yield from within(inner, times * again, in_loop or how == "body")

    yield from within(entry, 1, False)


def group_size(line: str) -> int:
    """Devices of one group of a collective; 0 where the line names none, which means all."""
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(found[1])
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return found[1].count(",") + 1
    return 2 if "source_target_pairs=" in line else 0


def collectives(text: str, otherwise: int = 1) -> list[Collective]:
    """All collectives of a program. otherwise: see `walk`.

    A reduce-scatter may be written as an all-reduce in a fusion named after it. One that runs
    beside several products stands in the fusion of each, under one channel: it counts once.
    """
    found, channels = [], set[str]()
    for (_, result, opcode, _, line), times, in_loop, inside in walk(text, otherwise):
        kind = opcode.removesuffix("-start")
        channel = re.search(r"channel_id=\d+", line)
        if kind not in KINDS or (channel and channel[0] in channels):
            continue
        channels |= {channel[0]} if channel else set()
        arrays = shapes_of(result)
        # A start returns its operand, its result and perhaps counters.
        moved = (max if opcode != kind else sum)(size for _, size in arrays)
        if kind == "all-reduce" and "reduce-scatter" in inside:
            kind = "reduce-scatter"
        elif kind == "all-reduce":
            moved *= 2
        shapes = tuple(shape for shape, _ in arrays)
        found.append(Collective(kind, in_loop, times, moved, group_size(line), shapes))
    return found


def cycles(text: str, otherwise: int = 1) -> Iterator[tuple[Runs, int]]:
    """(instruction, cycles that the compiler puts down for it each time). otherwise: see `walk`."""
    for runs in walk(text, otherwise):
        if estimate := re.search(r'"estimated_cycles":"(\d+)"', runs.instruction.line):
            yield runs, int(estimate[1])
