"""What to change about a run: settings that change memory and speed but, apart from rounding, not
what is computed, with the count of what each saves; and meshes, ranked by the count."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from rft_jax.config import Config
from rft_jax.config.serialize import replace_fields
from rft_jax.errors import ConfigError
from rft_jax.planning import memory, roofline
from rft_jax.planning.memory import Shards
from rft_jax.planning.plan import Record
from rft_jax.planning.roofline import Supposed
from rft_jax.planning.targets import Target

Changes = Mapping[str, Any]
"""Fields of a run by their dotted names, and the values they should have."""

FEWEST_SLOTS = 8
"""Of one device: below it decoding costs about as much for fewer outputs."""
ROWS = (1, 2, 4, 8)
"""Times as many rows in a micro-batch are tried: fewer micro-batches gather weights less often."""
LOGITS = (1, 4, 16)
"""Times as many logits at once are tried: the output projection is then read, gathered and its
gradient summed less often."""
MARGIN = 0.95
"""Of a device's memory, what the count may need: compilers need more or less by some per cent."""


class Advice(NamedTuple):
    """Changes and what they do to the counted peak, in bytes."""

    changes: Changes
    peak: float
    saves: float


def peak(config: Config, target: Target) -> float:
    """Bytes at the worst moment of a run, counted."""
    of = memory.shards(config.mesh, target.count)
    phases = memory.by_phase(config, of, tpu=target.tpu)
    return max(sum(parts.values()) for parts in phases.values())


def advise(config: Config, target: Target) -> list[Advice]:
    """Single changes that lower the counted peak, the best first."""
    before = peak(config, target)
    options = _better(
        config, target, before, (*_settings(config, target), *_meshes(config, target))
    )
    return sorted(
        (Advice(new, after, before - after) for after, new in options), key=lambda a: a.peak
    )


def relieve(config: Config, target: Target) -> tuple[Config, Changes]:
    """The run with one setting after the other changed, always the one that helps most, until the
    count fits; and the changes. Its mesh stays. Unchanged when nothing helps enough."""
    changed, changes = config, dict[str, Any]()
    while (now := peak(changed, target)) > target.memory:
        options = _better(changed, target, now, _settings(changed, target))
        if not options:
            return config, {}
        _, new = min(options, key=lambda option: option[0])
        changed, changes = replace_fields(changed, new), changes | dict(new)
    return changed, changes


def _better(
    config: Config, target: Target, before: float, options: Iterable[Changes]
) -> list[tuple[float, Changes]]:
    """(peak, changes) of those that lower the peak and that the run accepts."""
    found = []
    for changes in options:
        try:
            after = peak(replace_fields(config, changes), target)
        except ConfigError:
            continue
        if after < before:
            found.append((after, changes))
    return found


