"""Methods are rows: their gradients are the formula's, and a row of one's own needs no change here.

The formula is worked out apart from the package, by listing all outputs, in float64.
"""

from __future__ import annotations

import itertools
import json
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from enumeration import (
    OUTPUTS,
    QUESTIONS,
    config,
    probability,
    random_samples,
    random_theta,
    relative_error,
    sample,
    sampling,
    score,
)
from steps import choose

from rft_jax.config import Config, CriticConfig, Method, SelectionConfig
from rft_jax.config.method import from_json, resolve, to_json
from rft_jax.config.serialize import build, differences, plain
from rft_jax.errors import ConfigError, UserError
from rft_jax.training.methods import METHODS, dapo, dpo, grpo, ppo, w_reinforce
from rft_jax.training.selection import (
    coefficients,
    facts_of,
    reweighed,
    select,
    training_sequences,
    weigh,
)
from rft_jax.types import Facts, Sample, Verdict


def plus_minus(facts: Facts) -> np.ndarray:
    """+1 for a correct output, -1 for an incorrect one."""
    return np.where(facts.correct, 1.0, -1.0)


def centred(facts: Facts) -> np.ndarray:
    """The reward minus the mean of its question's."""
    means = [facts.rewards[facts.question_ids == one].mean() for one in facts.question_ids]
    return facts.rewards - np.array(means)


PLUS_MINUS = Method("policy", "decided", plus_minus)
CENTRED = Method("policy", "decided", centred)
TOLERANCE = 1e-6


def of_method(method: str | Method, selection: SelectionConfig | None = None) -> Config:
    """A run of the enumerated world with this method."""
    base = config("online_rft", selection=selection)
    return replace(base, method=method)


def gradient(theta: np.ndarray, samples: list[Sample], settings: Config) -> np.ndarray:
    """sum over sequences of weight / |o| * sum_t grad log pi, with the package's weights."""
    kept = select(samples, settings)
    total = np.zeros_like(theta)
    for one, weight in zip(kept.samples, weigh(kept, settings), strict=True):
        total += weight * score(theta, one.question_id, one.tokens)
    return total


def expected(theta: np.ndarray, coefficient: Callable[[bool], float]) -> np.ndarray:
    """E_q E_{o ~ pi} [ GC / |o| * sum_t grad log pi ] over all outputs."""
    total = np.zeros_like(theta)
    for question, output in itertools.product(QUESTIONS, OUTPUTS):
        chance = probability(theta, question.id, output.tokens)
        right = sample(question, output).accepted
        total += chance * coefficient(right) * score(theta, question.id, output.tokens)
    return total / len(QUESTIONS)


def over_all_pairs(theta: np.ndarray, settings: Config) -> np.ndarray:
    """The package's gradient, averaged over every group of two outputs that may be sampled."""
    total = np.zeros_like(theta)
    for question in QUESTIONS:
        for pair in itertools.product(OUTPUTS, repeat=2):
            chance = np.prod([probability(theta, question.id, o.tokens) for o in pair])
            samples = [sample(question, output, n) for n, output in enumerate(pair)]
            total += chance * gradient(theta, samples, settings)
    return total / len(QUESTIONS)


def test_plus_and_minus_one_have_the_gradient_of_the_formula() -> None:
    theta = random_theta(11)
    formula = expected(theta, lambda right: 1.0 if right else -1.0)
    assert relative_error(over_all_pairs(theta, of_method(PLUS_MINUS)), formula) < TOLERANCE


def test_a_groups_baseline_has_the_gradient_of_the_formula() -> None:
    """Of a group of G = 2 the own reward is half of the mean, and E[grad log pi] is not 0 where
    each token's is divided by |o|: the expectation is over both outputs."""
    theta = random_theta(12)
    formula = np.zeros_like(theta)
    for question in QUESTIONS:
        for first, other in itertools.product(OUTPUTS, repeat=2):
            chance = np.prod([probability(theta, question.id, o.tokens) for o in (first, other)])
            rewards = [float(sample(question, output).accepted) for output in (first, other)]
            advantage = rewards[0] - sum(rewards) / 2
            formula += chance * advantage * score(theta, question.id, first.tokens)
    formula /= len(QUESTIONS)
    assert relative_error(over_all_pairs(theta, of_method(CENTRED)), formula) < TOLERANCE


def test_online_rft_has_the_gradient_of_equation_11() -> None:
    theta = random_theta(13)
    formula = expected(theta, float)
    assert relative_error(over_all_pairs(theta, of_method("online_rft")), formula) < TOLERANCE


