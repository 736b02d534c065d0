"""The gradient of an update is the formula's, in float64, by listing all outputs.

The formula is worked out apart from the package: for a tabular policy in numpy, with its gradient
in closed form; for the transformer one output at a time.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import tiny
from enumeration import (
    EOS,
    LIMIT,
    OUTPUTS,
    PREFIXES,
    PROMPTS,
    QUESTIONS,
    config,
    formula_weights,
    places,
    probability,
    random_samples,
    random_theta,
    relative_error,
    sample,
    sampling,
    score,
    table,
    token_score,
)
from steps import choose

from rft_jax.config import Denominator
from rft_jax.data.prompts import prompt_tokens
from rft_jax.rollout import sampler
from rft_jax.runs.sources import demonstrations
from rft_jax.training.objective import k3, objective
from rft_jax.training.packing import TrainingSequence, pack
from rft_jax.training.selection import training_sequences, weigh
from rft_jax.training.update import Terms, gradients
from rft_jax.types import PackedBatch, Prompts, Sample

TOLERANCE = 1e-6
DENOMINATORS: tuple[Denominator, ...] = get_args(Denominator)
METHODS: tuple[str, ...] = ("rft", "online_rft")
SHAPE = {"row_length": 8, "rows_per_microbatch": 2, "max_microbatches": 6}


def demonstrated(denominator: Denominator) -> list[TrainingSequence]:
    """The demonstrations as weighted sequences, one minibatch of all."""
    settings = config("sft", denominator)
    update = replace(settings.update, sequences_per_step=len(QUESTIONS))
    settings = replace(settings, update=update)
    source = demonstrations(QUESTIONS, settings, sampling())
    kept = source.outputs(range(source.size), lambda: None, 0)
    return training_sequences(kept, weigh(kept, settings), source.prompt, settings)


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def positions_in_theta(batch: PackedBatch) -> tuple[np.ndarray, np.ndarray]:
    """(question, prefix) from which each slot's target is drawn; (0, 0) where none is."""
    questions = np.zeros(batch.inputs.shape, int)
    prefixes = np.zeros(batch.inputs.shape, int)
    known = {prompt: question for question, prompt in PROMPTS.items()}
    for micro, row in np.ndindex(batch.inputs.shape[:2]):
        tokens: list[int] = []
        for slot, segment in enumerate(batch.segments[micro, row]):
            tokens = tokens if batch.positions[micro, row, slot] else []
            tokens.append(int(batch.inputs[micro, row, slot]))
            size = next((n for n in (2, 3) if tuple(tokens[:n]) in known), 0)
            if segment and size:
                questions[micro, row, slot] = known[tuple(tokens[:size])]
                prefixes[micro, row, slot] = PREFIXES.index(tuple(tokens[size:]))
    return questions, prefixes


@jax.jit
@jax.grad
def _tabular(
    theta: jax.Array,
    places: tuple[jax.Array, jax.Array, jax.Array],
    weights: jax.Array,
    temperature: jax.Array,
) -> jax.Array:
    return objective(jax.nn.log_softmax(theta / temperature)[places], weights)


def tabular_gradient(
    theta: np.ndarray, sequences: Sequence[TrainingSequence], temperature: float
) -> np.ndarray:
    """The package's gradient of J for a tabular policy: packed, weighted, differentiated."""
    batch = pack(sequences, **SHAPE)
    questions, prefixes = positions_in_theta(batch)
    where = (questions, prefixes, np.asarray(batch.targets))
    return np.asarray(_tabular(theta, where, np.asarray(batch.weights), np.float64(temperature)))


def formula(
    theta: np.ndarray,
    samples: Sequence[Sample],
    weights: Sequence[float] | np.ndarray,
    temperature: float,
) -> np.ndarray:
    """sum over outputs of weight / |o| * sum_t grad log pi."""
    total = np.zeros_like(theta)
    for one, weight in zip(samples, weights, strict=True):
        total += weight * score(theta, one.question_id, one.tokens, temperature)
    return total


def exact_gradient(
    source: np.ndarray, source_temperature: float, theta: np.ndarray, temperature: float
) -> np.ndarray:
    """E_q E_{o ~ source} [ I(o)/|o| sum_t grad log pi_theta ] over all outputs (eq. 10 and 11)."""
    total = np.zeros_like(theta)
    for question, output in itertools.product(QUESTIONS, OUTPUTS):
        if sample(question, output).accepted:
            chance = probability(source, question.id, output.tokens, source_temperature)
            total += chance * score(theta, question.id, output.tokens, temperature)
    return total / len(QUESTIONS)


