"""The table of methods, the denominators, k3, and the deviations that the docstring lists."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from enumeration import (
    EOS,
    OUTPUTS,
    QUESTIONS,
    Output,
    config,
    formula_weights,
    random_samples,
    sample,
    sampling,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from steps import choose

from rft_jax.config import (
    Denominator,
    ObjectiveConfig,
    OptimizerConfig,
    RefillConfig,
    ReplayConfig,
    SelectionConfig,
)
from rft_jax.models import transformer
from rft_jax.training import objective as module
from rft_jax.training.batch_filling import Carried, fill
from rft_jax.training.log_probs import target_log_probs
from rft_jax.training.methods import METHODS
from rft_jax.training.objective import k3, objective, output_weights
from rft_jax.training.optimizer import make_optimizer
from rft_jax.training.selection import facts_of, select
from rft_jax.training.update import Terms
from rft_jax.types import Sample, Verdict
from rft_jax.verification.pool import Item, VerifierPool
from rft_jax.verification.rules import Limits, VerifierSpec

DENOMINATORS: tuple[Denominator, ...] = typing.get_args(Denominator)
KEPT = st.lists(st.integers(0, 5), min_size=1, max_size=20)
RIGHT = Output((2, EOS), True)
ALSO_RIGHT = Output((1, 1, EOS), True)
WRONG = Output((1, EOS), True)


def weights_of(
    samples: list[Sample],
    denominator: Denominator,
    selection: SelectionConfig | None = None,
    kl_coefficient: float = 0.0,
) -> list[tuple[tuple[int, ...], float, float]]:
    """(completion, weight, KL weight) of what is trained on."""
    settings = config("online_rft", denominator, selection=selection, kl_coefficient=kl_coefficient)
    chosen = choose(samples, QUESTIONS, settings, sampling())
    return [(tuple(s.completion), s.weight, s.kl_weight) for s in chosen.sequences]


def test_coefficients_are_one_and_the_indicator() -> None:
    facts = facts_of([sample(QUESTIONS[0], output) for output in (RIGHT, WRONG, ALSO_RIGHT)])
    assert METHODS["sft"].coefficient(facts).tolist() == [1, 1, 1]
    assert METHODS["rft"].coefficient(facts).tolist() == [1, 0, 1]
    assert METHODS["online_rft"].coefficient(facts).tolist() == [1, 0, 1]


@given(KEPT, st.integers(0, 50), st.integers(0, 5))
def test_weights_of_each_denominator(kept: list[int], rejected: int, without: int) -> None:
    ids = np.array(kept, np.int64)
    counts = Counter(kept)
    lengths = 1 + np.arange(len(kept)) % 5
    sizes: dict[str, Any] = {
        "num_sampled": len(kept) + rejected,
        "num_questions": len(counts) + without,
        "num_tokens": int(lengths.sum()) + 3 * rejected,
        "constant_length": 7,
    }
    sampled, accepted, per_question, tokens, constant = (
        output_weights(ids, lengths, denominator=denominator, **sizes)
        for denominator in DENOMINATORS
    )
    assert tokens / lengths == pytest.approx(1 / sizes["num_tokens"])
    assert constant / lengths == pytest.approx(1 / sizes["num_sampled"] / 7)
    assert sampled == pytest.approx(1 / sizes["num_sampled"])
    assert accepted == pytest.approx(1 / len(kept))
    for question, count in counts.items():
        share = per_question[ids == question]
        assert share == pytest.approx(1 / count / sizes["num_questions"])
    found = (sampled, accepted, per_question, tokens, constant)
    assert {weights.dtype for weights in found} == {np.dtype(np.float32)}


@pytest.mark.parametrize("denominator", DENOMINATORS)
def test_nothing_kept_has_no_weights(denominator: Denominator) -> None:
    none = output_weights(
        np.zeros(0, np.int64), np.zeros(0, np.int64), denominator=denominator,
        num_sampled=0, num_questions=0, num_tokens=0, constant_length=1,
    )  # fmt: skip
    assert none.shape == (0,)


def test_the_objective_is_the_weighted_sum() -> None:
    log_probs, weights = jnp.array([[-1.0, -2.0]]), jnp.array([[0.5, 0.25]])
    assert objective(log_probs, weights) == -1.0


@given(st.floats(-20, 0), st.floats(-20, 0))
def test_k3_is_never_negative_and_zero_where_policies_agree(ours: float, theirs: float) -> None:
    # Below zero by rounding alone: in float32 the terms of k3 are rounded to 6e-8 of their size.
    size = float(np.exp(theirs - ours)) + abs(theirs - ours) + 1
    assert k3(jnp.float32(ours), jnp.float32(theirs)) >= -2e-7 * size
    assert k3(jnp.float32(ours), jnp.float32(ours)) == 0


def test_deviation_1_duplicates_and_outputs_beyond_a_cap_may_be_dropped() -> None:
    samples = [
        sample(QUESTIONS[0], output, index)
        for index, output in enumerate([RIGHT, WRONG, RIGHT, ALSO_RIGHT])
    ]
    everything, unique, capped = (
        weights_of(samples, "sampled", selection)
        for selection in (
            SelectionConfig(),
            SelectionConfig(dedupe="text"),
            SelectionConfig(max_per_question=1),
        )
    )
    quarter = (0.25, 0.0)
    assert everything == [(o.tokens, *quarter) for o in (RIGHT, RIGHT, ALSO_RIGHT)]
    # Under `sampled` those that were dropped still count, as rejected ones do.
    assert unique == [(o.tokens, *quarter) for o in (RIGHT, ALSO_RIGHT)]
    assert capped == [(RIGHT.tokens, *quarter)]
    assert SelectionConfig() == SelectionConfig(dedupe="none", max_per_question=0)


def test_deviation_2_the_denominator_may_be_other_than_the_number_of_sampled_outputs() -> None:
    first = [sample(QUESTIONS[0], o, n) for n, o in enumerate([RIGHT, ALSO_RIGHT, WRONG])]
    second = [sample(QUESTIONS[1], o, n) for n, o in enumerate([OUTPUTS[5], WRONG, WRONG])]
    assert [s.accepted for s in second] == [True, False, False]
    expected = {
        "sampled": [1 / 6] * 3,
        "accepted": [1 / 3] * 3,
        "accepted_per_question": [1 / 4, 1 / 4, 1 / 2],
        "tokens": [2 / 14, 3 / 14, 3 / 14],
        "constant": [2 / 6 / 3, 3 / 6 / 3, 3 / 6 / 3],
    }
    assert config("online_rft", None).denominator == "sampled"
    for denominator in DENOMINATORS:
        weights = [weight for _, weight, _ in weights_of(first + second, denominator)]
        assert weights == pytest.approx(expected[denominator])


@pytest.mark.parametrize("denominator", DENOMINATORS)
def test_deviation_3_an_undecided_output_is_masked(denominator: Denominator) -> None:
    """As if it had not been sampled, even where all outputs of a question are undecided."""
    decided = [sample(QUESTIONS[0], o, n) for n, o in enumerate([RIGHT, WRONG])]
    undecided = [
        sample(question, output, 9, Verdict.UNDECIDED)
        for question in QUESTIONS
        for output in (RIGHT, WRONG)
    ]
    expected = weights_of(decided, denominator, kl_coefficient=0.1)
    assert len(expected) == 2
    assert weights_of(decided + undecided, denominator, kl_coefficient=0.1) == expected
    assert weights_of(undecided, denominator, kl_coefficient=0.1) == []


def test_deviation_4_a_truncated_output_is_never_correct() -> None:
    with VerifierPool(VerifierSpec("hash"), Limits(1, 10.0)) as pool:
        cut, whole = pool.submit([Item("5", "#### 5", False), Item("5", "#### 5", True)]).result()
    assert (cut.verdict, cut.reason) == (Verdict.INCORRECT, "truncated")
    assert whole.verdict is Verdict.CORRECT
    drawn = [
        dataclasses.replace(sample(QUESTIONS[0], RIGHT), finished=judged is whole,
                            verdict=judged.verdict)
        for judged in (cut, whole)
    ]  # fmt: skip
    # It is decided, so that it counts as sampled.
    assert weights_of(drawn, "sampled") == [(RIGHT.tokens, 0.5, 0.0)]


@pytest.mark.slow
def test_deviation_5_the_policy_is_the_tempered_one_at_another_temperature() -> None:
    model = tiny.model(num_layers=1)
    params = transformer.init(jax.random.key(0), config=model, vocab_size=3)
    # One row for each of the three tokens that may follow.
    inputs = jnp.tile(jnp.array([[1, 2]], jnp.int32), (3, 1))
    targets = jnp.array([[2, token] for token in range(3)], jnp.int32)
    places = jnp.tile(jnp.arange(2), (3, 1)), jnp.ones((3, 2), jnp.int32)

    def of_next(temperature: float) -> np.ndarray:
        values = target_log_probs(
            params, inputs, targets, *places, jnp.float32(temperature), config=model, chunk=6
        )
        return np.asarray(values)[:, 1]

    plain, tempered = of_next(1.0), of_next(0.5)
    assert np.exp(plain).sum() == pytest.approx(1, abs=1e-5)
    expected = np.exp(plain) ** 2 / np.sum(np.exp(plain) ** 2)
    assert np.exp(tempered) == pytest.approx(expected, abs=1e-5)


def test_deviation_6_a_kl_term_over_all_sampled_outputs_may_be_subtracted() -> None:
    samples = [sample(QUESTIONS[0], o, n) for n, o in enumerate([RIGHT, WRONG, RIGHT, WRONG])]
    assert ObjectiveConfig().kl_coefficient == 0
    for denominator in DENOMINATORS:
        without = weights_of(samples, denominator)
        within = weights_of(samples, denominator, kl_coefficient=0.1)
        assert [row[2] for row in without] == [0, 0]
        # The rejected ones come along, for the KL alone.
        assert [row[2] for row in within] == [0.25] * 4
        assert [row[:2] for row in within if row[1]] == [row[:2] for row in without]


def test_deviation_7_adamw_with_clipping_takes_the_place_of_plain_ascent() -> None:
    """Its first step is the learning rate against the gradient's sign, whatever its size."""
    params = {"w": jnp.zeros(3)}
    for clip_norm in (0.0, 1.0):
        adamw = OptimizerConfig(learning_rate=0.1, clip_norm=clip_norm, eps=1e-30)
        optimizer = make_optimizer(adamw, 10)
        for size in (1e-3, 1e3):
            loss_gradient = {"w": jnp.array([2.0, -1.0, 0.5]) * size}
            changes, _ = optimizer.update(loss_gradient, optimizer.init(params), params)
            moved = optax.apply_updates(params, changes)["w"]
            assert np.asarray(moved) == pytest.approx([-0.1, 0.1, -0.1], rel=1e-5)


