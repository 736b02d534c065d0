"""GRPO with process supervision: the advantage of a token is that of the steps that end at it or
later (DeepSeekMath, section 4.1.3), by hand, by listing all groups, and through the update."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import jax
import numpy as np
import pytest
import reference
import tiny
from enumeration import (
    EOS,
    LIMIT,
    OUTPUTS,
    QUESTIONS,
    Output,
    config,
    probability,
    random_theta,
    relative_error,
    sample,
    sampling,
    token_scores,
)
from hypothesis import given
from hypothesis import strategies as st
from steps import choose

from rft_jax.config import Config, Denominator, Method, PoolConfig, RefillConfig
from rft_jax.errors import ConfigError
from rft_jax.training.methods import METHODS, grpo, grpo_process
from rft_jax.training.packing import pack
from rft_jax.training.selection import coefficients, facts_of, select, weigh
from rft_jax.training.update import Terms, gradients
from rft_jax.types import Question, Sample, Verdict

DENOMINATORS: tuple[Denominator, ...] = ("sampled", "tokens", "constant")
REWARDS = np.random.default_rng(31).normal(size=(len(QUESTIONS), LIMIT, 3)).astype(np.float32)
"""Of a step of one digit, by question, place and digit."""


def of_length(length: int, question: int = 0, **facts: object) -> Sample:
    """An incorrect output of this many tokens."""
    tokens = (*(1,) * (length - 1), EOS)
    plain = sample(QUESTIONS[0], Output(tokens, True), verdict=Verdict.INCORRECT)
    return replace(plain, question_id=question, **facts)


def stepped(question: Question, output: Output, index: int = 0) -> Sample:
    """An output whose every digit is a step, EOS part of the last; one that was cut, or has no
    digit, has none."""
    plain, last = sample(question, output, index), len(output.tokens) - 1
    digits = output.tokens[:-1] if output.finished else ()
    return replace(
        plain,
        steps=tuple(
            (last if t == len(digits) - 1 else t, float(REWARDS[question.id, t, digit]))
            for t, digit in enumerate(digits)
        ),
    )


def advantages(samples: Sequence[Sample], ddof: int = 1) -> list[np.ndarray]:
    """The formula for the outputs of a question, step by step."""
    steps = [list(one.steps) or [(one.num_tokens - 1, float(one.accepted))] for one in samples]
    every = [reward for of_one in steps for _, reward in of_one]
    mean = math.fsum(every) / len(every)
    squares = math.fsum((reward - mean) ** 2 for reward in every)
    std = math.sqrt(squares / max(len(every) - ddof, 1)) + 1e-6
    return [
        np.array([
            sum((reward - mean) / std for end, reward in of_one if end >= t)
            for t in range(one.num_tokens)
        ])
        for one, of_one in zip(samples, steps, strict=True)
    ]  # fmt: skip


def settings_of(row: Method, denominator: Denominator = "sampled") -> Config:
    base = config("online_rft", denominator)
    verification = replace(base.verification, verifier="my:checker")
    return replace(base, method=row, verification=verification)


def test_two_outputs_by_hand() -> None:
    """R = {1, 0, 1, 1, 0}: its mean is 3/5 and its deviation sqrt(6/25), or sqrt(6/20) with ddof 1.
    The last output of five tokens ends in one that is of no step."""
    first = of_length(4, steps=((0, 1.0), (3, 0.0)))
    second = of_length(5, steps=((1, 1.0), (2, 1.0), (3, 0.0)))
    facts = facts_of([first, second], LIMIT, steps=True)
    nan = math.nan
    np.testing.assert_array_equal(
        facts.step_rewards, [[1, nan, nan, 0, nan], [nan, 1, 1, 0, nan]], strict=False
    )
    good, bad = 2 / 5, -3 / 5
    expected = np.array([
        [good + bad, bad, bad, bad, 0],
        [2 * good + bad, 2 * good + bad, good + bad, bad, 0],
    ])  # fmt: skip
    for ddof in (0, 1):
        found = coefficients(grpo_process(ddof, epsilon=1e-14), facts)
        assert found == pytest.approx(expected / math.sqrt(6 / 5 / (5 - ddof)), rel=1e-12)
    # Another question's outputs change nothing, wherever they stand.
    other = of_length(2, question=1, steps=((1, 9.0),))
    mixed = coefficients(
        grpo_process(0, epsilon=1e-14), facts_of([first, other, second], LIMIT, steps=True)
    )
    assert mixed[[0, 2]] == pytest.approx(expected / math.sqrt(6 / 25), rel=1e-12)
    assert not mixed[1].any()


outputs = st.tuples(st.integers(1, 6), st.integers(0, 2), st.floats(0, 1), st.integers(0, 1))


@given(st.lists(outputs, min_size=1, max_size=12))
def test_with_one_step_an_output_it_is_outcome_grpo(
    drawn: list[tuple[int, int, float, int]],
) -> None:
    """Exactly, whether a checker says that step or none."""
    samples = [
        of_length(
            length,
            question,
            reward=reward,
            steps=((length - 1, reward),) if said else (),
        )
        for length, question, reward, said in drawn
    ]
    for ddof in (0, 1):
        outcome = coefficients(grpo(ddof), facts_of(samples, LIMIT))
        found = coefficients(grpo_process(ddof), facts_of(samples, LIMIT, steps=True))
        for row, value, one in zip(found, outcome, samples, strict=True):
            assert row[: one.num_tokens].tolist() == [value] * one.num_tokens
            assert not row[one.num_tokens :].any()


def test_where_all_rewards_are_equal_nothing_is_trained_on() -> None:
    samples = [of_length(3, steps=((0, 0.1), (2, 0.1))), of_length(4, steps=((3, 0.1),))]
    assert not coefficients(grpo_process(), facts_of(samples, LIMIT, steps=True)).any()


@pytest.mark.parametrize("denominator", DENOMINATORS)
def test_the_expected_gradient_is_the_formulas(denominator: Denominator) -> None:
    """Of one update of the policy that sampled, over all pairs of outputs of each question."""
    settings, theta = settings_of(METHODS["grpo_process"], denominator), random_theta(32)
    found, expected = np.zeros_like(theta), np.zeros_like(theta)
    for question in QUESTIONS:
        chances = {o: probability(theta, question.id, o.tokens) for o in OUTPUTS}
        scores = {o: token_scores(theta, question.id, o.tokens) for o in OUTPUTS}
        for pair in itertools.product(OUTPUTS, repeat=2):
            chance = math.prod(chances[o] for o in pair)
            samples = [stepped(question, o, n) for n, o in enumerate(pair)]
            kept = select(samples, settings)
            for one, weight in zip(kept.samples, weigh(kept, settings), strict=True):
                weights = np.broadcast_to(weight, one.num_tokens)
                found += chance * np.tensordot(weights, scores[pair[one.sample_index]], 1)
            tokens = sum(len(o.tokens) for o in pair)
            for output, values in zip(pair, advantages(samples), strict=True):
                size = len(output.tokens)
                share = {"sampled": 1, "tokens": 2 * size / tokens, "constant": size / LIMIT}
                expected += (
                    chance * share[denominator] / 2 * np.tensordot(values, scores[output], 1)
                )
    assert relative_error(found, expected) < 1e-6


MODEL = tiny.model(compute_dtype="float64")


@pytest.mark.slow
def test_the_transformers_update_is_the_formula() -> None:
    """In float64, through packing and the update's gradient."""
    with jax.enable_x64(True):
        params = reference.params64(MODEL, 0)
        rng = np.random.default_rng(33)
        samples = [
            stepped(question, OUTPUTS[rng.integers(len(OUTPUTS))], index)
            for question in QUESTIONS
            for index in range(12)
        ]
        settings = settings_of(METHODS["grpo_process"])
        chosen = choose(samples, QUESTIONS, settings, sampling())
        batch = pack(chosen.sequences, row_length=8, rows_per_microbatch=2, max_microbatches=12)
        update = functools.partial(gradients, config=MODEL, terms=Terms(), chunk=7)
        found = jax.jit(update)(params, None, batch, np.float64(1.0))
        _, scores = reference.values_and_scores(params, 1.0, MODEL)
        expected = np.zeros((len(reference.CASES), LIMIT))
        for question in QUESTIONS:
            group = [one for one in samples if one.question_id == question.id]
            for one, values in zip(group, advantages(group), strict=True):
                case = reference.case_of(one.question_id, one.tokens)
                expected[case, : one.num_tokens] += values / one.num_tokens / len(samples)
        ascent = -reference.flat(found.gradients)
    assert relative_error(ascent, reference.flat(reference.weighted(scores, expected))) < 1e-6


def test_a_rule_says_no_steps() -> None:
    settings = settings_of(grpo_process())
    with pytest.raises(ConfigError, match="verifier is 'auto', which gives no rewards of steps"):
        replace(settings, verification=replace(settings.verification, verifier="auto"))


def test_a_pool_from_logs_has_the_steps_that_these_hold() -> None:
    base = tiny.rft(rollout=None, pool=PoolConfig(from_rollouts=("runs/a/rollouts",)))
    replace(base, method=replace(grpo_process(), source="pool"))


def test_outputs_with_coefficients_by_token_are_not_carried_over() -> None:
    refill = RefillConfig(accepted=2, max_sampled=8)
    settings = replace(settings_of(grpo_process()), refill=refill)
    with pytest.raises(ConfigError, match="max_staleness is 1: outputs are carried over with one"):
        replace(settings, refill=replace(refill, max_staleness=1))


def test_a_method_that_does_not_read_them_has_no_rewards_of_steps() -> None:
    assert facts_of([of_length(2, steps=((1, 0.5),))]).step_rewards is None
