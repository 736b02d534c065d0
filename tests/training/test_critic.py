"""PPO's value function: advantages, what they do to the gradient, and its own update."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from enumeration import (
    LIMIT,
    OUTPUTS,
    QUESTIONS,
    Output,
    config,
    places,
    probability,
    random_theta,
    relative_error,
    sample,
    score,
    token_score,
)
from hypothesis import given
from hypothesis import strategies as st
from policies import random_policy

from rft_jax.config import Config, CriticConfig, MeshConfig
from rft_jax.distributed.mesh import make_mesh
from rft_jax.models import transformer
from rft_jax.training.critic import generalized_advantages, token_values, update
from rft_jax.training.methods import METHODS, ppo
from rft_jax.training.packing import TrainingSequence, pack_step, spread
from rft_jax.training.scoring import score_sequences
from rft_jax.training.selection import coefficients, facts_of, select, training_sequences, weigh
from rft_jax.training.update import init_state
from rft_jax.types import Params, Sample


def brute_force(
    rewards: list[float], values: list[float], gamma: float, gae_lambda: float
) -> list[float]:
    """Equation 16 of arXiv 1506.02438 as a double sum."""
    after = [*values[1:], 0.0]
    deltas = [r + gamma * n - v for r, v, n in zip(rewards, values, after, strict=True)]
    return [
        sum((gamma * gae_lambda) ** k * delta for k, delta in enumerate(deltas[t:]))
        for t in range(len(deltas))
    ]


NUMBERS = st.lists(st.tuples(st.floats(-2, 2), st.floats(-2, 2)), min_size=1, max_size=6)


@given(st.lists(NUMBERS, min_size=1, max_size=4), st.floats(0, 1), st.floats(0, 1))
def test_advantages_are_the_papers_sum(
    outputs: list[list[tuple[float, float]]], gamma: float, gae_lambda: float
) -> None:
    lengths = np.array([len(one) for one in outputs])
    table = np.full((2, len(outputs), lengths.max()), 7.0)  # whatever stands after an end
    for row, one in enumerate(outputs):
        table[:, row, : len(one)] = np.array(one).T
    found = generalized_advantages(table[0], table[1], lengths, gamma=gamma, gae_lambda=gae_lambda)
    for row, one in enumerate(outputs):
        rewards, values = zip(*one, strict=True)
        expected = brute_force([*rewards], [*values], gamma, gae_lambda)
        assert found[row, : len(one)] == pytest.approx(expected, abs=1e-9)
        assert not found[row, len(one) :].any()


Value = Callable[[int, tuple[int, ...]], float]


def settings(critic: CriticConfig, denominator: Any = "sampled", **objective: Any) -> Config:
    base = config("online_rft", denominator)
    changed = replace(base.objective, **objective)
    return replace(base, method="ppo", critic=critic, objective=changed)


def valued(question: int, output: Output, index: int, value: Value, **changes: Any) -> Sample:
    """An output with what a value function says before each of its tokens."""
    values = tuple(value(question, output.tokens[:t]) for t in range(len(output.tokens)))
    return replace(sample(QUESTIONS[question], output, index), values=values, **changes)


def some_value(question: int, prefix: tuple[int, ...]) -> float:
    return float(np.sin(1 + question + 3 * sum(prefix) + 5 * len(prefix)))


def expected_gradient(run: Config, theta: np.ndarray, value: Value) -> np.ndarray:
    """Over all outputs, each by itself: PPO's coefficients do not look at others."""
    found = np.zeros_like(theta)
    for question, output in itertools.product(range(len(QUESTIONS)), OUTPUTS):
        kept = select([valued(question, output, 0, value)], run)
        for one, weight in zip(kept.samples, weigh(kept, run), strict=True):
            tokens = np.broadcast_to(weight, len(one.tokens)) / len(one.tokens)
            scores = [token_score(theta, question, place) for place in places(one.tokens)]
            chance = probability(theta, question, output.tokens)
            found += chance * sum(w * s for w, s in zip(tokens, scores, strict=True))
    return found


def test_no_value_function_changes_the_expected_gradient_of_whole_returns() -> None:
    """With gamma = lambda = 1 it is that of the pass rate, without 1/|o|: a baseline that depends
    on what came before has no part in it."""
    theta = random_theta(41)
    run = settings(CriticConfig(gae_lambda=1.0), "constant")
    expected = np.zeros_like(theta)
    for question, output in itertools.product(range(len(QUESTIONS)), OUTPUTS):
        if sample(QUESTIONS[question], output).accepted:
            chance = probability(theta, question, output.tokens)
            expected += chance * score(theta, question, output.tokens) * len(output.tokens) / LIMIT
    for value in (some_value, lambda question, prefix: 0.0):
        assert relative_error(expected_gradient(run, theta, value), expected) < 1e-6


