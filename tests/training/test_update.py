"""The update: what it depends on and what not, one compilation, and a whole step."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import tiny
from enumeration import EOS, PROMPTS, VOCABULARY, relative_error

from rft_jax.batches import Params
from rft_jax.config import ModelConfig, OptimizerConfig
from rft_jax.models import transformer
from rft_jax.training.optimizer import make_optimizer
from rft_jax.training.packing import TrainingSequence, pack
from rft_jax.training.update import gradients, init_state, update

MODEL = tiny.model(compute_dtype="float64")
SHAPE = {"row_length": 16, "rows_per_microbatch": 2, "max_microbatches": 4}
ONE = np.float32(1.0)


def sequences(count: int, seed: int = 0, kl: bool = False) -> list[TrainingSequence]:
    """Random outputs of 1 to 3 tokens with random weights."""
    rng = np.random.default_rng(seed)
    return [
        TrainingSequence(
            PROMPTS[int(rng.integers(2))],
            tuple(rng.integers(0, VOCABULARY, int(rng.integers(1, 4))).tolist()),
            float(rng.uniform(0.1, 1.0)),
            float(rng.uniform(0.1, 1.0)) if kl else 0.0,
        )
        for _ in range(count)
    ]


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
    of_batch = jax.jit(
        functools.partial(gradients, config=config, kl_coefficient=kl_coefficient, chunk=chunk)
    )
    return of_batch(params, frozen, pack(trained, **SHAPE | shape), np.float64(0.9))


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
    "short rows": ({"row_length": 5, "max_microbatches": 6}, {}),
    "one long row": ({"row_length": 64, "rows_per_microbatch": 1}, {}),
    "many rows": ({"rows_per_microbatch": 8, "max_microbatches": 1}, {}),
    "room to spare": ({"max_microbatches": 9}, {}),
    "one token a chunk": ({"chunk": 1}, {}),
    "chunks that do not divide": ({"chunk": 5}, {}),
    "one chunk": ({"chunk": 1000}, {}),
    "rematerialised blocks": ({}, {"remat": "full"}),
    "rematerialised but for products": ({}, {"remat": "dots"}),
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
            config=tiny.model(compute_dtype="float64", **model),
            **changes,
        )
        # float32 weights are the same in every layout, so float64 is all that is left.
        assert relative_error(reference.flat(found.gradients), _expected()) < 1e-12


def test_eos_is_trained_and_prompts_are_not() -> None:
    """The output that is EOS alone: its log-prob is the whole objective and has a gradient."""
    with jax.enable_x64(True):
        params = reference.params64(MODEL, 0)
        found = computed(params, [TrainingSequence(PROMPTS[1], (EOS,), 1.0)])
        values, scores = reference.values_and_scores(params, 0.9, MODEL)
        row = reference.case_of(1, (EOS,))
        assert float(found.value) == pytest.approx(values[row, 0], rel=1e-12)
        assert float(found.tokens) == 1
        only = np.zeros((len(reference.CASES), values.shape[1]))
        only[row, 0] = -1.0
        expected = reference.flat(reference.weighted(scores, only))
        assert np.linalg.norm(expected) > 0.1
        assert relative_error(reference.flat(found.gradients), expected) < 1e-12


def test_the_length_counts_eos() -> None:
    batch = pack([TrainingSequence((1, 1), (1, 1, EOS), 1.0)], **SHAPE)
    assert batch.weights[0, 0, :4].tolist() == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3])
    assert batch.targets[0, 0, 3] == EOS


def test_outputs_of_weight_zero_contribute_nothing() -> None:
    """Exactly: with the KL off they would be worth nothing if they came along."""
    params = reference.params64(MODEL, 0)  # without x64: float32
    rejected = [one._replace(weight=0.0) for one in sequences(5)]
    found = computed(params, rejected, config=tiny.model())
    assert not reference.flat(found.gradients).any()
    assert (found.value, found.tokens, found.mismatch_max) == (0, 0, 0)


def test_no_sequences_give_a_zero_gradient() -> None:
    params = reference.params64(MODEL, 0)
    assert not reference.flat(computed(params, [], config=tiny.model()).gradients).any()


def test_policies_far_apart_off_the_outputs_leave_the_kl_finite() -> None:
    """At a prompt's own tokens pi_ref / pi_theta may overflow; nothing is weighed there."""
    model = tiny.model()
    params = transformer.init(jax.random.key(0), config=model, vocab_size=6)
    # Hidden states whose first coordinate is positive everywhere, and a token that hates it.
    embedding = params["embedding"].at[:, 0].set(50.0)
    params = params | {"embedding": embedding}
    unembedding = params["unembedding"].at[:, 5].set(0.0).at[0, 5].set(-1e4)
    found = computed(
        params | {"unembedding": unembedding},
        [TrainingSequence((1, 5, 5), (2, EOS), 1.0, 1.0)],
        frozen=params,
        config=model,
        kl_coefficient=0.5,
    )
    assert np.isfinite(reference.flat(found.gradients)).all()
    assert 0 <= float(found.kl) < 10


