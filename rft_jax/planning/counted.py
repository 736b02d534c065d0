"""A run counted from its settings: memory, a step's time and the run's, with nothing compiled.

Memory is counted part by part (memory.py) at the moments at which sampling, the update and
evaluations need most. The time of a phase is that of its products, traffic and exchanges
(step_costs.py) at published rates (chips.py, targets.py), divided by an assumed share of them.
Compiling, checkpoints, verification that sampling does not hide, and the host's own work are not in
it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rft_jax.config import Config
from rft_jax.planning import memory, step_costs
from rft_jax.planning.memory import Parts, Sampled, Shards
from rft_jax.planning.step_costs import Cost, Lengths, Speeds
from rft_jax.planning.targets import Target
from rft_jax.rollout.engine import rows_for

SHARES = {"weights": 0.5, "prefill": 0.4, "decode": 0.5, "update": 0.4}
"""Assumed: of the published rates, what each phase reaches."""


class Sets(NamedTuple):
    """Questions of an evaluation on the validation set and on the test set."""

    validation: int
    test: int


class Estimate(NamedTuple):
    """Of one run. memory: parts by phase, at each one's worst moment; costs: by phase, of a step;
    seconds: the same with SHARES, nothing where the target's rates are not known; evaluating:
    seconds of all evaluations of the run."""

    memory: Mapping[str, Parts]
    costs: Mapping[str, Cost]
    seconds: Mapping[str, float]
    evaluating: float

    @property
    def peaks(self) -> dict[str, float]:
        """Bytes by phase."""
        return {phase: sum(parts.values()) for phase, parts in self.memory.items()}

    @property
    def step(self) -> float:
        """Seconds of a rollout and an update."""
        return sum(self.seconds.values())


def estimate(config: Config, target: Target, lengths: Lengths, sets: Sets) -> Estimate:
    """What a run needs on a target. Raises ConfigError when its mesh cannot be made there."""
    of = memory.shards(config.mesh, target.count)
    costs, speeds = step_costs_of(config, of, lengths), speeds_of(config, of, target)
    seconds: dict[str, float] = {}
    evaluating = 0.0
    if speeds is not None:
        seconds = {name: cost.seconds(speeds) / SHARES[name] for name, cost in costs.items()}
        evaluating = evaluation_seconds(config, of, speeds, lengths, sets)
    return Estimate(memory_of(config, of, target), costs, seconds, evaluating)


def speeds_of(config: Config, of: Shards, target: Target) -> Speeds | None:
    """Of the target's devices in the run's compute type."""
    return target.speeds(of, config.model.compute_dtype)


def hours(config: Config, seconds: Mapping[str, float], evaluating: float) -> dict[str, float]:
    """Of the whole run, by what it does, for so many seconds of each phase of a step."""
    sampling = sum(each for phase, each in seconds.items() if phase != "update")
    rollouts = config.pool.rollout_steps if config.pool else config.steps
    return {
        "sampling": sampling * rollouts / 3600,
        "updating": seconds["update"] * config.steps / 3600,
        "evaluating": evaluating / 3600,
    }


def memory_of(config: Config, of: Shards, target: Target) -> dict[str, Parts]:
    """By phase the parts at the moment that needs most."""
    held = memory.held(config, of)

    def worst(works: Sequence[Sampled]) -> Parts:
        moments = [
            parts
            for work in works
            for parts in memory.sampling(config, of, work, tpu=target.tpu).values()
        ]
        return held | max(moments, key=lambda parts: sum(parts.values()))

    phases: dict[str, Parts] = {}
    if config.rollout is not None:
        phases["sampling"] = worst([memory.rollout(config, of)])
    phases["update"] = held | memory.update(config, of, tpu=target.tpu)
    if config.evaluation.every_steps or config.data.test:
        phases["evaluation"] = worst(memory.evaluations(config, of))
    return phases


def step_costs_of(config: Config, of: Shards, lengths: Lengths) -> dict[str, Cost]:
    """By phase, of one rollout and one update."""
    costs: dict[str, Cost] = {}
    if config.rollout is not None:
        work = memory.rollout(config, of)
        costs = {
            "weights": step_costs.laying_out(config, of),
            "prefill": step_costs.prefill(config, of, work),
            "decode": step_costs.decode(config, of, work, lengths),
        }
    micro = microbatches(config, lengths)
    return costs | {"update": step_costs.update(config, of, micro)}


def microbatches(config: Config, lengths: Lengths) -> int:
    """Of an update on what is accepted of a step's outputs."""
    outputs = float(config.update.sequences_per_step)
    if config.rollout is not None and not outputs:
        work = config.rollout
        outputs = lengths.pass_rate * work.questions_per_step * work.samples_per_question
    return step_costs.microbatches(config, outputs, lengths)


def evaluation_seconds(
    config: Config, of: Shards, speeds: Speeds, lengths: Lengths, sets: Sets
) -> float:
    """Of all evaluations of a run."""
    settings = config.evaluation
    every = settings.every_steps
    total = 0.0
    for questions, count, times in (
        (sets.validation, settings.samples_per_question, 1 + config.steps // every if every else 0),
        (sets.test, settings.test_samples_per_question, int(bool(config.data.test))),
    ):
        for samples in {1, count} - {0}:
            together = memory.BATCHES_AT_ONCE * settings.questions_per_batch
            block = rows_for(together, together, of.batch)
            work = Sampled(block, samples, settings.questions_per_batch * samples)
            for phase, cost in (
                ("prefill", step_costs.prefill(config, of, work)),
                ("decode", step_costs.decode(config, of, work, lengths)),
            ):
                total += times * questions / block * cost.seconds(speeds) / SHARES[phase]
    return total