def _settings(config: Config, target: Target) -> Iterator[Changes]:
    of, model = memory.shards(config.mesh, target.count), config.model
    following = {"none": "dots", "dots": "full"}
    if model.remat in following:
        yield {"model.remat": following[model.remat]}
    rows, logits = config.update.rows_per_microbatch, config.update.logits_at_once
    if rows >= 2 * of.batch and rows // 2 % of.batch == 0:
        yield {"update.rows_per_microbatch": rows // 2}
    if logits >= 2 * rows * memory.model_of(config).vocab:
        yield {"update.logits_at_once": logits // 2}
    if config.optimizer.first_moment_dtype != "bfloat16":
        yield {"optimizer.first_moment_dtype": "bfloat16"}
    if config.rollout is not None:
        work = memory.rollout(config, of)
        slots = work.slots or work.questions * work.samples
        if slots // 2 >= FEWEST_SLOTS * of.batch:
            yield {"rollout.slots": slots // 2}
    if config.evaluation.questions_per_batch > 1:
        yield {"evaluation.questions_per_batch": config.evaluation.questions_per_batch // 2}


def _meshes(config: Config, target: Target) -> Iterator[Changes]:
    """A neighbour that holds less of the parameters on a device."""
    of = memory.shards(config.mesh, target.count)
    for less, more in (("data", "fsdp"), ("data", "tensor"), ("fsdp", "tensor")):
        sizes = of._asdict()
        if sizes[less] % 2 == 0:
            sizes |= {less: sizes[less] // 2, more: sizes[more] * 2}
            if divides(config, Shards(**sizes)):
                yield {f"mesh.{axis}": size for axis, size in sizes.items()}


def divides(config: Config, of: Shards) -> bool:
    """Whether a mesh splits every parameter evenly."""
    try:
        memory.check_parameters(config, of)
    except ConfigError:
        return False
    return True


class Candidate(NamedTuple):
    """A run with another mesh, and whatever else must change for it. Counted: peak: bytes at the
    worst moment; seconds: of a step, by phase; bound: what takes longest in each phase."""

    config: Config
    mesh: Shards
    changes: dict[str, Any]
    peak: float
    seconds: dict[str, float]
    bound: dict[str, str]
    fits: bool

    @property
    def step(self) -> float:
        """Seconds of a rollout and an update."""
        return sum(self.seconds.values())

    @property
    def rank(self) -> tuple[bool, float, int, float]:
        """What does not fit by how much it lacks, whatever its speed; of equals fewest changes."""
        first = self.step if self.fits else self.peak
        return not self.fits, first, len(self.changes), self.peak


def search(config: Config, target: Target, supposed: Supposed) -> list[Candidate]:
    """All meshes over the target's devices, the best first, each with the rows of a micro-batch,
    logits at once and rematerialisation that are best there. Where one does not fit, settings that
    change memory only are changed for it (`relieve`)."""
    remats = dict.fromkeys((config.model.remat, "none"))
    shapes = list(itertools.product(ROWS, LOGITS, remats))
    found = [
        min(
            (_candidate(config, mesh, one, target, supposed) for one in shapes),
            key=lambda candidate: candidate.rank,
        )
        for mesh in meshes(target.count)
        if divides(config, mesh)
    ]
    return sorted(found, key=lambda candidate: candidate.rank)


def meshes(count: int) -> Iterator[Shards]:
    """All (data, fsdp, tensor) over `count` devices."""
    for data, fsdp in itertools.product(range(1, count + 1), repeat=2):
        if count % (data * fsdp) == 0:
            yield Shards(data, fsdp, count // (data * fsdp))


def _candidate(
    config: Config, mesh: Shards, shapes: tuple[int, int, str], target: Target, supposed: Supposed
) -> Candidate:
    """shapes: times as many rows and logits, and model.remat. A micro-batch must have rows for all
    of the mesh; where those are more, as many logits at once on a device as before."""
    times, times_logits, remat = shapes
    changes: dict[str, Any] = {f"mesh.{axis}": size for axis, size in mesh._asdict().items()}
    rows = config.update.rows_per_microbatch
    least = -(-rows // mesh.batch) * mesh.batch
    if least * times != rows:
        changes["update.rows_per_microbatch"] = least * times
    if least * times_logits != rows:
        logits = config.update.logits_at_once * least // rows
        changes["update.logits_at_once"] = logits * times_logits
    if remat != config.model.remat:  # what is kept is not computed again
        changes["model.remat"] = remat
    changed, usable = replace_fields(config, changes), MARGIN * target.memory
    if usable:
        changed, more = relieve(changed, replace(target, memory=usable))
        changes |= more
    most, costs = peak(changed, target), roofline.costs_of(changed, mesh, supposed)
    speeds = target.speeds(mesh, config.model.compute_dtype)
    seconds = roofline.seconds_of(costs, speeds)
    bound = {phase: cost.bound(speeds) if speeds else "" for phase, cost in costs.items()}
    return Candidate(changed, mesh, changes, most, seconds, bound, not usable or most <= usable)


def ranking(found: list[Candidate]) -> list[Record]:
    """The candidates as JSON values."""
    fields = ("changes", "peak", "fits", "step", "seconds", "bound")
    return [
        {"mesh": one.mesh._asdict()} | {name: getattr(one, name) for name in fields}
        for one in found
    ]