def new_state(config: OptimizerConfig, steps: int, params: Params) -> Any:
    optimizer = make_optimizer(config, steps)
    return optimizer, init_state(jax.tree.map(jnp.array, params), optimizer)


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
                jnp.float64(0.9),
                config=MODEL,
                optimizer=optimizer,
                kl_coefficient=0.0,
                chunk=8,
            )
            slopes, value = _formula(old, trained)
            norm = np.sqrt(sum(np.sum(leaf**2) for leaf in slopes.values()))
            assert norm > settings.clip_norm
            assert float(metrics.gradient_norm) == pytest.approx(norm, rel=1e-6)
            assert float(metrics.value) == pytest.approx(value, rel=1e-6)
            assert int(state.step) == step + 1
            expected, moments = reference.adamw(before, slopes, moments, step, settings, steps)
            found = reference.named(state.params)
            changes = [np.concatenate([(new[n] - before[n]).ravel() for n in before])
                       for new in (found, expected)]  # fmt: skip
            assert relative_error(changes[0], changes[1]) < 1e-6


def _formula(
    params: Params, trained: Sequence[TrainingSequence]
) -> tuple[dict[str, np.ndarray], float]:
    """Gradient of -J and J, one output at a time."""

    @jax.jit
    @jax.value_and_grad
    def loss(params: Params, tokens: jax.Array, weights: jax.Array) -> jax.Array:
        slots = jnp.broadcast_to(jnp.arange(reference.WIDTH), weights.shape)
        ones = jnp.ones_like(slots)
        hidden = transformer.hidden_states(params, tokens[:, :-1], slots, ones, config=MODEL)
        scores = transformer.logits(params, hidden, config=MODEL) / 0.9
        chosen = jax.nn.log_softmax(scores)
        return -jnp.sum(weights * jnp.take_along_axis(chosen, tokens[:, 1:, None], -1)[..., 0])

    tokens = np.zeros((len(trained), reference.WIDTH + 1), np.int32)
    weights = np.zeros((len(trained), reference.WIDTH))
    for row, one in enumerate(trained):
        whole = (*one.prompt, *one.completion)
        tokens[row, : len(whole)] = whole
        size = len(one.completion)
        weights[row, len(one.prompt) - 1 : len(whole) - 1] = one.weight / size
    value, slopes = loss(params, tokens, weights)
    return reference.named(slopes), -float(value)


def test_the_mismatch_is_over_trained_tokens() -> None:
    model = tiny.model()
    params = transformer.init(jax.random.key(0), config=model, vocab_size=VOCABULARY)
    optimizer, state = new_state(OptimizerConfig(), 5, params)
    plain = pack([TrainingSequence(PROMPTS[0], (1, 2), 1.0)], **SHAPE)
    call = functools.partial(update, config=model, optimizer=optimizer, kl_coefficient=0.0, chunk=8)
    # With log-probs of zero the mismatch is the trainer's own log-probs.
    state, metrics = call(state, None, plain, jnp.float32(1.0))
    ours = -2 * float(metrics.value) / 2
    assert float(metrics.mismatch_mean) == pytest.approx(ours, rel=1e-5)
    assert float(metrics.mismatch_max) >= float(metrics.mismatch_mean)
    assert float(metrics.kl) == 0


def test_one_compilation_for_any_number_of_outputs() -> None:
    model = tiny.model(num_layers=1)
    params = transformer.init(jax.random.key(0), config=model, vocab_size=VOCABULARY)
    optimizer, state = new_state(OptimizerConfig(), 9, params)
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
            kl_coefficient=0.0,
            chunk=8,
        )
    assert len(used) > 2
    assert update._cache_size() == before + 1
    assert int(state.step) == 5


def largest_float(chunk: int, kl_coefficient: float) -> int:
    """Elements of the largest floating-point array in the compiled gradient."""
    model = tiny.model(num_layers=1)
    params = transformer.init(jax.random.key(0), config=model, vocab_size=1024)
    batch = pack(sequences(6, kl=True), row_length=32, rows_per_microbatch=4, max_microbatches=2)
    of_batch = jax.jit(
        functools.partial(gradients, config=model, kl_coefficient=kl_coefficient, chunk=chunk)
    )
    compiled = of_batch.lower(params, params, batch, ONE).compile().as_text()
    shapes = re.findall(r"\b(?:bf16|f16|f32|f64)\[([\d,]*)\]", compiled)
    return max(np.prod([int(size) for size in shape.split(",")]) for shape in shapes if shape)


@pytest.mark.slow
@pytest.mark.parametrize("kl_coefficient", [0.0, 0.1])
def test_logits_of_all_tokens_never_exist(kl_coefficient: float) -> None:
    """Neither in the forward pass nor, as residuals, for the backward pass."""
    tokens, vocabulary = 4 * 32, 1024
    # What is large then are the embeddings, [1024, 16], and one chunk's logits, [8, 1024].
    assert largest_float(8, kl_coefficient) <= tokens * vocabulary / 8
    # One chunk for all: the same look does find them.
    assert largest_float(tokens, kl_coefficient) >= tokens * vocabulary
