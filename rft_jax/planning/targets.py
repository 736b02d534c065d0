"""What a run is planned for: a slice of TPUs that is described, the devices at hand, or a count of
some chip.

**Links.** A chip's published rate is that of all its links. Devices that stand next to each other
in a mesh share some of them: along each side of the slice that a group of them spans a chip has two
links, or one where the side does not close to a ring. An exchange takes at least a hop's time for
each device on its way; both are estimates of the wiring, not the compiler's.
"""

from __future__ import annotations

import importlib.util
import math
import os
from dataclasses import dataclass, replace
from typing import Any

import jax

from rft_jax.errors import ConfigError
from rft_jax.observe.hardware import CHIPS, GIB, Chip, of_kind
from rft_jax.planning.memory import Shards
from rft_jax.planning.step_costs import Speeds

HOP = 1e-6
"""Seconds that a small message takes from a TPU to the next one (assumed)."""
ROUND = 1e-5
"""Seconds of a small exchange between GPUs (assumed)."""
CLOSES_AT = {"v5e": (16, 2), "v6e": (16, 2), "v5p": (4, 3)}
"""By TPU: the side of a slice that closes to a ring, or a multiple of it; sides of a slice."""
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
        others = of.fsdp if of.fsdp > 1 else of.data
        return Speeds(
            self.chip.flops[dtype],
            self.chip.bandwidth,
            links * self._share(of.tensor, others),
            links * self._share(1, of.tensor),
            self._hops(of.tensor) if self.sides else ROUND,
        )

    def _spanned(self, inner: int, group: int) -> list[int]:
        """The sides along which a group of devices stands, the fastest axis first, each as long as
        the group is there. inner: devices of the axes before it."""
        spanned = []
        for side in sorted(self.sides):
            skipped = math.gcd(side, inner)
            inner //= skipped
            there = math.gcd(side // skipped, group)
            group //= there
            if there > 1:
                spanned.append(there)
        return spanned

    def _share(self, inner: int, group: int) -> float:
        """Of a chip's links, those that serve a group."""
        if group == 1 or not self.sides:
            return 1.0
        return min(1.0, sum(map(self._links, self._spanned(inner, group))) / self._all_links)

    @property
    def _all_links(self) -> int:
        return 2 * CLOSES_AT[self.name.partition(":")[0]][1]

    def _links(self, side: int) -> int:
        return 1 if side % CLOSES_AT[self.name.partition(":")[0]][0] else 2

    def _hops(self, group: int) -> float:
        """Seconds of a small sum over a group: there and back along every side."""
        sides = self._spanned(1, group)
        return HOP * sum(side if self._links(side) == 2 else 2 * (side - 1) for side in sides)


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
    be set up for it (planning_command.py).
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            f"--topology {topology} needs libtpu, the TPU's compiler, which is not installed here: "
            'pip install "jax[tpu]" (no TPU is needed), or --counted, which compiles nothing.'
        )
    from jax.experimental import topologies

    wanted = slice_of(topology)
    # One host has four chips, or one.
    alone = {"chips_per_host_bounds": [1, 1, 1]} if wanted.count == 1 else {}
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology, **alone)
    except (jax.errors.JaxRuntimeError, ValueError, NotImplementedError) as error:
        said = str(error).splitlines()[0].rstrip(".")
        raise ConfigError(f"{_no_slice(topology)} ({said}).") from error
    return replace(wanted, count=len(found.devices), devices=tuple(found.devices))


def _no_slice(topology: str) -> str:
    return f"--topology is {topology!r}: the name of a slice is expected, such as {EXAMPLES}"


def counted(name: str) -> Target:
    """`8xh100` or `t4`: so many of a chip of the table, for which nothing is compiled."""
    count, _, chip = name.rpartition("x") if name[:1].isdecimal() else ("1", "", name)
    if chip not in CHIPS or not count.isdecimal() or not int(count):
        raise ConfigError(
            f"--device is {name!r}, which is not known: one of {', '.join(CHIPS)} is expected, "
            "with a count before it if there are several, such as 8xh100."
        )
    return Target(name, CHIPS[chip], int(count), CHIPS[chip].memory)


def at_hand() -> Target:
    """The devices of this machine."""
    devices = tuple(jax.devices())
    kind, chip = devices[0].device_kind, of_kind(devices[0].device_kind)
    stats = devices[0].memory_stats() or {}
    memory = float(stats.get("bytes_limit", chip.memory if chip else 0.0))
    if devices[0].platform == "cpu":
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / len(devices)
    return Target(kind, chip, len(devices), memory, devices=devices)


def gib(amount: float) -> str:
    """Bytes as GiB."""
    return f"{amount / GIB:.1f}" if amount >= 0.95 * GIB else f"{amount / GIB:.3g}"
