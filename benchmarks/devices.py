"""Devices by name: what vendors publish of them, and what memory a program can have there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from benchmarks.tpu_programs import CHIPS

GIB = 2**30
GPU_SHARE = 0.92
"""Of a GPU's memory, given to jax by XLA_PYTHON_CLIENT_MEM_FRACTION; the default is 0.75."""


@dataclass(frozen=True)
class Device:
    """count: devices of the job; memory: bytes of each that programs can have; flops: FLOP/s of
    matrix products, by the type of their operands; bandwidth: bytes/s of its memory; links: bytes/s
    that reach it from the others."""

    what: str
    count: int
    memory: float
    flops: Mapping[str, float]
    bandwidth: float
    links: float
    tpu: bool = False

    def of(self, count: int) -> Device:
        """So many of them."""
        return replace(self, count=count)


def _gpu(
    what: str, gib: float, flops: Mapping[str, float], bandwidth: float, links: float = 0.0
) -> Device:
    return Device(what, 1, GPU_SHARE * gib * GIB, flops, bandwidth, links)


def _tpu(what: str, chip: str, gib: float) -> Device:
    # A product of float32 runs in the matrix unit's bfloat16, which is jax's default there.
    rates = CHIPS[chip]
    flops = {"bfloat16": rates.flops, "float32": rates.flops}
    return Device(what, 1, gib * GIB, flops, rates.bandwidth, rates.links, tpu=True)


# Data sheets of NVIDIA: T4 (65 TFLOP/s in float16, which is not used here; no bfloat16, which XLA
# computes in float32), RTX A4000, A100 80GB SXM, H100 SXM: dense products, float32 as TF32 from
# Ampere on, as jax does by default; NVLink's bytes to a device are half of the published sum. GiB
# are what CUDA reports.
_T4 = _gpu("NVIDIA T4", 14.75, {"bfloat16": 8.1e12, "float32": 8.1e12}, 320e9)
_A4000 = _gpu("NVIDIA RTX A4000", 15.7, {"bfloat16": 76.7e12, "float32": 38.3e12}, 448e9)
_A100 = _gpu("NVIDIA A100 80GB", 79.1, {"bfloat16": 312e12, "float32": 156e12}, 2039e9, 300e9)
_H100 = _gpu("NVIDIA H100 80GB", 79.1, {"bfloat16": 989e12, "float32": 494e12}, 3350e9, 450e9)
# Google Cloud's pages on TPU v5e and v5p; GiB are what the compiler says is available.
_V5E = _tpu("TPU v5e", "v5e", 15.75)
_V5P = _tpu("TPU v5p", "v5p", 95.74)

DEVICES: dict[str, Device] = {
    "t4": _T4,
    "a4000": _A4000,
    "a100-80gb": _A100,
    "8xa100-80gb": _A100.of(8),
    "h100": _H100,
    "8xh100": _H100.of(8),
    "v5e-1": _V5E,
    "v5e-4": _V5E.of(4),
    "v5e-8": _V5E.of(8),
    "v5p-8": _V5P.of(4),  # slices of v5p are named by their cores, two to a chip
    "v5p-16": _V5P.of(8),
}
