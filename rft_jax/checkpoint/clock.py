"""When a checkpoint is saved, and which are kept. No jax, no clock of its own, no files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from rft_jax.config import CheckpointConfig


class SaveClock(NamedTuple):
    """Says when to save; of several processes, one decides for all."""

    config: CheckpointConfig
    steps: int
    """Steps of the run."""
    last: float
    """Seconds, on any clock, at the last save or, before the first, at the start."""

    def due(self, step: int, now: float) -> bool:
        """Whether to save the state after `step`, at `now` on the same clock."""
        every_steps, every_minutes = self.config.every_steps, self.config.every_minutes
        return (
            step == self.steps
            or step % every_steps == 0
            or (every_minutes > 0 and now - self.last >= 60 * every_minutes)
        )

    def saved(self, now: float) -> SaveClock:
        """The clock after a save at `now`."""
        return self._replace(last=now)


def kept(
    steps: Iterable[int], accuracies: Mapping[int, float], config: CheckpointConfig
) -> frozenset[int]:
    """Steps whose checkpoints are kept.

    Args:
        steps: those that have a checkpoint.
        accuracies: of steps that were evaluated.
        config: the newest `keep` steps stay, and the `keep_best` of highest accuracy, the later of
            equals.
    """
    ordered = sorted(steps)
    evaluated = [step for step in ordered if step in accuracies]
    best = sorted(evaluated, key=lambda step: (accuracies[step], step), reverse=True)
    return frozenset([*ordered[-config.keep :], *best[: config.keep_best]])
