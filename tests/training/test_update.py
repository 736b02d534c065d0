"""The update: what it depends on and what not, one compilation, and a whole step."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import tiny
from enumeration import EOS, PROMPTS, VOCABULARY, relative_error

from rft_jax.config import ModelConfig, OptimizerConfig
from rft_jax.models import transformer
from rft_jax.training.optimizer import make_optimizer
from rft_jax.training.packing import TrainingSequence, pack
from rft_jax.training.update import Terms, gradients, init_state, update
from rft_jax.types import Params

MODEL = tiny.model(num_layers=1, compute_dtype="float64")
FLOAT32 = tiny.model(num_layers=1)
TEMPERATURE = 0.9
SHAPE = {"row_length": 16, "rows_per_microbatch": 2, "max_microbatches": 4}
ONE = np.float32(1.0)


def sequences(count: int, seed: int = 0, kl: bool = False) -> list[TrainingSequence]:
    """Random outputs of 1 to 3 tokens with random weights and sampler's log-probs."""
    rng = np.random.default_rng(seed)
    return [
        TrainingSequence(
            PROMPTS[int(rng.integers(2))],
            tuple(rng.integers(0, VOCABULARY, size).tolist()),
            float(rng.uniform(0.1, 1.0)),
            float(rng.uniform(0.1, 1.0)) if kl else 0.0,
            tuple(rng.uniform(-3.0, 0.0, size).tolist()),
        )
        for size in rng.integers(1, 4, count).tolist()
    ]


@functools.cache
def _jitted(config: ModelConfig, kl_coefficient: float, chunk: int) -> Any:
    return jax.jit(
        functools.partial(gradients, config=config, terms=Terms(kl_coefficient), chunk=chunk)
    )


def computed(
    params: Params,
    trained: Sequence[TrainingSequence],
    *,
    frozen: Params | None = None,
    config: ModelConfig = MODEL,
    chunk: int = 8,
    kl_coefficient: float = 0.0,
    **shape: int,
) -> Any:
    """`gradients` of the sequences, jitted."""
    of_batch = _jitted(config, kl_coefficient, chunk)
    return of_batch(params, frozen, pack(trained, **SHAPE | shape), jnp.asarray(TEMPERATURE))


@jax.jit
@functools.partial(jax.value_and_grad, has_aux=True)
def _plain_loss(
    params: Params, tokens: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array]:
    slots = jnp.broadcast_to(jnp.arange(reference.WIDTH), weights.shape)
    ones = jnp.ones_like(slots)
    hidden = transformer.hidden_states(params, tokens[:, :-1], slots, ones, config=MODEL)
    scores = transformer.logits(params, hidden, config=MODEL) / TEMPERATURE
    log_probs = jax.nn.log_softmax(scores, axis=0)
    chosen = jnp.take_along_axis(log_probs, tokens[None, :, 1:], axis=0)[0]
    return -jnp.sum(weights * chosen), chosen


class Formula(NamedTuple):
    """J, the gradient of -J, and |log pi - the sampler's| at each trained token."""

    value: float
    slopes: dict[str, np.ndarray]
    mismatches: np.ndarray


def formula(params: Params, trained: Sequence[TrainingSequence], rows: int = 7) -> Formula:
    """One output a row, all logits at once."""
    tokens = np.zeros((rows, reference.WIDTH + 1), np.int32)
    weights, sampler = np.zeros((2, rows, reference.WIDTH))
    for row, one in enumerate(trained):
        whole, size = (*one.prompt, *one.completion), len(one.completion)
        tokens[row, : len(whole)] = whole
        output = slice(len(one.prompt) - 1, len(whole) - 1)
        weights[row, output] = one.weight / size
        sampler[row, output] = one.log_probs
    (value, chosen), slopes = _plain_loss(params, tokens, weights)
    mismatches = np.abs(np.asarray(chosen) - sampler)[weights > 0]
    return Formula(-float(value), reference.named(slopes), mismatches)


@functools.cache
def _expected() -> np.ndarray:
    found = computed(
        reference.params64(MODEL, 0),
        sequences(11, kl=True),
        frozen=reference.params64(MODEL, 1),
        kl_coefficient=0.2,
    )
    return reference.flat(found.gradients)


LAYOUTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "order": ({}, {}),
    "short rows, chunks that do not divide": (
        {"row_length": 5, "max_microbatches": 6, "chunk": 3},
        {},
    ),
    "one long row, one chunk": ({"row_length": 64, "rows_per_microbatch": 1, "chunk": 1000}, {}),
    "many rows, a token a chunk": (
        {"rows_per_microbatch": 8, "max_microbatches": 1, "chunk": 1},
        {},
    ),
    "rematerialised blocks": ({}, {"remat": "full"}),
    "rematerialised but for products": ({"max_microbatches": 9}, {"remat": "dots"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_the_gradient_does_not_depend_on_the_layout(name: str) -> None:
    changes, model = LAYOUTS[name]
    with jax.enable_x64(True):
        trained = sequences(11, kl=True)
        found = computed(
            reference.params64(MODEL, 0),
            trained[::-1] if name == "order" else trained,
            frozen=reference.params64(MODEL, 1),
            kl_coefficient=0.2,
            config=dataclasses.replace(MODEL, **model),
            **changes,
        )
        # float32 weights are the same in every layout, so float64 is all that is left.
        assert relative_error(reference.flat(found.gradients), _expected()) < 1e-12


def test_eos_is_trained_and_prompts_are_not() -> None:
    """The output that is EOS alone: its log-prob is the whole objective and has a gradient."""
    with jax.enable_x64(True):
        params = reference.params64(MODEL, 0)
        trained = [TrainingSequence(PROMPTS[1], (EOS,), 1.0, 0.0, (-0.5,))]
        found, expected = computed(params, trained), formula(params, trained)
        assert float(found.totals.value) == pytest.approx(expected.value, rel=1e-12)
        assert float(found.totals.tokens) == len(expected.mismatches) == 1
        slopes = np.concatenate([leaf.ravel() for leaf in expected.slopes.values()])
        assert np.linalg.norm(slopes) > 0.1
        assert relative_error(reference.flat(found.gradients), slopes) < 1e-12


def test_the_length_counts_eos() -> None:
    batch = pack([TrainingSequence((1, 1), (1, 1, EOS), 1.0)], **SHAPE)
    assert batch.weights[0, 0, :4].tolist() == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3])
    assert batch.targets[0, 0, 3] == EOS


@pytest.mark.slow
def test_outputs_of_weight_zero_contribute_nothing() -> None:
    """Exactly: with the KL off they would be worth nothing if they came along."""
    params = reference.params64(MODEL, 0)  # without x64: float32
    rejected = [one._replace(weight=0.0) for one in sequences(5)]
    found = computed(params, rejected, config=FLOAT32)
    assert not reference.flat(found.gradients).any()
    numbers = [one for one in (*found.totals, *found.maxima) if one is not None]
    assert numbers == [0] * 8


@pytest.mark.slow
def test_no_sequences_give_a_zero_gradient() -> None:
    params = reference.params64(MODEL, 0)
    assert not reference.flat(computed(params, [], config=FLOAT32).gradients).any()


@pytest.mark.slow
def test_policies_far_apart_off_the_outputs_leave_the_kl_finite() -> None:
    """At a prompt's own tokens pi_ref / pi_theta may overflow; nothing is weighed there."""
    model = FLOAT32
    params = transformer.init(jax.random.key(0), config=model, vocab_size=6)
    # Hidden states whose first coordinate is positive everywhere, and a token that hates it.
    embedding = params["embedding"].at[:, 0].set(50.0)
    params = params | {"embedding": embedding}
    unembedding = params["unembedding"].at[5].set(0.0).at[5, 0].set(-1e4)
    found = computed(
        params | {"unembedding": unembedding},
        [TrainingSequence((1, 5, 5), (2, EOS), 1.0, 1.0)],
        frozen=params,
        config=model,
        kl_coefficient=0.5,
    )
    assert np.isfinite(reference.flat(found.gradients)).all()
    assert 0 <= float(found.totals.kl) < 10


def new_state(config: OptimizerConfig, steps: int, params: Params) -> Any:
    optimizer = make_optimizer(config, steps)
    return optimizer, init_state(jax.tree.map(jnp.array, params), optimizer)


