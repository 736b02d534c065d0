"""Meshes for a run, ranked by the count: the fastest step of those that fit, then the others."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from rft_jax.config import Config
from rft_jax.config.serialize import replace_fields
from rft_jax.planning import advice, counted
from rft_jax.planning.counted import Estimate
from rft_jax.planning.memory import Shards
from rft_jax.planning.plan import Record, Supposed
from rft_jax.planning.targets import Target


class Candidate(NamedTuple):
    """A run with another mesh, and whatever else must change for it. estimate: counted."""

    config: Config
    mesh: Shards
    changes: dict[str, Any]
    estimate: Estimate
    fits: bool

    @property
    def peak(self) -> float:
        """Bytes at the worst moment."""
        return max(self.estimate.peaks.values())


ROWS = (1, 2, 4, 8)
"""Times as many rows in a micro-batch are tried: fewer micro-batches gather weights less often."""
LOGITS = (1, 4, 16)
"""Times as many logits at once are tried: the output projection is then read, gathered and its
gradient summed less often."""


class Shapes(NamedTuple):
    """Of the update, what is tried. rows, logits: times as many; remat: model.remat."""

    rows: int
    logits: int
    remat: str


MARGIN = 0.95
"""Of a device's memory, what the count may need: compilers need more or less by some per cent."""


def search(config: Config, target: Target, supposed: Supposed) -> list[Candidate]:
    """All meshes over the target's devices, the best first, each with the rows of a micro-batch,
    logits at once and rematerialisation that are best there. Where one does not fit, settings that
    change memory alone are changed for it (advice.relieve)."""
    remats = dict.fromkeys((config.model.remat, "none"))
    shapes = [Shapes(*one) for one in itertools.product(ROWS, LOGITS, remats)]
    found = []
    for mesh in meshes(target.count):
        if advice.divides(config, mesh):
            options = (_candidate(config, mesh, one, target, supposed) for one in shapes)
            found.append(min(options, key=_rank))
    return sorted(found, key=_rank)


def _rank(one: Candidate) -> tuple[bool, float, int, float]:
    """What does not fit by how much it lacks, whatever its speed; of equals the fewest changes."""
    first = one.estimate.step if one.fits else one.peak
    return not one.fits, first, len(one.changes), one.peak


def _candidate(
    config: Config, mesh: Shards, shapes: Shapes, target: Target, supposed: Supposed
) -> Candidate:
    changed, changes = _on(config, mesh, shapes)
    usable = MARGIN * target.memory
    if usable:
        changed, more = advice.relieve(changed, replace(target, memory=usable))
        changes |= more
    estimate = counted.estimate(changed, target, *supposed)
    fits = not usable or max(estimate.peaks.values()) <= usable
    return Candidate(changed, mesh, changes, estimate, fits)


def meshes(count: int) -> Iterator[Shards]:
    """All (data, fsdp, tensor) over so many devices."""
    for data in range(1, count + 1):
        for fsdp in range(1, count // data + 1):
            if count % (data * fsdp) == 0:
                yield Shards(data, fsdp, count // (data * fsdp))


def _on(config: Config, mesh: Shards, shapes: Shapes) -> tuple[Config, dict[str, Any]]:
    """The run on a mesh: a micro-batch must have rows for all of it; where those are more, as many
    logits at once on a device as before."""
    changes: dict[str, Any] = {f"mesh.{axis}": size for axis, size in mesh._asdict().items()}
    rows = config.update.rows_per_microbatch
    least = -(-rows // mesh.batch) * mesh.batch
    if least * shapes.rows != rows:
        changes["update.rows_per_microbatch"] = least * shapes.rows
    if least * shapes.logits != rows:
        logits = config.update.logits_at_once * least // rows
        changes["update.logits_at_once"] = logits * shapes.logits
    if shapes.remat != config.model.remat:  # what is kept is not computed again
        changes["model.remat"] = shapes.remat
    return replace_fields(config, changes), changes


def ranking(found: list[Candidate], target: Target) -> list[Record]:
    """The candidates as JSON values."""
    rows = []
    for one in found:
        speeds = counted.speeds_of(one.config, one.mesh, target)
        bounds = {
            phase: cost.bound(speeds) if speeds else ""
            for phase, cost in one.estimate.costs.items()
        }
        rows.append(
            {
                "mesh": one.mesh._asdict(),
                "changes": one.changes,
                "peak": one.peak,
                "fits": one.fits,
                "step": one.estimate.step,
                "seconds": dict(one.estimate.seconds),
                "bound": bounds,
            }
        )
    return rows
