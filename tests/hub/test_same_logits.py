"""The policy computes what transformers computes from the same files, for every family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_models
from imports import imported
from safetensors.numpy import load_file, save_file

from rft_jax.hub.folder import raw_config
from rft_jax.hub.save import save_pretrained
from rft_jax.hub.tensors import SINGLE
from rft_jax.models import transformer

LENGTH = 28
"""Several windows long, and longer than the texts before rope scaling."""


QUICK = ("qwen2", "gemma3")
"""Biases; and windows, two rotations and most of the other switches."""


@pytest.mark.parametrize(
    "case",
    [
        case if case in QUICK else pytest.param(case, marks=pytest.mark.slow)
        for case in (*reference_models.CASES, *reference_models.WITH_IMAGES)
    ],
)
def test_logits(tmp_path: Path, case: str) -> None:
    """Of two texts in rows of their own, and packed into one."""
    theirs = reference_models.save(case, tmp_path)
    same_logits(tmp_path, theirs)


def same_logits(folder: Path, theirs: Any) -> None:
    config, params = imported(folder, 1, 1, 1)
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


@pytest.mark.slow
def test_a_model_that_sees_images_goes_out_as_its_text_half(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In both ways that its tensors are named."""
    caplog.set_level("INFO")
    theirs = reference_models.save("gemma3_images", tmp_path / "in", max_shard_size="1GB")
    file = tmp_path / "in" / SINGLE
    older = load_file(file)
    assert "language_model.model.norm.weight" in older
    newer = {
        f"model.{name}".replace("model.language_model.model.", "model.language_model."): value
        for name, value in older.items()
    }
    for number, tensors in enumerate((older, newer)):
        save_file(tensors, file, metadata={"format": "pt"})
        config, params = imported(tmp_path / "in", 1, 1, 1)
        of_text = sum("language_model" in name for name in tensors)
        assert caplog.messages[-1] == (
            f"{tmp_path}/in: {of_text} tensors of text are used, {len(tensors) - of_text} of "
            "images are left out"
        )
        out = tmp_path / f"out{number}"
        save_pretrained(params, config, out, raw=raw_config(tmp_path / "in"), dtype="float32")
        model, report = reference_models.load(out)
        assert type(model).__name__ == "Gemma3ForCausalLM"
        assert not any(report.values())
        tokens = [[1, 5, 9, 3, 40, 41, 42]]
        expected = reference_models.logits(theirs, tokens)
        np.testing.assert_array_equal(reference_models.logits(model, tokens), expected)
    same_logits(tmp_path / "in", theirs)
