"""What a run is planned for: a slice of TPUs that is described, the devices at hand, or a count of
some chip."""

from __future__ import annotations

import importlib.util
import math
import os
from dataclasses import dataclass, replace
from typing import Any

import jax

from rft_jax.distributed.mesh import found_devices
from rft_jax.errors import ConfigError
from rft_jax.observe.flops import Speeds
from rft_jax.observe.hardware import (
    CHIPS,
    CLOSES_AT,
    Chip,
    exchange_seconds,
    of_kind,
    share,
)
from rft_jax.planning.memory import Shards

EXAMPLES = "v5e:2x2, v5e:4x4, v5e:16x16, v5p:2x2x1, v5p:4x4x4 or v6e:8x8"


@dataclass(frozen=True)
class Target:
    """count devices of a chip, None where it is not in the table; sides: of a slice of TPUs;
    devices: what programs are compiled for, none where they are only counted; memory: bytes of each
    device that programs can have, 0 where it is not known."""

    name: str
    chip: Chip | None
    count: int
    memory: float
    sides: tuple[int, ...] = ()
    devices: tuple[Any, ...] = ()

    @property
    def what(self) -> str:
        """In words."""
        return f"{self.count} x {self.chip.what if self.chip else self.name}"

    @property
    def tpu(self) -> bool:
        """Whether its memory is laid out by a TPU's compiler."""
        return self.chip is not None and self.chip.tpu

    def speeds(self, of: Shards, dtype: str) -> Speeds | None:
        """Published rates as a mesh can have them; None where they are not known."""
        if self.chip is None:
            return None
        links = self.chip.links or math.inf
        kind, _, _ = self.name.partition(":")
        others = of.fsdp if of.fsdp > 1 else of.data
        return Speeds(
            self.chip.flops[dtype],
            self.chip.bandwidth,
            links * share(kind, self.sides, of.tensor, others),
            links * share(kind, self.sides, 1, of.tensor),
            exchange_seconds(kind, self.sides, of.tensor),
        )


def slice_of(topology: str) -> Target:
    """A slice of TPUs by its compiler's name, with no devices to compile for. Raises ConfigError
    for a name that is none."""
    kind, _, sizes = topology.partition(":")
    parts = sizes.split("x")
    if kind not in CLOSES_AT or not all(part.isdecimal() and int(part) for part in parts):
        raise ConfigError(f"{_no_slice(topology)}.")
    sides = tuple(int(part) for part in parts)
    return Target(topology, CHIPS[kind], math.prod(sides), CHIPS[kind].memory, sides)


def described(topology: str) -> Target:
    """The same with described devices; nothing but libtpu is needed for it.

    Raises ConfigError when libtpu is not there, and for a name that is none. The environment must
    be set up for it (rft_jax/commands/plan.py).
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            f"--topology {topology} needs libtpu, the TPU's compiler, which is not installed here: "
            'pip install "jax[tpu]" (no TPU is needed), or --counted, which compiles nothing.'
        )
    from jax.experimental import topologies

    wanted = slice_of(topology)
    # One host has four chips, or one.
    bounds = {"chips_per_host_bounds": [1, 1, 1]} if wanted.count == 1 else {}
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology, **bounds)
    # Each of them for some name that is none, by jax and libtpu.
    except (jax.errors.JaxRuntimeError, ValueError, NotImplementedError) as error:
        said = str(error).splitlines()[0].rstrip(".")
        raise ConfigError(f"{_no_slice(topology)} ({said}).") from error
    return replace(wanted, count=len(found.devices), devices=tuple(found.devices))


def _no_slice(topology: str) -> str:
    return f"--topology is {topology!r}: the name of a slice is expected, such as {EXAMPLES}"


def counted(name: str) -> Target:
    """`8xh100` or `t4`: a number of chips of the table, for which nothing is compiled."""
    count, _, chip = name.rpartition("x") if name[:1].isdecimal() else ("1", "", name)
    if chip not in CHIPS or not count.isdecimal() or not int(count):
        raise ConfigError(
            f"--device is {name!r}, which is not known: one of {', '.join(CHIPS)} is expected, "
            "with a count before it if there are several, such as 8xh100."
        )
    return Target(name, CHIPS[chip], int(count), CHIPS[chip].memory)


def at_hand() -> Target:
    """The devices of this machine."""
    devices = tuple(found_devices())
    kind, chip = devices[0].device_kind, of_kind(devices[0].device_kind)
    stats = devices[0].memory_stats() or {}
    memory = float(stats.get("bytes_limit", chip.memory if chip else 0.0))
    if devices[0].platform == "cpu":
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / len(devices)
    return Target(kind, chip, len(devices), memory, devices=devices)