def test_the_list_of_outputs_is_complete() -> None:
    theta = random_theta(0)
    for question in QUESTIONS:
        total = sum(probability(theta, question.id, output.tokens, 0.7) for output in OUTPUTS)
        assert total == pytest.approx(1.0, rel=1e-12)
        prompt = prompt_tokens(question.text, sampling().data, sampling().tokenizer)
        assert tuple(prompt) == PROMPTS[question.id]
    assert {len(s.tokens) for s in map(functools.partial(sample, QUESTIONS[0]), OUTPUTS)} == {
        1, 2, 3,
    }  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("asked", ["both questions once", "one question twice"])
def test_the_expected_update_is_the_gradient_of_eq_11(
    method: str, temperature: float, asked: str
) -> None:
    """Denominator `sampled` is unbiased: every possible rollout, weighed by its probability.

    Online RFT differentiates the (tempered) policy that samples; RFT pi_theta, at temperature 1,
    on samples of the (tempered) frozen pi_sft.
    """
    online = method == "online_rft"
    theta = random_theta(1)
    source = theta if online else random_theta(2)
    trained = temperature if online else 1.0
    questions = QUESTIONS if asked == "both questions once" else (QUESTIONS[0], QUESTIONS[0])
    settings, fixed = config(method, "sampled"), sampling()
    expected = np.zeros_like(theta)
    for outputs in itertools.product(OUTPUTS, OUTPUTS):
        pairs = list(zip(questions, outputs, strict=True))
        chance = np.prod([probability(source, q.id, o.tokens, temperature) for q, o in pairs])
        samples = [sample(question, output, row) for row, (question, output) in enumerate(pairs)]
        chosen = choose(samples, QUESTIONS, settings, fixed)
        if chosen.sequences:
            expected += chance * tabular_gradient(theta, chosen.sequences, trained)
    exact = exact_gradient(source, temperature, theta, trained)
    if asked == "one question twice":  # the other question's part is missing
        exact = exact * (np.arange(len(QUESTIONS)) == 0)[:, None, None] * len(QUESTIONS)
    assert relative_error(expected, exact) < TOLERANCE


def test_the_gradient_of_eq_11_is_that_of_the_expectation_where_lengths_are_equal() -> None:
    """With 1/|o| constant eq. 11 is the policy gradient, so finite differences of the chance of
    being right must agree: the formula used here is itself right."""
    theta, step = random_theta(3), 1e-5
    right = [(0, (2, EOS))]  # the correct outputs of question 0 of length 2

    def value(theta: np.ndarray) -> float:
        return sum(probability(theta, q, tokens) / len(tokens) for q, tokens in right)

    exact = sum(probability(theta, q, tokens) * score(theta, q, tokens) for q, tokens in right)
    found = np.zeros_like(theta)
    for place in np.ndindex(theta.shape):
        change = np.zeros_like(theta)
        change[place] = step
        found[place] = (value(theta + change) - value(theta - change)) / (2 * step)
    assert relative_error(found, exact) < 1e-8


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("denominator", DENOMINATORS)
@pytest.mark.parametrize("temperature", [1.0, 1.5])
def test_any_rollout_gives_the_sum_of_the_formula(
    method: str, denominator: Denominator, temperature: float
) -> None:
    theta, rng = random_theta(4), np.random.default_rng(5)
    settings, fixed = config(method, denominator), sampling()
    seen = 0
    for _ in range(20):
        samples = random_samples(rng, per_question=5)
        chosen = choose(samples, QUESTIONS, settings, fixed)
        weights = formula_weights(samples, denominator)
        assert bool(chosen.sequences) == bool(weights.any())
        if chosen.sequences:
            found = tabular_gradient(theta, chosen.sequences, temperature)
            assert relative_error(found, formula(theta, samples, weights, temperature)) < TOLERANCE
            seen += 1
    assert seen > 10


@pytest.mark.parametrize("denominator", DENOMINATORS)
def test_demonstrations_give_the_sum_of_the_formula(denominator: Denominator) -> None:
    """SFT (eq. 6): the mean over demonstrations of the mean log-prob of their tokens."""
    theta = random_theta(6)
    sequences = demonstrated(denominator)
    outputs = {0: (1, 1, EOS), 1: (2, 1, EOS)}
    expected = sum(score(theta, q, tokens) for q, tokens in outputs.items()) / len(QUESTIONS)
    assert relative_error(tabular_gradient(theta, sequences, 1.0), expected) < TOLERANCE


