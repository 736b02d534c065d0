"""Sampling from a policy some of whose layers see a sliding window only."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from policies import random_policy

from rft_jax.config import ModelConfig
from rft_jax.keys import Purpose, run_key
from rft_jax.rollout.sampler import sample
from rft_jax.training.log_probs import target_log_probs
from rft_jax.training.packing import TrainingSequence, pack
from rft_jax.types import Completions, Params, Prompts

VOCAB, EOS, NEW, WIDTH = 12, 2, 20, 9
LENGTHS = np.array([9, 1, 4, 6], np.int32)
CONFIGS = {
    "all layers": tiny.model(sliding_window=4),
    "every other layer": tiny.model(
        num_layers=4, sliding_window=5, global_every=2, local_rope_theta=50.0
    ),
    "two positions": tiny.model(sliding_window=2),
    "capped": tiny.model(
        sliding_window=5, global_every=2, attention_softcap=1.0, final_softcap=3.0
    ),
}


@functools.cache
def policy(config: ModelConfig) -> Params:
    return random_policy(config, VOCAB, seed=1)


@functools.cache
def prompts() -> Prompts:
    tokens = np.random.default_rng(0).integers(VOCAB, size=(4, WIDTH))
    return Prompts(jnp.asarray(tokens, jnp.int32), jnp.asarray(LENGTHS), jnp.arange(4))


def run(config: ModelConfig, num_slots: int) -> Completions:
    root = run_key(seed=3, purpose=Purpose.ROLLOUT)
    return jax.device_get(
        sample(
            policy(config), prompts(), root, np.int32(0), np.float32(1.0), config=config,
            num_samples=4, max_new_tokens=NEW, eos_ids=(EOS,), num_slots=num_slots,
        )
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_log_probs_are_those_of_the_trainer_whatever_the_slots(name: str) -> None:
    """Few slots take sample after sample: what one leaves in the ring must not reach the next."""
    config = CONFIGS[name]
    together = run(config, 0)
    assert together.lengths.max() == NEW
    assert together.lengths.min() < 5
    in_turn = run(config, 4)
    np.testing.assert_array_equal(in_turn.tokens, together.tokens)
    np.testing.assert_allclose(in_turn.log_probs, together.log_probs, atol=2e-5)
    for question, index in np.ndindex(4, 4):
        length = int(together.lengths[question, index])
        completion = together.tokens[question, index, :length].tolist()
        prompt = np.asarray(prompts().tokens)[question, : LENGTHS[question]].tolist()
        batch = pack(
            [TrainingSequence(prompt, completion, 1.0)],
            row_length=WIDTH + NEW, rows_per_microbatch=1, max_microbatches=1,
        )  # fmt: skip
        rows = (batch.inputs[0], batch.targets[0], batch.positions[0], batch.segments[0])
        found = _log_probs(policy(config), *rows, jnp.float32(1.0), config=config, chunk=64)
        first = len(prompt) - 1
        np.testing.assert_allclose(
            found[0, first : first + length],
            together.log_probs[question, index, :length],
            atol=2e-5,
        )


_log_probs = jax.jit(target_log_probs, static_argnames=("config", "chunk"))
