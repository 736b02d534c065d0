"""The gradient of RFT's loss is PyTorch's on the same weights, for every family."""

from __future__ import annotations

import functools
from pathlib import Path

import jax
import numpy as np
import pytest
import reference_models
import torch
from imports import imported

from rft_jax.hub.names import tensors
from rft_jax.training.objective import output_weights
from rft_jax.training.packing import TrainingSequence, pack
from rft_jax.training.update import Terms, gradients

TEMPERATURE = 0.8


def accepted() -> list[TrainingSequence]:
    """Five accepted of eight sampled outputs, from 1 to 14 tokens, longer than the windows."""
    rng = np.random.default_rng(4)
    questions = np.array([0, 0, 1, 2, 2])
    lengths = np.array([5, 14, 1, 9, 3])
    weights = output_weights(
        questions, lengths, denominator="sampled",
        num_sampled=8, num_questions=4, num_tokens=50, constant_length=14,
    )  # fmt: skip
    prompts = [tuple(rng.integers(3, 96, size).tolist()) for size in (6, 1, 9)]
    return [
        TrainingSequence(
            prompts[question], (*rng.integers(3, 96, size - 1).tolist(), 2), float(weight)
        )
        for question, size, weight in zip(questions, lengths, weights, strict=True)
    ]


def loss_of(model: torch.nn.Module) -> torch.Tensor:
    """- sum_o 1 / 8 * 1 / |o| * sum_t log pi(o_t | q, o_<t), output by output (eq. 11)."""
    total = torch.zeros(())
    for one in accepted():
        whole = torch.tensor([[*one.prompt, *one.completion]])
        scores = model(input_ids=whole).logits[0, len(one.prompt) - 1 : -1] / TEMPERATURE
        log_probs = torch.log_softmax(scores, dim=-1)
        chosen = log_probs[torch.arange(len(one.completion)), torch.tensor(one.completion)]
        total = total - chosen.mean() / 8
    return total


@pytest.mark.slow
@pytest.mark.parametrize("case", reference_models.CASES)
def test_gradients_of_the_rft_loss(tmp_path: Path, case: str) -> None:
    theirs = reference_models.save(case, tmp_path)
    config, params = imported(tmp_path, 1, 1, 1)
    batch = pack(accepted(), row_length=24, rows_per_microbatch=2, max_microbatches=3)
    ours = jax.jit(functools.partial(gradients, config=config, terms=Terms(), chunk=16))
    found = ours(params, None, batch, np.float32(TEMPERATURE))
    loss = loss_of(theirs)
    loss.backward()
    assert -float(found.totals.value) == pytest.approx(loss.item(), rel=1e-5)
    slopes = {name: weight.grad.numpy() for name, weight in theirs.named_parameters()}
    checked = set()
    for tensor in tensors(config, config.vocab_size):
        leaf = found.gradients
        for part in tensor.path:
            leaf = leaf[part]
        mine = np.asarray(leaf if tensor.layer is None else leaf[tensor.layer])
        expected = slopes[tensor.name].reshape(mine.shape)
        assert np.abs(expected).max() > 0, tensor.name
        apart = np.abs(mine - expected).max() / np.abs(expected).max()
        assert apart < 1e-4, (tensor.name, apart)
        checked.add(tensor.name)
    assert checked == set(slopes)