def test_k3_has_the_coefficient_of_eq_21_and_is_unbiased() -> None:
    theta, frozen = random_theta(7), random_theta(8)
    log_pi, log_ref = table(theta), table(frozen)

    @jax.jit
    def estimates(theta: jax.Array) -> jax.Array:
        return k3(jax.nn.log_softmax(theta), jnp.asarray(log_ref))

    values = np.asarray(estimates(jnp.asarray(theta)))
    assert (values >= 0).all()
    for question in QUESTIONS:
        expected, divergence = 0.0, 0.0
        for output in OUTPUTS:
            chance = probability(theta, question.id, output.tokens)
            expected += chance * sum(values[question.id][place] for place in places(output.tokens))
            of_frozen = probability(frozen, question.id, output.tokens)
            divergence += chance * np.log(chance / of_frozen)
        assert expected == pytest.approx(divergence, rel=1e-12)
    found = np.asarray(jax.jit(jax.jacrev(estimates))(jnp.asarray(theta)))
    ratio = np.exp(log_ref - log_pi)
    for where in np.ndindex(theta.shape):
        # Minus k3 is what is ascended.
        expected_row = (ratio[where] - 1) * token_score(theta, where[0], where[1:])
        assert relative_error(-found[where], expected_row) < 1e-9


MODEL = tiny.model(compute_dtype="float64")
PLAIN = Terms()


@functools.partial(jax.jit, static_argnames="terms")
def _gradients(params, frozen, batch, temperature, terms=PLAIN):  # type: ignore[no-untyped-def]
    return gradients(params, frozen, batch, temperature, config=MODEL, terms=terms, chunk=7)


@functools.cache
def _policy(temperature: float) -> tuple[np.ndarray, object]:
    with jax.enable_x64(True):
        return reference.values_and_scores(reference.params64(MODEL, 0), temperature, MODEL)


def coefficients(samples: Sequence[Sample], weights: np.ndarray) -> np.ndarray:
    """weight / |o| at the tokens of each sample, summed into CASES [case, t]."""
    total = np.zeros((len(reference.CASES), LIMIT))
    for one, weight in zip(samples, weights, strict=True):
        size = len(one.tokens)
        total[reference.case_of(one.question_id, one.tokens), :size] += weight / size
    return total


@pytest.mark.slow
def test_the_plain_gradient_is_that_of_finite_differences() -> None:
    """The transformer's reference is checked itself, in one random direction."""
    params = reference.params64(MODEL, 0)
    rng, step = np.random.default_rng(9), 1e-5
    direction = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), params)
    ahead, behind = (
        reference.values_and_scores(
            jax.tree.map(lambda p, d, s=sign: p + s * step * d, params, direction), 0.7, MODEL
        )[0]
        for sign in (1, -1)
    )
    _, scores = _policy(0.7)
    slopes = sum(
        np.tensordot(np.asarray(leaf), np.asarray(along), along.ndim)
        for leaf, along in zip(jax.tree.leaves(scores), jax.tree.leaves(direction), strict=True)
    )
    mask = reference.lengths_mask()
    assert relative_error(((ahead - behind) / (2 * step))[mask], slopes[mask]) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("denominator", DENOMINATORS)
@pytest.mark.parametrize("method", METHODS)
def test_the_transformers_update_is_the_formula(
    method: str, denominator: Denominator, temperature: float
) -> None:
    params = reference.params64(MODEL, 0)
    samples = random_samples(np.random.default_rng(10), per_question=12)
    chosen = choose(samples, QUESTIONS, config(method, denominator), sampling())
    batch = pack(chosen.sequences, **SHAPE)
    found = _gradients(params, None, batch, np.float64(temperature))
    values, scores = _policy(temperature)
    expected = coefficients(samples, formula_weights(samples, denominator))
    assert found.totals.value.dtype == np.float64
    assert float(found.totals.value) == pytest.approx(np.sum(expected * values), rel=TOLERANCE)
    ascent = -reference.flat(found.gradients)
    assert relative_error(ascent, reference.flat(reference.weighted(scores, expected))) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("denominator", DENOMINATORS)
