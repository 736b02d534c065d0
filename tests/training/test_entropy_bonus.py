"""The entropy bonus: its value and gradient are those of a plain softmax, and without it nothing is
computed."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import tiny
from enumeration import QUESTIONS, config, random_samples, relative_error, sampling
from steps import choose

from rft_jax.models import transformer
from rft_jax.training.log_probs import log_probs_and_entropies, target_log_probs
from rft_jax.training.packing import pack
from rft_jax.training.update import Terms, gradients
from rft_jax.types import PackedBatch, Params

pytestmark = pytest.mark.slow

MODEL = tiny.model(compute_dtype="float64")
SHAPE = {"row_length": 8, "rows_per_microbatch": 2, "max_microbatches": 12}
TEMPERATURE, BONUS = 0.7, 0.03


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def packed(kl_coefficient: float = 0.0) -> PackedBatch:
    samples = random_samples(np.random.default_rng(10), per_question=12)
    chosen = choose(
        samples, QUESTIONS, config("online_rft", kl_coefficient=kl_coefficient), sampling()
    )
    return pack(chosen.sequences, **SHAPE)


def plain(params: Params, batch: PackedBatch) -> tuple[jax.Array, jax.Array]:
    """Log-probs and entropies of all micro-batches, all logits at once."""

    def of_rows(inputs: jax.Array, targets: jax.Array, *where: jax.Array) -> tuple[jax.Array, ...]:
        hidden = transformer.hidden_states(params, inputs, *where, config=MODEL)
        scores = transformer.logits(params, hidden, config=MODEL) / TEMPERATURE
        every = jax.nn.log_softmax(scores, axis=0)
        chosen = jnp.take_along_axis(every, targets[None], axis=0)[0]
        return chosen, -jnp.sum(jnp.exp(every) * every, axis=0)

    rows = [jnp.asarray(leaf) for leaf in batch[:4]]
    found = [of_rows(*(leaf[micro] for leaf in rows)) for micro in range(len(rows[0]))]
    log_probs, entropies = zip(*found, strict=True)
    return jnp.stack(log_probs), jnp.stack(entropies)


@pytest.mark.parametrize("chunk", [3, 100])
def test_entropies_come_from_the_same_logits(chunk: int) -> None:
    params, batch = reference.params64(MODEL, 0), packed()
    rows = tuple(jnp.asarray(leaf[0]) for leaf in batch[:4])
    settings = {"config": MODEL, "chunk": chunk}
    log_probs, entropies = log_probs_and_entropies(
        params, *rows, jnp.float64(TEMPERATURE), **settings
    )
    alone = target_log_probs(params, *rows, jnp.float64(TEMPERATURE), **settings)
    np.testing.assert_array_equal(log_probs, alone)
    np.testing.assert_allclose(entropies, plain(params, batch)[1][0], rtol=1e-12)


@pytest.mark.parametrize("kl_coefficient", [0.0, 0.2])
def test_the_gradient_is_that_of_the_objective_and_the_entropy(kl_coefficient: float) -> None:
    """Over the tokens that are trained on: all decided outputs' with a KL in the loss."""
    params, frozen = reference.params64(MODEL, 0), reference.params64(MODEL, 1)
    batch = packed(kl_coefficient)
    trained = (batch.weights != 0) | (batch.kl_weights != 0)
    assert (batch.weights != 0).sum() < trained.sum() or not kl_coefficient

    def update(terms: Terms, bonus: jax.Array | None) -> tuple[np.ndarray, np.ndarray | None]:
        function = functools.partial(gradients, config=MODEL, terms=terms, chunk=7)
        found = jax.jit(function)(params, frozen, batch, np.float64(TEMPERATURE), None, bonus)
        entropy = found.totals.entropy
        return reference.flat(found.gradients), None if entropy is None else np.asarray(entropy)

    without, nothing = update(Terms(kl_coefficient), None)
    found, entropy = update(Terms(kl_coefficient, entropy=True), jnp.float64(BONUS))
    value, slopes = jax.jit(
        jax.value_and_grad(lambda p: jnp.sum(jnp.where(trained, plain(p, batch)[1], 0.0)))
    )(params)
    assert nothing is None
    assert entropy == pytest.approx(float(value), rel=1e-12)
    assert relative_error(without - found, BONUS * reference.flat(slopes)) < 1e-6
