"""Accelerators by name: what vendors publish of them, what memory a program can have there, and
how slices of TPUs are wired.

A chip's published rate is that of all its links. Devices that stand next to each other in a mesh
share some of them: along each side of the slice that a group of them spans a chip has two links, or
one where the side does not close to a ring. An exchange takes at least a hop's time for each device
on its way; both are estimates of the wiring, not the compiler's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

GIB = 2**30
GPU_SHARE = 0.92
"""Of a GPU's memory, given to jax by XLA_PYTHON_CLIENT_MEM_FRACTION; the default is 0.75."""
HOP = 1e-6
"""Seconds that a small message takes from a TPU to the next one (assumed)."""
ROUND = 1e-5
"""Seconds of a small exchange between GPUs (assumed)."""
CLOSES_AT = {"v5e": (16, 2), "v6e": (16, 2), "v5p": (4, 3)}
"""By TPU: the side of a slice that closes to a ring, or a multiple of it; sides of a slice."""


@dataclass(frozen=True)
class Chip:
    """One device. memory: bytes that programs can have; flops: FLOP/s of matrix products, by the
    type of their operands; bandwidth: bytes/s of its memory; links: bytes/s that reach it from
    others of its kind, 0 where there are none; kinds: jax's names of it (`device_kind`); clock:
    cycles/s of a TPU, 0 where it is not known."""

    what: str
    memory: float
    flops: Mapping[str, float]
    bandwidth: float
    links: float
    kinds: tuple[str, ...]
    tpu: bool = False
    clock: float = 0.0


def _gpu(
    what: str,
    kinds: tuple[str, ...],
    gib: float,
    flops: Mapping[str, float],
    bandwidth: float,
    links: float = 0.0,
) -> Chip:
    return Chip(what, GPU_SHARE * gib * GIB, flops, bandwidth, links, kinds)


def _tpu(
    what: str,
    kinds: tuple[str, ...],
    gib: float,
    flops: float,
    bandwidth: float,
    links: float,
    clock: float = 0.0,
) -> Chip:
    # A product of float32 runs in the matrix unit's bfloat16, which is jax's default there.
    rates = {"bfloat16": flops, "float32": flops}
    return Chip(what, gib * GIB, rates, bandwidth, links, kinds, tpu=True, clock=clock)


# Data sheets of NVIDIA: T4 (65 TFLOP/s in float16, which is not used here; no bfloat16, which XLA
# computes in float32), L4, RTX A4000, A100 SXM of 40 and 80 GB, H100 SXM, H200 SXM: dense products,
# float32 as TF32 from Ampere on, as jax does by default; NVLink's bytes to a device are half of the
# published sum. GiB are what CUDA reports. Google Cloud's pages on TPU v4, v5e, v5p and v6e: links
# are the sum of all that a chip has; GiB are what the compiler says is available, of v4 for its two
# cores together.
CHIPS: dict[str, Chip] = {
    "t4": _gpu(
        "NVIDIA T4", ("Tesla T4",), 14.75, {"bfloat16": 8.1e12, "float32": 8.1e12}, 320e9
    ),
    "a4000": _gpu(
        "NVIDIA RTX A4000", ("NVIDIA RTX A4000",), 15.7,
        {"bfloat16": 76.7e12, "float32": 38.3e12}, 448e9,
    ),
    "l4": _gpu(
        "NVIDIA L4", ("NVIDIA L4",), 22.0, {"bfloat16": 121e12, "float32": 60e12}, 300e9
    ),
    "a100-40gb": _gpu(
        "NVIDIA A100 40GB", ("NVIDIA A100-SXM4-40GB",), 39.4,
        {"bfloat16": 312e12, "float32": 156e12}, 1555e9, 300e9,
    ),
    "a100-80gb": _gpu(
        "NVIDIA A100 80GB", ("NVIDIA A100-SXM4-80GB",), 79.1,
        {"bfloat16": 312e12, "float32": 156e12}, 2039e9, 300e9,
    ),
    "h100": _gpu(
        "NVIDIA H100 80GB", ("NVIDIA H100 80GB HBM3",), 79.1,
        {"bfloat16": 989e12, "float32": 494e12}, 3350e9, 450e9,
    ),
    "h200": _gpu(
        "NVIDIA H200", ("NVIDIA H200",), 139.7,
        {"bfloat16": 989e12, "float32": 494e12}, 4800e9, 450e9,
    ),
    "v4": _tpu("TPU v4", ("TPU v4",), 30.5, 275e12, 1228e9, 2400e9 / 8),
    "v5e": _tpu(
        "TPU v5e", ("TPU v5 lite", "TPU v5e"), 15.75, 197e12, 819e9, 1600e9 / 8, clock=1.5e9
    ),
    "v5p": _tpu("TPU v5p", ("TPU v5", "TPU v5p"), 95.74, 459e12, 2765e9, 4800e9 / 8, clock=1.75e9),
    "v6e": _tpu("TPU v6e", ("TPU v6 lite", "TPU v6e"), 31.25, 918e12, 1640e9, 3584e9 / 8),
}  # fmt: skip


def of_kind(device_kind: str) -> Chip | None:
    """The chip that jax calls so; None for one that is not in the table (a CPU among them)."""
    return next((chip for chip in CHIPS.values() if device_kind in chip.kinds), None)


def _spanned(sides: Sequence[int], inner: int, group: int) -> list[int]:
    """The sides along which a group of devices stands, the fastest axis first, each as long as the
    group is there. inner: devices of the axes before it."""
    spanned = []
    for side in sorted(sides):
        skipped = math.gcd(side, inner)
        inner //= skipped
        there = math.gcd(side // skipped, group)
        group //= there
        if there > 1:
            spanned.append(there)
    return spanned


def _closes(kind: str, side: int) -> bool:
    return side % CLOSES_AT[kind][0] == 0


def share(kind: str, sides: Sequence[int], inner: int, group: int) -> float:
    """The share of a chip's links that serves a group of devices.

    Args:
        kind: of TPU, a key of CLOSES_AT.
        sides: of the slice; none where the devices are wired otherwise.
        inner: devices of the mesh axes before the group's.
        group: its devices.
    """
    if group == 1 or not sides:
        return 1.0
    links = sum(1 + _closes(kind, side) for side in _spanned(sides, inner, group))
    return min(1.0, links / (2 * CLOSES_AT[kind][1]))


def exchange_seconds(kind: str, sides: Sequence[int], group: int) -> float:
    """Seconds of a small sum over a group, on TPUs there and back along every side; see `share`."""
    if not sides:
        return ROUND
    spanned = _spanned(sides, 1, group)
    return HOP * sum(side if _closes(kind, side) else 2 * (side - 1) for side in spanned)
