"""Sizes of updates: what a step may bring, and the arrays that hold it."""

from __future__ import annotations

import tiny

from rft_jax.config import RefillConfig, RolloutConfig
from rft_jax.training.packing import pack_step, update_sizes


def test_a_step_brings_what_its_source_gives() -> None:
    online = tiny.online_rft(rollout=RolloutConfig(questions_per_step=6, samples_per_question=4))
    assert update_sizes(online).sequences == 24
    refilled = tiny.online_rft(refill=RefillConfig(accepted=10, max_sampled=96))
    assert update_sizes(refilled).sequences == 10
    sft = tiny.sft()
    assert update_sizes(sft).sequences == sft.update.sequences_per_step


def test_the_batch_has_these_sizes() -> None:
    for config in (tiny.sft(), tiny.online_rft()):
        sizes = update_sizes(config)
        shape = pack_step([], config).inputs.shape
        assert shape == (sizes.microbatches, sizes.rows, sizes.row_length)