@pytest.mark.slow
def test_whole_steps_are_those_of_adamw_on_the_formulas_gradient() -> None:
    """Warm-up, cosine, clipping and decay; each step's change within 1e-6 of the numpy one's."""
    settings = OptimizerConfig(
        learning_rate=0.02,
        schedule="cosine",
        warmup_steps=2,
        final_fraction=0.1,
        weight_decay=0.1,
        clip_norm=0.5,
        eps=1e-3,
    )
    steps = 4
    with jax.enable_x64(True):
        optimizer, state = new_state(settings, steps, reference.params64(MODEL, 0))
        moments = None
        for step in range(steps):
            before, old = reference.named(state.params), jax.tree.map(np.array, state.params)
            trained = sequences(7, seed=step)
            state, metrics = update(
                state,
                None,
                pack(trained, **SHAPE),
                jnp.float64(TEMPERATURE),
                config=MODEL,
                optimizer=optimizer,
                terms=Terms(),
                chunk=8,
            )
            plain = formula(old, trained)
            norm = np.sqrt(sum(np.sum(leaf**2) for leaf in plain.slopes.values()))
            assert norm > settings.clip_norm
            assert float(metrics.gradient_norm) == pytest.approx(norm, rel=1e-6)
            assert float(metrics.value) == pytest.approx(plain.value, rel=1e-6)
            assert float(metrics.mismatch_max) == pytest.approx(plain.mismatches.max(), rel=1e-6)
            assert float(metrics.mismatch_mean) == pytest.approx(plain.mismatches.mean(), rel=1e-6)
            assert float(metrics.kl) == 0
            assert int(state.step) == step + 1
            expected, moments = reference.adamw(
                before, plain.slopes, moments, step, settings, steps
            )
            found = reference.named(state.params)
            changes = [np.concatenate([(new[n] - before[n]).ravel() for n in before])
                       for new in (found, expected)]  # fmt: skip
            assert relative_error(changes[0], changes[1]) < 1e-6


@pytest.mark.slow
def test_one_compilation_for_any_number_of_outputs() -> None:
    model = FLOAT32
    params = transformer.init(jax.random.key(0), config=model, vocab_size=VOCABULARY)
    _, state = new_state(OptimizerConfig(), 9, params)
    before = update._cache_size()
    used = set()
    for count in (3, 1, 20, 0, 24):
        batch = pack(sequences(count, seed=count), **SHAPE)
        used.add(int(batch.num_microbatches))
        state, _ = update(
            state,
            None,
            jax.device_put(batch),
            jax.device_put(ONE),
            config=model,
            optimizer=make_optimizer(OptimizerConfig(), 9),
            terms=Terms(),
            chunk=8,
        )
    assert len(used) > 2
    assert update._cache_size() == before + 1
    assert int(state.step) == 5


def largest_float(chunk: int, kl_coefficient: float) -> int:
    """Elements of the largest floating-point array in the compiled gradient."""
    params = transformer.init(jax.random.key(0), config=FLOAT32, vocab_size=1024)
    batch = pack(sequences(6, kl=True), row_length=32, rows_per_microbatch=4, max_microbatches=2)
    of_batch = _jitted(FLOAT32, kl_coefficient, chunk)
    compiled = of_batch.lower(params, params, batch, ONE).compile().as_text()
    shapes = re.findall(r"\b(?:bf16|f16|f32|f64)\[([\d,]+)\]", compiled)
    return max(math.prod(map(int, shape.split(","))) for shape in shapes)


@pytest.mark.slow
def test_logits_of_all_tokens_never_exist() -> None:
    """Neither in the forward pass nor, as residuals, for the backward pass."""
    tokens, vocabulary = 4 * 32, 1024
    # What is large then are the embeddings, [1024, 16], and one chunk's logits, [8, 1024].
    for kl_coefficient in (0.0, 0.1):
        assert largest_float(8, kl_coefficient) <= tokens * vocabulary / 8
    # One chunk for all: the same look does find them.
    assert largest_float(tokens, 0.0) >= tokens * vocabulary
