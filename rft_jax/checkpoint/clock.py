"""When a checkpoint is saved, and which are kept. No jax, no clock of its own, no files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from rft_jax.config import CheckpointConfig


class SaveClock(NamedTuple):
    """Says when to save. steps: of the run; last: seconds, on any clock, at the last save or,
    before the first, at the start. With several processes, one decides for all."""

    config: CheckpointConfig
    steps: int
    last: float

    def due(self, step: int, now: float) -> bool:
        """Whether the state after `step` is to be saved, at `now` on the same clock."""
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
    """Of the steps that have a checkpoint, those to keep: the newest `config.keep`, and of those
    with an accuracy the `config.keep_best` highest, the later of equals."""
    ordered = sorted(steps)
    judged = [step for step in ordered if step in accuracies]
    best = sorted(judged, key=lambda step: (accuracies[step], step), reverse=True)
    return frozenset([*ordered[-config.keep :], *best[: config.keep_best]])