def test_the_transformers_update_on_demonstrations_is_the_formula(denominator: Denominator) -> None:
    params = reference.params64(MODEL, 0)
    sequences = demonstrated(denominator)
    found = _gradients(params, None, pack(sequences, **SHAPE), np.float64(1.0))
    _, scores = _policy(1.0)
    expected = np.zeros((len(reference.CASES), LIMIT))
    for question, tokens in ((0, (1, 1, EOS)), (1, (2, 1, EOS))):
        expected[reference.case_of(question, tokens)] = 1 / 3 / len(QUESTIONS)
    ascent = -reference.flat(found.gradients)
    assert relative_error(ascent, reference.flat(reference.weighted(scores, expected))) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("denominator", DENOMINATORS)
def test_the_transformers_update_with_kl_is_eq_21(denominator: Denominator) -> None:
    """GC = I(o) / denominator + beta * (pi_ref / pi_theta - 1) / decided, at each token / |o|."""
    beta, temperature = 0.3, 0.7
    params, frozen = reference.params64(MODEL, 0), reference.params64(MODEL, 1)
    samples = random_samples(np.random.default_rng(12), per_question=8)
    settings = config("online_rft", denominator, kl_coefficient=beta)
    chosen = choose(samples, QUESTIONS, settings, sampling())
    batch = pack(chosen.sequences, **SHAPE)
    found = _gradients(params, frozen, batch, np.float64(temperature), Terms(beta))
    values, scores = _policy(temperature)
    frozen_values, _ = reference.values_and_scores(frozen, temperature, MODEL)
    decided = [one for one in samples if one.verdict != "undecided"]
    assert len(chosen.sequences) == len(decided) < len(samples)
    every = coefficients(decided, np.full(len(decided), 1 / len(decided)))
    ratio = np.exp(frozen_values - values)
    assert float(found.totals.kl) == pytest.approx(
        np.sum(every * (ratio - np.log(ratio) - 1)), rel=TOLERANCE
    )
    expected = coefficients(samples, formula_weights(samples, denominator))
    expected = reference.weighted(scores, expected + beta * every * (ratio - 1))
    assert relative_error(-reference.flat(found.gradients), reference.flat(expected)) < TOLERANCE


@pytest.mark.slow
def test_updates_on_samples_of_the_sampler_converge_to_the_gradient() -> None:
    """Monte-Carlo, from the sampler to the update: the error falls as 1 / sqrt(samples)."""
    temperature, counts = 1.2, (100, 1600)
    values, scores = _policy(temperature)
    mask = reference.lengths_mask()
    chances = np.exp(np.sum(values * mask, axis=1))
    assert chances.sum() == pytest.approx(len(QUESTIONS))
    # Each case's share of J's gradient, as a vector; half of the samples go to each question.
    cases = [sample(QUESTIONS[question], output) for question, output in reference.CASES]
    correct = np.array([one.accepted for one in cases], float)
    vectors = np.stack(
        [
            reference.flat(reference.weighted(scores, coefficients([one], correct[[row]])))
            for row, one in enumerate(cases)
        ]
    )
    means = [chances[rows] @ vectors[rows] for rows in (slice(0, 15), slice(15, 30))]
    exact = sum(means) / 2
    variance = (chances @ np.sum(vectors**2, axis=1) - sum(m @ m for m in means)) / 2

    params = reference.params64(MODEL, 0)
    with jax.enable_x64(False):
        prompts = np.array([[1, 1, 0], [1, 2, 2]], np.int32)
        drawn = sampler.sample(
            jax.tree.map(lambda leaf: leaf.astype(np.float32), jax.device_get(params)),
            Prompts(*map(jnp.asarray, (prompts, np.int32([2, 3]), np.int32([0, 1])))),
            jax.random.key(0),
            jnp.int32(0),
            jnp.float32(temperature),
            config=tiny.model(),
            num_samples=counts[-1] // 2,
            max_new_tokens=LIMIT,
            eos_ids=(EOS,),
        )
        drawn = jax.device_get(drawn)
    by_tokens = {output.tokens: output for output in OUTPUTS}
    settings = config("online_rft", "sampled")
    for count in counts:
        samples = [
            sample(question, by_tokens[tuple(drawn.tokens[row, g, : drawn.lengths[row, g]])], g)
            for row, question in enumerate(QUESTIONS)
            for g in range(count // 2)
        ]
        sequences = choose(samples, QUESTIONS, settings, sampling()).sequences
        batch = pack(sequences, **SHAPE | {"max_microbatches": 400})
        found = -reference.flat(_gradients(params, None, batch, np.float64(temperature)).gradients)
        # The squared error's expectation is variance / count.
        assert np.sum((found - exact) ** 2) < 4 * variance / count