@pytest.mark.parametrize("method", [PLUS_MINUS, CENTRED])
def test_outputs_without_a_coefficient_are_not_trained_on(method: Method) -> None:
    samples = random_samples(np.random.default_rng(5), per_question=8)
    decided = [one for one in samples if one.verdict is not Verdict.UNDECIDED]
    values = resolve(method).coefficient(facts_of(decided))
    chosen = choose(samples, QUESTIONS, of_method(method), sampling())
    trained = [one for one, value in zip(decided, values, strict=True) if value]
    assert [tuple(s.completion) for s in chosen.sequences] == [one.tokens for one in trained]
    assert [s.weight for s in chosen.sequences] == pytest.approx(
        [value / len(decided) for value in values if value], rel=1e-6
    )


def test_dedupe_and_cap_are_by_verdict() -> None:
    """A cap of one leaves a correct and an incorrect output of each question, and the baseline is
    that of all outputs."""
    samples = random_samples(np.random.default_rng(6), per_question=40)
    capped = of_method(CENTRED, SelectionConfig(max_per_question=1))
    kept = select(samples, capped)
    groups = [(one.question_id, one.accepted) for one in kept.samples]
    assert len(groups) == len(set(groups)) == 4
    whole = select(samples, of_method(CENTRED))
    all_of = dict(zip(map(id, whole.samples), whole.coefficients, strict=True))
    assert [all_of[id(one)] for one in kept.samples] == list(kept.coefficients)


@pytest.mark.parametrize(
    ("coefficient", "trains_on", "message"),
    [
        (
            lambda facts: np.ones(1),
            "decided",
            r"gave float64 of shape \(1,\): a number for",
        ),
        (
            lambda facts: np.array(["1"] * 3),
            "decided",
            "gave <U1 of shape .3,.: a number for",
        ),
        (lambda facts: np.array([1, np.nan, 1]), "decided", "gave nan: finite numbers"),
        (plus_minus, "accepted", "gave -1 for an output that is not accepted and trains_on is 'ac"),
    ],
)
def test_a_wrong_coefficient_is_named(
    coefficient: Callable[[Facts], np.ndarray], trains_on: str, message: str
) -> None:
    row = Method("policy", trains_on, coefficient, "mine")  # type: ignore[arg-type]
    facts = facts_of([sample(QUESTIONS[0], output) for output in OUTPUTS[1:4]])
    assert 0 < facts.correct.sum() < 3
    with pytest.raises(UserError, match=f"method mine: its coefficient {message}"):
        coefficients(row, facts)


def test_a_coefficient_that_is_computed_again_is_a_number_for_each_output() -> None:
    facts = facts_of([sample(QUESTIONS[0], output) for output in OUTPUTS[1:4]])
    alive = np.arange(facts.lengths.max()) < facts.lengths[:, None]
    row = Method("policy", "decided", lambda _: alive, "mine", log_ratios=True)
    with pytest.raises(UserError, match="mine: its coefficient gave a number for each token"):
        coefficients(row, facts)


def test_a_coefficient_that_is_computed_again_knows_the_samplers_log_probs() -> None:
    """Also of an output that was certain, whose log-prob is 0."""
    row = Method(
        "policy", "decided", lambda facts: np.exp(facts.log_probs), "mine", log_ratios=True
    )
    samples = [
        replace(sample(QUESTIONS[0], OUTPUTS[n], n), log_probs=logs, reference=logs)
        for n, size in enumerate(len(one.tokens) for one in OUTPUTS[:2])
        for logs in [(-0.5 * n,) * size]
    ]
    settings = of_method(row)
    kept = select(samples, settings)
    weights = weigh(kept, settings)
    found = training_sequences(kept, weights, lambda _: (1,), settings)
    now = [np.array(one.log_probs) for one in samples]
    again, _ = reweighed(found, now, settings)
    assert [one.weight for one in again] == pytest.approx(list(weights))