def test_deviation_8_a_step_may_fill_up_with_outputs_of_older_policies() -> None:
    """One of two outputs is kept by each of two policies: a mean of their estimates, 1/2 each."""
    assert config("online_rft").refill is None
    refilled = dataclasses.replace(
        config("online_rft", "sampled"),
        refill=RefillConfig(accepted=2, max_sampled=8, max_staleness=1),
    )
    old = Carried(sample(QUESTIONS[1], Output((1, 2, EOS), True)), outputs=2.0, questions=1.0)
    fresh = [
        dataclasses.replace(sample(QUESTIONS[0], o, n), step=1)
        for n, o in enumerate([RIGHT, WRONG])
    ]
    filled, _, _ = fill(select(fresh, refilled), (old,), refilled, step=1, num_rounds=1)
    assert filled.samples == [fresh[0], old.sample]
    assert filled.num_sampled == 4


def test_deviation_9_an_entropy_bonus_and_replayed_outputs_may_be_added() -> None:
    plain = config("online_rft")
    assert Terms.of(plain) == Terms()
    bonus = ObjectiveConfig(entropy_coefficient=0.1)
    both = dataclasses.replace(plain, objective=bonus, replay=ReplayConfig(1, 0.1))
    assert Terms.of(both) == Terms(entropy=True, replay=True)


def test_every_deviation_of_the_docstring_has_its_test() -> None:
    assert module.__doc__ is not None
    listed = set(re.findall(r"^ (\d)\. ", module.__doc__, re.MULTILINE))
    tested = {name.split("_")[2] for name in globals() if name.startswith("test_deviation_")}
    assert listed == tested == set("123456789")


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_chosen_weights_are_the_formulas(seed: int) -> None:
    samples = random_samples(np.random.default_rng(seed), per_question=4)
    for denominator in DENOMINATORS:
        expected = formula_weights(samples, denominator)
        found = [weight for _, weight, _ in weights_of(samples, denominator)]
        assert found == pytest.approx(expected[expected > 0].tolist(), rel=1e-6)
