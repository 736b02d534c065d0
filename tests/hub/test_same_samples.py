"""The sampler continues texts as transformers does, and reports its log-probs, for every family."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_models
import torch
import transformers
from imports import imported
from scipy import special

from rft_jax.config import ModelConfig
from rft_jax.keys import Purpose, run_key
from rft_jax.rollout.sampler import sample
from rft_jax.types import Completions, Params, Prompts

pytestmark = pytest.mark.slow

VOCAB = 96
NEVER = (VOCAB,)
"""No token that can be drawn."""
PROMPTS = [[1, 5, 9, 3, 40, 41, 42], [1, 80, 17], [1, 8, 8, 30, 11, 6, 7, 7, 90]]


def run(params: Params, config: ModelConfig, **settings: object) -> Completions:
    """`sample` of PROMPTS, its result as numpy arrays."""
    tokens = np.zeros((len(PROMPTS), 9), np.int32)
    for row, prompt in enumerate(PROMPTS):
        tokens[row, : len(prompt)] = prompt
    lengths = jnp.asarray([len(prompt) for prompt in PROMPTS], jnp.int32)
    prompts = Prompts(jnp.asarray(tokens), lengths, jnp.arange(len(PROMPTS)))
    root = run_key(seed=5, purpose=Purpose.ROLLOUT)
    return jax.device_get(
        sample(params, prompts, root, np.int32(0), np.float32(1.0), config=config, **settings)
    )


@pytest.mark.parametrize("case", reference_models.CASES)
def test_greedy_outputs_of_64_tokens(tmp_path: Path, case: str) -> None:
    theirs = reference_models.save(case, tmp_path)
    config, params = imported(tmp_path, 1, 1, 1)
    found = run(params, config, num_samples=1, max_new_tokens=64, eos_ids=NEVER, greedy=True)
    settings = transformers.GenerationConfig(
        max_new_tokens=64, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    theirs.generation_config = settings  # its own would name an EOS
    for row, prompt in enumerate(PROMPTS):
        ids = torch.tensor([prompt])
        with torch.no_grad():
            expected = theirs.generate(ids, attention_mask=torch.ones_like(ids))
        assert found.tokens[row, 0].tolist() == expected[0, len(prompt) :].tolist()


@pytest.mark.parametrize("case", reference_models.CASES)
def test_log_probs_of_samples(tmp_path: Path, case: str) -> None:
    """Few slots take output after output, so that windows and rings go around."""
    theirs = reference_models.save(case, tmp_path)
    config, params = imported(tmp_path, 1, 1, 1)
    found = run(params, config, num_samples=4, max_new_tokens=20, eos_ids=(2, 11, 60), num_slots=4)
    assert found.lengths.min() < found.lengths.max() == 20
    for row, prompt in enumerate(PROMPTS):
        for index, length in enumerate(found.lengths[row].tolist()):
            output = found.tokens[row, index, :length].tolist()
            assert (output[-1] in (2, 11, 60)) == found.finished[row, index]
            assert not {2, 11, 60} & set(output[:-1])
            scores = reference_models.logits(theirs, [prompt + output])[0, len(prompt) - 1 : -1]
            expected = special.log_softmax(scores.astype(np.float64), axis=-1)
            expected = expected[np.arange(length), output]
            np.testing.assert_allclose(found.log_probs[row, index, :length], expected, atol=1e-4)