def test_a_method_is_named_by_its_module(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("my_rows")
    module.mine, module.wrong = PLUS_MINUS, plus_minus  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_rows", module)
    settings = of_method("my_rows:mine")
    assert settings.row == replace(PLUS_MINUS, name="my_rows:mine")
    for name, message in {
        "my_rows:other": "cannot be imported .* has no attribute 'other'",
        "no_such_rows:mine": "cannot be imported .ModuleNotFoundError: No module named",
        "my_rows:wrong": "of type function: a Method is expected",
        "onlin_rft": "did you mean online_rft",
    }.items():
        with pytest.raises(ConfigError, match=message):
            of_method(name)


@pytest.mark.parametrize(
    "changes",
    [{"source": "pol"}, {"trains_on": "all"}, {"coefficient": 1}, {"ratio": "token"}],
)
def test_a_row_is_checked(changes: dict[str, object]) -> None:
    fields = {"source": "policy", "trains_on": "decided", "coefficient": plus_minus}
    fields |= {"denominator": "sampled"} | changes
    with pytest.raises(ConfigError, match=f"Method.{next(iter(changes))} is "):
        # The run-time type checker of the tests would be the first to refuse.
        Method.__post_init__(types.SimpleNamespace(**fields))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"trains_on": "accepted", "values": True}, "values is True and its trains_on is 'acc"),
        ({"trains_on": "accepted", "log_ratios": True}, "log_ratios is True and its trains_on"),
        ({"values": True, "log_ratios": True}, "values and Method.log_ratios are True"),
        ({"steps": True, "log_ratios": True}, "steps and Method.log_ratios are True"),
    ],
)
def test_flags_that_cannot_be_together_are_refused(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(PLUS_MINUS, **flags)


def test_a_saved_method_says_what_it_is_and_computes_only_where_it_is_known() -> None:
    assert to_json("rft") == from_json("rft") == "rft"
    saved = to_json(PLUS_MINUS)
    assert saved == {"name": "plus_minus", "source": "policy", "trains_on": "decided", "about": ""}
    read = from_json(saved)
    assert to_json(read) == saved
    with pytest.raises(UserError, match="plus_minus was defined outside rft_jax"):
        resolve(read).coefficient(facts_of([]))


@pytest.mark.parametrize(
    ("row", "objective", "critic"),
    [
        (ppo(whiten=True), {}, CriticConfig()),
        (grpo(ddof=0), {"kl_coefficient": 0.1, "kl_in": "reward"}, None),
        (dpo(0.3, online=True), {"reference_every": 2}, None),
        (w_reinforce(0.5), {}, None),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_saved_row_with_settings_is_read_again(
    row: Method, objective: dict[str, Any], critic: CriticConfig | None
) -> None:
    online = of_method("online_rft")
    changed = replace(online.objective, denominator=None, **objective)
    run = replace(online, method=row, objective=changed, critic=critic, steps=4)
    saved = json.dumps(plain(run))
    read, _ = build(json.loads(saved))
    assert json.dumps(plain(read)) == saved
    assert not differences(read, run)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (grpo(ddof=0), grpo(epsilon=1e-4)),
        (dpo(0.3, online=True), dpo(0.5, online=True)),
        (dapo("mask"), dapo("none")),
        (w_reinforce(0.5), w_reinforce(0.9)),
    ],
    ids=lambda value: value.name,
)
def test_settings_of_a_row_make_it_another(one: Method, other: Method) -> None:
    assert differences(of_method(one), of_method(other)).keys() == {"method"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dpo(-0.1), "dpo: beta is -0.1: it must be a positive number"),
        (lambda: dpo(float("nan")), "dpo: beta is nan: it must be a positive number"),
        (lambda: grpo(ddof=5), "grpo: ddof is 5: it must be 0 or 1"),
        (lambda: grpo(epsilon=float("nan")), "grpo: epsilon is nan: it must be a number from 0"),
        (lambda: w_reinforce(float("inf")), "w_reinforce: weight is inf: a finite number is"),
    ],
)
def test_settings_of_a_row_are_checked(make: Callable[[], Method], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_rows_of_the_table_know_their_names() -> None:
    assert {name: row.name for name, row in METHODS.items()} == {name: name for name in METHODS}
    assert all(row.about for row in METHODS.values())


def test_without_a_decided_output_a_coefficient_is_not_asked() -> None:
    def greatest(facts: Facts) -> np.ndarray:
        return facts.rewards - facts.rewards.max()

    samples = [sample(QUESTIONS[0], OUTPUTS[1], verdict=Verdict.UNDECIDED)]
    kept = select(samples, of_method(Method("policy", "decided", greatest)))
    assert (kept.samples, kept.num_outputs, kept.num_sampled) == ([], 1, 0)


def test_a_coefficient_that_fails_is_one_line() -> None:
    def broken(facts: Facts) -> np.ndarray:
        return facts.nothing  # type: ignore[attr-defined, no-any-return]

    facts = facts_of([sample(QUESTIONS[0], OUTPUTS[1])])
    with pytest.raises(UserError, match=r"mine: its coefficient failed \(AttributeError: .*: fix"):
        coefficients(Method("policy", "decided", broken, "mine"), facts)


def test_a_parametrised_coefficient_need_not_be_hashable() -> None:
    class Scaled:
        __hash__ = None  # type: ignore[assignment]

        def __call__(self, facts: Facts) -> np.ndarray:
            return 2.0 * facts.rewards

    settings = of_method(Method("policy", "accepted", Scaled()))
    assert settings.row.name == "Scaled"


def test_words_of_a_row_do_not_make_it_another() -> None:
    online = of_method("online_rft")
    assert not differences(online, of_method(METHODS["online_rft"]))
    mine, reworded = (of_method(replace(PLUS_MINUS, about=about)) for about in ("a", "b"))
    assert not differences(mine, reworded)
    assert differences(mine, of_method(CENTRED)).keys() == {"method"}
