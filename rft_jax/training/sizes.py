"""Sizes that all updates of a run have."""

from __future__ import annotations

from typing import NamedTuple

from rft_jax.config import Config
from rft_jax.training.packing import num_microbatches


class UpdateSizes(NamedTuple):
    """sequences: at most of a step; microbatches: that hold them, however long they are; rows: of a
    micro-batch; row_length: tokens of a row."""

    sequences: int
    microbatches: int
    rows: int
    row_length: int


def update_sizes(config: Config) -> UpdateSizes:
    """The sizes of a run's updates."""
    shapes = config.update
    most = shapes.sequences_per_step
    if config.refill is not None:
        most = config.refill.accepted
    elif config.rollout is not None and not most:
        most = config.rollout.questions_per_step * config.rollout.samples_per_question
    rows = {"row_length": shapes.row_length, "rows_per_microbatch": shapes.rows_per_microbatch}
    longest = config.data.max_prompt_tokens + config.data.max_completion_tokens
    return UpdateSizes(
        most, num_microbatches(most, longest, **rows), shapes.rows_per_microbatch, shapes.row_length
    )