def test_the_expected_gradient_is_equation_15s() -> None:
    """At one update, with 1/|o|, a discount, a lambda and a value function, token by token."""
    theta, expected = random_theta(42), np.zeros(random_theta(42).shape)
    run = settings(CriticConfig(gamma=0.9, gae_lambda=0.7))
    for question, output in itertools.product(range(len(QUESTIONS)), OUTPUTS):
        one, size = valued(question, output, 0, some_value), len(output.tokens)
        rewards = [0.0] * (size - 1) + [float(one.accepted)]
        advantages = brute_force(rewards, list(one.values), 0.9, 0.7)
        for advantage, place in zip(advantages, places(output.tokens), strict=True):
            chance = probability(theta, question, output.tokens)
            expected += chance * advantage * token_score(theta, question, place) / size
    assert relative_error(expected_gradient(run, theta, some_value), expected) < 1e-6


def test_a_kl_in_the_reward_is_taken_token_by_token() -> None:
    """Equation 2 of DeepSeekMath."""
    run = settings(
        CriticConfig(gamma=0.9, gae_lambda=0.7),
        kl_coefficient=0.3, kl_in="reward", kl_estimator="k1",
    )  # fmt: skip
    output = next(o for o in OUTPUTS if len(o.tokens) == 3)
    logs, reference = (-0.5, -1.0, -0.2), (-0.7, -0.4, -0.1)
    one = valued(0, output, 0, some_value, log_probs=logs, reference=reference)
    kept = select([one], run)
    apart = [-0.3 * (a - b) for a, b in zip(logs, reference, strict=True)]
    apart[-1] += float(one.accepted)
    expected = brute_force(apart, list(one.values), 0.9, 0.7)
    assert np.asarray(kept.coefficients[0]) == pytest.approx(expected, abs=1e-6)
    (sequence,) = training_sequences(kept, weigh(kept, run), lambda _: (1,), run)
    assert sequence.values is not None
    before, returns = sequence.values
    assert before == one.values
    assert returns == pytest.approx(np.add(expected, one.values), abs=1e-6)


def test_a_value_function_learns_from_outputs_whose_advantages_are_0() -> None:
    """As it starts at 0, those of every output without a reward are."""
    run = settings(CriticConfig())
    samples = [valued(0, output, n, lambda *_: 0.0) for n, output in enumerate(OUTPUTS)]
    assert {one.accepted for one in samples} == {False, True}
    kept = select(samples, run)
    found = training_sequences(kept, weigh(kept, run), lambda _: (1,), run)
    assert [one.completion for one in found] == [one.tokens for one in samples]
    for one, sequence in zip(samples, found, strict=True):
        assert sequence.values is not None
        assert sequence.values[1][-1] == float(one.accepted)
        assert np.any(sequence.weight) == one.accepted


def test_whitened_advantages_have_mean_0_and_deviation_1_over_tokens() -> None:
    samples = [valued(0, output, n, some_value) for n, output in enumerate(OUTPUTS)]
    facts = facts_of(samples, LIMIT)
    rng = np.random.default_rng(43)
    alive = np.arange(LIMIT) < facts.lengths[:, None]
    advantages = np.where(alive, rng.normal(3, 2, size=alive.shape), 0.0)
    found = coefficients(ppo(whiten=True), facts._replace(advantages=advantages))
    assert found[alive].mean() == pytest.approx(0, abs=1e-9)
    assert found[alive].std() == pytest.approx(1, abs=1e-6)
    assert not found[~alive].any()
    plain = coefficients(METHODS["ppo"], facts._replace(advantages=advantages))
    assert (plain == advantages).all()


# The update of the value function

VOCABULARY = 16


def sequences(size: int) -> list[TrainingSequence]:
    rng = np.random.default_rng(44)
    found = []
    for _ in range(size):
        prompt, completion = (
            rng.integers(VOCABULARY, size=rng.integers(1, 7)).tolist() for _ in range(2)
        )
        known = rng.normal(size=(2, len(completion)))
        values = (tuple(known[0].tolist()), tuple(known[1].tolist()))
        found.append(TrainingSequence(prompt, completion, 0.0, values=values))
    return found


