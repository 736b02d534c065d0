"""What to change when a run does not fit: settings that change memory and speed, and not what is
computed but for rounding, with the count of what each saves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from rft_jax.config import Config
from rft_jax.config.serialize import replace_fields
from rft_jax.errors import ConfigError
from rft_jax.planning import counted, memory
from rft_jax.planning.memory import Shards
from rft_jax.planning.targets import Target

Changes = Mapping[str, Any]
"""Fields of a run by their dotted names, and the values they should have."""

FEWEST_SLOTS = 8
"""Of one device: below so many decoding costs about as much for fewer outputs."""


class Advice(NamedTuple):
    """Changes and what they do to the counted peak, in bytes."""

    changes: Changes
    peak: float
    saves: float


def peak(config: Config, target: Target) -> float:
    """Bytes at the worst moment of a run, counted."""
    of = memory.shards(config.mesh, target.count)
    return max(sum(parts.values()) for parts in counted.memory_of(config, of, target).values())


def advise(config: Config, target: Target) -> list[Advice]:
    """Single changes that lower the counted peak, the best first."""
    before, found = peak(config, target), []
    for changes in (*_settings(config, target), *_meshes(config, target)):
        after = _peak_with(config, changes, target)
        if after is not None and after < before:
            found.append(Advice(changes, after, before - after))
    return sorted(found, key=lambda advice: advice.peak)


def relieve(config: Config, target: Target) -> tuple[Config, Changes]:
    """The run with one setting after the other changed, always the one that helps most, until the
    count fits; and the changes. Its mesh stays. Unchanged when nothing helps enough."""
    changed, changes = config, dict[str, Any]()
    while (now := peak(changed, target)) > target.memory:
        options = [(_peak_with(changed, new, target), new) for new in _settings(changed, target)]
        better = [(after, new) for after, new in options if after is not None and after < now]
        if not better:
            return config, {}
        _, new = min(better, key=lambda option: option[0])
        changed, changes = replace_fields(changed, new), changes | dict(new)
    return changed, changes


def _settings(config: Config, target: Target) -> Iterator[Changes]:
    of, model = memory.shards(config.mesh, target.count), config.model
    following = {"none": "dots", "dots": "full"}
    if model.remat in following:
        yield {"model.remat": following[model.remat]}
    rows, logits = config.update.rows_per_microbatch, config.update.logits_at_once
    if rows >= 2 * of.batch and rows // 2 % of.batch == 0:
        yield {"update.rows_per_microbatch": rows // 2}
    if logits >= 2 * rows * memory.vocabulary(config):
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
        if sizes[less] % 2:
            continue
        sizes |= {less: sizes[less] // 2, more: sizes[more] * 2}
        if divides(config, Shards(**sizes)):
            yield {f"mesh.{axis}": size for axis, size in sizes.items()}


def divides(config: Config, of: Shards) -> bool:
    """Whether a mesh splits every parameter evenly."""
    return not memory.undivided(memory.policy(config).params, of)


def _peak_with(config: Config, changes: Changes, target: Target) -> float | None:
    """None where the run refuses the changes."""
    try:
        return peak(replace_fields(config, changes), target)
    except ConfigError:
        return None
