"""The policy computes what transformers computes from the same files, for every family."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_models
from imports import imported

from rft_jax.models import transformer

LENGTH = 28
"""Several windows long, and longer than the texts before rope scaling."""


QUICK = ("qwen2", "gemma3")
"""Biases; and windows, two rotations and most of the other switches."""


@pytest.mark.parametrize(
    "case",
    [
        case if case in QUICK else pytest.param(case, marks=pytest.mark.slow)
        for case in reference_models.CASES
    ],
)
def test_logits(tmp_path: Path, case: str) -> None:
    """Of two texts in rows of their own, and packed into one."""
    theirs = reference_models.save(case, tmp_path)
    config, params = imported(tmp_path, 1, 1, 1)
    tokens = np.random.default_rng(0).integers(3, 96, (2, LENGTH))
    expected = reference_models.logits(theirs, tokens.tolist())

    @jax.jit
    def ours(tokens: jax.Array, positions: jax.Array, segments: jax.Array) -> jax.Array:
        hidden = transformer.hidden_states(params, tokens, positions, segments, config=config)
        return transformer.logits(params, hidden, config=config)

    positions = np.broadcast_to(np.arange(LENGTH), tokens.shape)
    rows = ours(jnp.asarray(tokens), jnp.asarray(positions), jnp.ones_like(tokens))
    segments = np.repeat([[1, 2]], LENGTH, axis=1)
    packed = ours(*(jnp.asarray(part.reshape(1, -1)) for part in (tokens, positions, segments)))
    for found in (rows, packed):
        apart = np.asarray(found).reshape(96, *tokens.shape).transpose(1, 2, 0) - expected
        assert np.abs(apart).max() < 1e-5 * np.abs(expected).max()