def critic_params(run: Config) -> Params:
    rng = np.random.default_rng(45)
    head = {
        "weight": jnp.asarray(rng.normal(size=run.model.d_model), jnp.float32),
        "bias": jnp.float32(0.3),
    }
    return {"policy": random_policy(run.model, VOCABULARY), "value": head}


def values_alone(params: Params, one: TrainingSequence, run: Config) -> jax.Array:
    """V before each output token of a sequence by itself."""
    width = 16
    tokens = np.zeros((1, width), np.int32)
    tokens[0, : one.length] = [*one.prompt, *one.completion][:-1]
    where = (jnp.arange(width)[None], jnp.ones((1, width), jnp.int32))
    hidden = transformer.hidden_states(
        params["policy"], jnp.asarray(tokens), *where, config=run.model
    )
    values = hidden[:, 0].T @ params["value"]["weight"] + params["value"]["bias"]
    first = len(one.prompt) - 1
    return values[first : first + len(one.completion)]


@pytest.mark.slow
@pytest.mark.parametrize("clip", [0.0, 0.4])
@pytest.mark.parametrize("mesh", [MeshConfig(data=8), MeshConfig(data=2, fsdp=2, tensor=2)])
def test_its_gradient_is_that_of_the_clipped_squared_error(clip: float, mesh: MeshConfig) -> None:
    """The mean over the tokens of all outputs; plain descent at rate 1 shows the gradient."""
    base = tiny.online_rft()
    run = replace(base, model=replace(base.model, num_heads=2, num_kv_heads=2))
    params, many, on = critic_params(run), sequences(8), make_mesh(mesh)
    scored = score_sequences(
        params, many, run, of=token_values, frozen={"policy": {}}, mesh=on, vocab_size=VOCABULARY
    )
    count = sum(len(one.completion) for one in many)
    alike = [one._replace(weight=len(one.completion) / count) for one in many]
    batch = pack_step(alike, run)
    before, returns = (
        spread(many, [np.asarray(one.values[row]) for one in many if one.values], batch)
        for row in (0, 1)
    )

    @jax.jit
    def loss(params: Params) -> tuple[jax.Array, jax.Array]:
        total, acts = jnp.zeros(()), jnp.zeros(())
        for one in many:
            assert one.values is not None
            old, target = map(jnp.asarray, one.values)
            found = values_alone(params, one, run)
            error = (found - target) ** 2
            if clip:
                near = jnp.clip(found, old - clip, old + clip)
                acts += ((near - target) ** 2 > error).sum()
                error = jnp.maximum(error, (near - target) ** 2)
            total += error.sum() / count / 2
        return total, acts / count

    for one, found in zip(many, scored, strict=True):
        np.testing.assert_allclose(found, values_alone(params, one, run), atol=2e-5)
    (value, acts), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    assert (float(acts) > 0) == bool(clip)
    descent = optax.sgd(1.0)
    state, metrics = update(
        init_state(jax.tree.map(jnp.copy, params), descent), {}, batch, before, returns,
        config=run.model, optimizer=descent, value_clip=clip, mesh=on,
    )  # fmt: skip
    assert float(metrics["loss"]) == pytest.approx(float(value), rel=1e-5)
    assert float(metrics["clipped"]) == pytest.approx(float(acts), abs=1e-6)
    of_update = jax.tree.map(lambda old, new: np.asarray(old - new), params, state.params)
    norm = float(optax.tree.norm(gradients))
    apart = optax.tree.norm(jax.tree.map(lambda a, b: a - b, of_update, gradients))
    assert float(apart) / norm < 1e-5
    assert float(metrics["gradient_norm"]) == pytest.approx(norm, rel=1e-5)


@pytest.mark.slow
def test_it_learns_what_it_is_told() -> None:
    run = tiny.online_rft()
    mesh, many = make_mesh(MeshConfig(data=8)), sequences(8)
    batch = pack_step([one._replace(weight=1.0) for one in many], run)
    returns = spread(many, [np.asarray(one.values[1]) for one in many if one.values], batch)
    adam = optax.adam(3e-3)
    state, explained = init_state(critic_params(run), adam), []
    for _ in range(60):
        state, metrics = update(
            state, {}, batch, returns, returns,
            config=run.model, optimizer=adam, value_clip=0.0, mesh=mesh,
        )  # fmt: skip
        explained.append(float(metrics["explained_variance"]))
    assert explained[0] < 0.2 < 0.9 < explained[-1]
