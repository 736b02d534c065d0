"""Every row of the table has its paper's gradient, by listing all groups of outputs, in float64.

Each formula is written a second time here, group by group, in plain Python, and differentiated as
its paper states it; nothing of the package is used for what is expected.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from enumeration import (
    LIMIT,
    OUTPUTS,
    PROMPTS,
    QUESTIONS,
    Output,
    config,
    places,
    probability,
    random_theta,
    relative_error,
    sample,
    score,
    table,
    token_scores,
)

from rft_jax.config import Config, CriticConfig, Denominator, Method, UpdateConfig
from rft_jax.config.method import Ratio
from rft_jax.training.expectation import expected_coefficients
from rft_jax.training.methods import METHODS, dapo, dpo, grpo, overlong
from rft_jax.training.objective import importance, k1, k2, k3, surrogate
from rft_jax.training.selection import (
    coefficients,
    facts_of,
    reweighed,
    select,
    training_sequences,
    weigh,
)
from rft_jax.types import Sample

TOLERANCE = 1e-6


class Group(NamedTuple):
    """What a formula is of: rewards, lengths and whether finished, of the outputs of a question."""

    rewards: list[float]
    lengths: list[int]
    finished: list[bool]


Formula = Callable[[Group], list[float]]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def deviation(values: Sequence[float], ddof: int) -> float:
    return math.sqrt(sum((v - mean(values)) ** 2 for v in values) / (len(values) - ddof))


def standardized(rewards: Sequence[float], ddof: int) -> list[float]:
    if len(set(rewards)) == 1:
        return [0.0 for _ in rewards]
    return [(r - mean(rewards)) / (deviation(rewards, ddof) + 1e-6) for r in rewards]


def is_mixed(group: Group) -> bool:
    return 0 < sum(group.rewards) < len(group.rewards)


def rloo(group: Group) -> list[float]:
    others = [[r for m, r in enumerate(group.rewards) if m != n] for n in range(len(group.rewards))]
    return [r - mean(rest) for r, rest in zip(group.rewards, others, strict=True)]


def dapo_soft(group: Group) -> list[float]:
    """Equation 13 with L_max = 3 and L_cache = 1: only an output of 3 tokens is punished."""
    if not is_mixed(group):
        return [0.0 for _ in group.rewards]
    punished = {1: 0.0, 2: 0.0, 3: -1.0}
    return standardized(
        [r + punished[n] for r, n in zip(group.rewards, group.lengths, strict=True)], 1
    )


def dapo_masked(group: Group) -> list[float]:
    if not is_mixed(group):
        return [0.0 for _ in group.rewards]
    found = standardized(group.rewards, 1)
    return [a if ended else 0.0 for a, ended in zip(found, group.finished, strict=True)]


def preferred(group: Group, beta: float) -> list[float]:
    """Of a policy that is pi_ref: of each pair half of beta, one way and the other."""
    if not is_mixed(group):
        return [0.0 for _ in group.rewards]
    size, right = len(group.rewards), sum(group.rewards)
    return [size * beta / 2 / (right if r else right - size) for r in group.rewards]


ONES: Formula = lambda group: list(group.rewards)  # noqa: E731
FORMULAS: dict[str, Formula] = {
    "rft": ONES,
    "online_rft": ONES,
    "raft++": ONES,
    "psr": ONES,
    "nsr": lambda g: [r - 1 for r in g.rewards],
    "w_reinforce": lambda g: [0.1 if r else -1.0 for r in g.rewards],
    "reinforce": lambda g: [r - mean(g.rewards) for r in g.rewards],
    "rloo": rloo,
    "reinforce_rej": lambda g: [(1.0 if r else -1.0) * is_mixed(g) for r in g.rewards],
    "reinforce_rej_released": lambda g: [r * is_mixed(g) for r in g.rewards],
    "grpo": lambda g: standardized(g.rewards, 1),
    "grpo_process": lambda g: standardized(g.rewards, 1),  # of one step an output
    "dr_grpo": lambda g: [r - mean(g.rewards) for r in g.rewards],
    "dapo": dapo_soft,
    "gspo": lambda g: standardized(g.rewards, 1),
    "cispo": lambda g: standardized(g.rewards, 1),
    "maxrl": lambda g: [(r - mean(g.rewards)) / mean(g.rewards) if any(g.rewards) else 0.0
                        for r in g.rewards],
    "maxrl_positive": lambda g: [r / mean(g.rewards) if any(g.rewards) else 0.0
                                 for r in g.rewards],
    "dpo": lambda g: preferred(g, 0.1),
    "online_dpo": lambda g: preferred(g, 0.1),
    "topr": lambda g: [1.0 if r else -1.0 for r in g.rewards],
}  # fmt: skip
VARIANTS: dict[str, tuple[Method, Formula]] = {
    "grpo, ddof 0": (grpo(ddof=0), lambda g: standardized(g.rewards, 0)),
    "dapo, masked": (dapo("mask"), dapo_masked),
    "dapo, none": (
        dapo("none"),
        lambda g: standardized(g.rewards, 1) if is_mixed(g) else [0.0 for _ in g.rewards],
    ),
}
ROWS = {name: (METHODS[name], formula) for name, formula in FORMULAS.items()} | VARIANTS


def allowed(row: Method) -> list[Denominator]:
    every = get_args(Denominator)
    return [d for d in every if row.trains_on == "accepted" or not d.startswith("accepted")]


CASES = [(name, d) for name, (row, _) in ROWS.items() for d in allowed(row)]


def settings_of(row: Method, denominator: Denominator | None = None) -> Config:
    """A run of the enumerated world with this row, one question a step."""
    base = config("rft" if row.source == "pool" else "online_rft", denominator)
    if base.rollout is not None:
        base = replace(base, rollout=replace(base.rollout, samples_per_question=3))
    if row.steps:
        base = replace(base, verification=replace(base.verification, verifier="my:checker"))
    return replace(base, method=row, critic=CriticConfig() if row.values else None)


def shares(group: Group, denominator: Denominator, kept: int) -> list[float]:
    """Of each output's mean token: what its coefficient is multiplied by."""
    size, correct = len(group.rewards), sum(group.rewards)
    return [
        {
            "sampled": 1 / size,
            "accepted": 1 / max(kept, 1),
            "accepted_per_question": 1 / max(kept, 1),
            "tokens": n / sum(group.lengths),
            "constant": n / size / LIMIT,
        }[denominator]
        for n in group.lengths
        if correct is not None
    ]


@pytest.fixture(scope="module")
def groups() -> dict[int, list[tuple[float, tuple[Output, ...]]]]:
    """Every group of three outputs of a question as a multiset, with its probability."""
    theta = random_theta(21)
    found: dict[int, list[tuple[float, tuple[Output, ...]]]] = {}
    for question in QUESTIONS:
        chance = {o: probability(theta, question.id, o.tokens) for o in OUTPUTS}
        found[question.id] = [
            (
                math.prod(chance[o] for o in group)
                * math.factorial(3)
                / math.prod(math.factorial(n) for n in Counter(group).values()),
                group,
            )
            for group in itertools.combinations_with_replacement(OUTPUTS, 3)
        ]
        assert sum(p for p, _ in found[question.id]) == pytest.approx(1.0, rel=1e-12)
    return found


def test_every_row_of_the_table_has_its_formula() -> None:
    # PPO's needs a value function: tests/training/test_critic.py.
    assert set(FORMULAS) | {"sft", "ppo"} == set(METHODS)
    assert {name for name, row in METHODS.items() if not row.formula or not row.about} == set()


@pytest.mark.parametrize(("name", "denominator"), CASES)
def test_the_expected_gradient_is_the_formulas(
    name: str, denominator: Denominator, groups: dict[int, list[tuple[float, tuple[Output, ...]]]]
) -> None:
    """Of one update of the policy that sampled, over all groups of three outputs."""
    row, formula = ROWS[name]
    settings, theta = settings_of(row, denominator), random_theta(21)
    found, expected = np.zeros_like(theta), np.zeros_like(theta)
    for question in QUESTIONS:
        scores = {o: token_scores(theta, question.id, o.tokens) for o in OUTPUTS}
        ours = {o: np.zeros(len(o.tokens)) for o in OUTPUTS}
        theirs = Counter[Output]()
        for chance, outputs in groups[question.id]:
            samples = [sample(question, o, n) for n, o in enumerate(outputs)]
            kept = select(samples, settings)
            for one, weight in zip(kept.samples, weigh(kept, settings), strict=True):
                ours[outputs[one.sample_index]] += chance * weight
            group = Group(
                [float(one.accepted) for one in samples],
                [len(o.tokens) for o in outputs],
                [o.finished for o in outputs],
            )
            values = formula(group)
            share = shares(group, denominator, sum(map(bool, values)))
            for output, value, part in zip(outputs, values, share, strict=True):
                theirs[output] += chance * value * part
        found += sum(np.tensordot(weights, scores[o], 1) for o, weights in ours.items())
        expected += sum(weight * scores[o].sum(0) for o, weight in theirs.items())
    assert relative_error(found, expected) < TOLERANCE


# Several updates: the surrogate of a ratio against its paper's objective


@pytest.fixture
def _float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


RATIOS = {
    "ppo": METHODS["grpo"].ratio,
    "clip higher": METHODS["dapo"].ratio,
    "sequence": METHODS["gspo"].ratio,
    "weight": METHODS["cispo"].ratio,
    "truncated": METHODS["topr"].ratio,
    "output": METHODS["rloo"].ratio,
    "dual clip": Ratio(dual=1.3),
    "no bounds": Ratio(low=1.0, high=math.inf),
}


def test_the_table_has_no_other_ratios() -> None:
    assert {row.ratio for row in METHODS.values()} - {None} <= set(RATIOS.values())


def primary(
    theta: jax.Array, old: np.ndarray, outputs: Sequence[Output], values: np.ndarray, ratio: Ratio
) -> jax.Array:
    """The objective as the paper states it, output by output, over |o|."""
    now, before = jax.nn.log_softmax(theta)[0], jax.nn.log_softmax(jnp.asarray(old))[0]
    total = jnp.zeros(())
    for output, value in zip(outputs, values, strict=True):
        where = tuple(np.array(list(places(output.tokens))).T)
        logs, gone = now[where], before[where]
        if ratio.of == "negatives" and value > 0:
            rho = jnp.ones_like(logs)
        elif ratio.per == "token":
            rho = jnp.exp(logs) / jnp.exp(gone)
        else:
            product = jnp.exp(logs.sum() - gone.sum())
            rho = product if ratio.per == "output" else product ** (1 / len(output.tokens))
            rho = jnp.broadcast_to(rho, logs.shape)
        bounded = jnp.clip(rho, 1 - ratio.low, 1 + ratio.high)
        if ratio.how == "weight":
            each = jax.lax.stop_gradient(bounded) * value * logs
        else:
            each = jnp.minimum(rho * value, bounded * value)
            if ratio.dual and value < 0:
                each = jnp.maximum(each, ratio.dual * value)
        per_token = len(output.tokens) if ratio == Ratio("output") else 1
        total += each.sum() / len(output.tokens) / per_token
    return total


@pytest.mark.parametrize("name", RATIOS)
@pytest.mark.usefixtures("_float64")
def test_the_second_update_has_the_gradient_of_the_papers_objective(name: str) -> None:
    """Where the policy has moved away from the one that sampled, and bounds act."""
    ratio = RATIOS[name]
    assert ratio is not None
    old, rng = random_theta(22), np.random.default_rng(23)
    far = {"sequence": 0.01, "weight": 2.0}.get(name, 0.5)
    theta = old + far * rng.normal(size=old.shape)
    outputs = [OUTPUTS[n] for n in rng.integers(len(OUTPUTS), size=40)]
    values = np.where(rng.random(40) < 0.5, 1.0, -1.0) * rng.uniform(0.5, 2, size=40)
    width = LIMIT * 4  # four outputs a row, as they are packed
    where = np.zeros((10, width, 2), int)
    weights, segments = np.zeros((10, width)), np.zeros((10, width), np.int32)
    for n, (output, value) in enumerate(zip(outputs, values, strict=True)):
        here = slice(n % 4 * LIMIT, n % 4 * LIMIT + len(output.tokens))
        where[n // 4, here] = list(places(output.tokens))
        weights[n // 4, here] = value / len(output.tokens)
        segments[n // 4, here] = n % 4 + 1
    prefixes, tokens = where[..., 0], where[..., 1]
    old_log_probs = np.asarray(jax.nn.log_softmax(jnp.asarray(old)))[0, prefixes, tokens]

    def packed(theta: jax.Array) -> tuple[jax.Array, jax.Array]:
        log_probs = jax.nn.log_softmax(theta)[0, prefixes, tokens]
        constants = map(jnp.asarray, (old_log_probs, weights, segments))
        found = surrogate(log_probs, *constants, ratio)
        return found.value, found.clipped

    (value, clipped), found = jax.jit(jax.value_and_grad(packed, has_aux=True))(jnp.asarray(theta))
    stated, expected = jax.jit(
        jax.value_and_grad(lambda theta: primary(theta, old, outputs, values, ratio))
    )(jnp.asarray(theta))
    assert float(value) == pytest.approx(float(stated), rel=1e-9)
    assert relative_error(np.asarray(found), np.asarray(expected)) < 1e-9
    assert bool(clipped.any()) == (name != "no bounds")
    assert not np.asarray(clipped)[weights == 0].any()


@pytest.mark.parametrize("name", RATIOS)
@pytest.mark.usefixtures("_float64")
def test_where_the_policy_has_not_moved_a_ratio_changes_nothing(name: str) -> None:
    ratio = RATIOS[name]
    assert ratio is not None
    log_probs = jnp.asarray(-np.random.default_rng(24).uniform(0.1, 2, size=(2, 6)))
    weights = jnp.asarray([[1.0, 1, 0, -2, -2, -2], [0, 0, 3, 3, -1, -1]])
    segments = jnp.asarray([[1, 1, 0, 2, 2, 2], [0, 0, 1, 1, 2, 2]])
    found = jax.jit(
        jax.grad(lambda now: surrogate(now, log_probs, weights, segments, ratio).value)
    )(log_probs)
    np.testing.assert_allclose(found, weights, rtol=1e-12)


@pytest.mark.parametrize("per", ["sequence", "output"])
@pytest.mark.usefixtures("_float64")
def test_a_token_of_coefficient_0_is_part_of_its_outputs_ratio(per: Any) -> None:
    """Of three tokens after one of the prompt; the last output has no coefficient at all."""
    log_probs = jnp.asarray([[-9.0, -1.0, -0.5, -0.2, -9.0, -0.3]])
    old = jnp.asarray([[0.0, -1.5, -0.5, -0.9, 0.0, -0.1]])
    weights = jnp.asarray([[0.0, 0.1, 0.1, 0.0, 0.0, 0.0]])
    segments = jnp.asarray([[1, 1, 1, 1, 2, 2]])
    found = surrogate(log_probs, old, weights, segments, Ratio(per, low=1.0, high=9.0))
    rho = float(np.exp(1.2 / (3 if per == "sequence" else 1)))
    np.testing.assert_allclose(found.ratios, [[1, rho, rho, 1, 1, 1]], rtol=1e-12)


# Coefficients of log pi_theta / pi_ref, and a KL in the reward

Scored = Callable[[int, Sequence[int]], list[float]]


def log_probs_of(theta: np.ndarray) -> Scored:
    """log pi of each token of a question's output."""
    return lambda question, tokens: [float(table(theta)[question][p]) for p in places(tokens)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "row",
    [
        METHODS["dpo"],
        METHODS["online_dpo"],
        dpo(0.7),
        dpo(2.0, online=True),
        dpo(0.3, per_token=False),
    ],
    ids=["dpo", "online_dpo", "beta .7", "beta 2, online", "sums"],
)
@pytest.mark.usefixtures("_float64")
def test_preferences_have_the_gradient_of_equation_12(
    row: Method, groups: dict[int, list[tuple[float, tuple[Output, ...]]]]
) -> None:
    """Over all groups of three that pi_ref samples, where the policy has moved away from it: the
    printed equations 13 and 14 would be off by beta."""
    settings, reference = settings_of(row), random_theta(21)
    theta = reference + 0.5 * random_theta(28)
    of_reference, now = log_probs_of(reference), log_probs_of(theta)
    means = row.denominator == "sampled"
    beta = row.coefficient.keywords["beta"]  # type: ignore[attr-defined]

    def objective(theta: jax.Array) -> jax.Array:
        logs, before = jax.nn.log_softmax(theta), jax.nn.log_softmax(jnp.asarray(reference))
        total = jnp.zeros(())
        for question in QUESTIONS:
            score_of = {}
            for o in OUTPUTS:
                where = tuple(np.array(list(places(o.tokens))).T)
                ratio = (logs[question.id][where] - before[question.id][where]).sum()
                score_of[o] = beta * ratio / (len(o.tokens) if means else 1)
            pairs = Counter[tuple[Output, Output]]()
            for chance, outputs in groups[question.id]:
                right = [o for o in outputs if sample(question, o).accepted]
                wrong = [o for o in outputs if not sample(question, o).accepted]
                for pair in itertools.product(right, wrong):
                    pairs[pair] += chance / len(right) / len(wrong)
            for (better, worse), chance in pairs.items():
                total += chance * jax.nn.log_sigmoid(score_of[better] - score_of[worse])
        return total if means else total / LIMIT

    found = np.zeros_like(theta)
    for question in QUESTIONS:
        scores, weights = {o: score(theta, question.id, o.tokens) for o in OUTPUTS}, Counter()
        for chance, outputs in groups[question.id]:
            samples = [
                replace(one, reference=tuple(of_reference(question.id, one.tokens)))
                for one in (sample(question, o, n) for n, o in enumerate(outputs))
            ]
            kept = select(samples, settings)
            sequences = training_sequences(
                kept, weigh(kept, settings), PROMPTS.__getitem__, settings
            )
            scored = [np.array(now(question.id, one.completion)) for one in sequences]
            for one, kept_one in zip(
                reweighed(sequences, scored, settings)[0], kept.samples, strict=True
            ):
                weights[outputs[kept_one.sample_index]] += chance * float(one.weight)
        found += sum(weight * scores[o] for o, weight in weights.items())
    expected = jax.jit(jax.grad(objective))(jnp.asarray(theta))
    assert relative_error(found, np.asarray(expected)) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@pytest.mark.usefixtures("_float64")
def test_a_kl_in_the_reward_is_subtracted_from_the_rewards(
    estimator: str, groups: dict[int, list[tuple[float, tuple[Output, ...]]]]
) -> None:
    """RLOO without 1/|o|: the gradient of E[r] less beta times the KL of whole outputs with k1, and
    of beta times E[k sg(score)] with the others."""
    beta, theta = 0.3, random_theta(21)
    reference = theta + 0.7 * random_theta(29)
    settings = settings_of(METHODS["rloo"])
    objective = replace(
        settings.objective, kl_coefficient=beta, kl_in="reward", kl_estimator=estimator
    )
    settings = replace(settings, objective=objective)
    logs, before = log_probs_of(theta), log_probs_of(reference)
    found, expected = np.zeros_like(theta), np.zeros_like(theta)
    for question in QUESTIONS:
        scores = {o: score(theta, question.id, o.tokens) for o in OUTPUTS}
        for chance, outputs in groups[question.id]:
            samples = [
                replace(
                    sample(question, o, n),
                    log_probs=tuple(logs(question.id, o.tokens)),
                    reference=tuple(before(question.id, o.tokens)),
                )
                for n, o in enumerate(outputs)
            ]
            kept = select(samples, settings)
            for one, weight in zip(kept.samples, weigh(kept, settings), strict=True):
                found += chance * weight * scores[outputs[one.sample_index]]
        for o in OUTPUTS:
            ratios = np.array(logs(question.id, o.tokens)) - before(question.id, o.tokens)
            each = {"k1": ratios, "k2": ratios**2 / 2, "k3": np.exp(-ratios) + ratios - 1}
            reward = sample(question, o).accepted - beta * each[estimator].sum()
            whole = scores[o] * len(o.tokens) / LIMIT
            expected += probability(theta, question.id, o.tokens) * reward * whole
    assert relative_error(found, expected) < TOLERANCE

    def penalized(theta: jax.Array) -> jax.Array:
        total = jnp.zeros(())
        for question in QUESTIONS:
            for o in OUTPUTS:
                where = tuple(np.array(list(places(o.tokens))).T)
                log = jax.nn.log_softmax(theta)[question.id][where].sum()
                reward = sample(question, o).accepted
                gone = sum(before(question.id, o.tokens))
                total += jnp.exp(log) * (reward - beta * (log - gone))
        return total / LIMIT

    true = np.asarray(jax.jit(jax.grad(penalized))(jnp.asarray(theta)))
    assert (relative_error(found, true) < TOLERANCE) == (estimator == "k1")


@pytest.mark.slow
@pytest.mark.usefixtures("_float64")
def test_what_an_importance_weight_corrects() -> None:
    """Eq. 11 on outputs of a sampler whose numbers are a tenth off: the weight of a token takes out
    a third of the error, the rest is in what came before it; a cap of 2 costs nothing yet."""

    def gradient(theta: np.ndarray, sampler: np.ndarray, cap: float) -> np.ndarray:
        found = np.zeros_like(theta)
        for question, output in itertools.product(QUESTIONS, OUTPUTS):
            if sample(question, output).accepted:
                logs, theirs = (
                    jnp.asarray(log_probs_of(of)(question.id, output.tokens))
                    for of in (theta, sampler)
                )
                weights = np.asarray(importance(logs, theirs, cap)) if cap else np.ones(len(logs))
                scores = token_scores(theta, question.id, output.tokens)
                chance = probability(sampler, question.id, output.tokens)
                found += chance * sum(w * s for w, s in zip(weights, scores, strict=True))
        return found

    errors = {cap: list[float]() for cap in (0.0, 2.0, 1e9)}
    for seed in range(20):
        theta = random_theta(seed)
        sampler, exact = theta + 0.1 * random_theta(1000 + seed), gradient(theta, theta, 0.0)
        for cap, found in errors.items():
            found.append(relative_error(gradient(theta, sampler, cap), exact))
    none, capped, whole = (mean(found) for found in errors.values())
    assert capped < 0.75 * none
    assert capped == pytest.approx(whole, rel=0.01)


# The identities


def times_the_pass_rates_gradient(
    row: Method, p: float, size: int, denominator: Denominator = "constant"
) -> float:
    """c in E[gradient] = c * grad p, without 1/|o|: as grad log pi has mean 0, only how much more
    a correct output is reinforced than a wrong one counts."""
    correct, wrong = expected_coefficients(row, denominator, p, size)
    return correct - wrong


RATES = (0.05, 0.2, 0.5, 0.8, 0.95)


@pytest.mark.parametrize("p", RATES)
def test_identities_with_the_gradient_of_the_pass_rate(p: float) -> None:
    size, w = 8, 1 - p
    c = lambda row: times_the_pass_rates_gradient(row, p, size)  # noqa: E731
    for name in ("online_rft", "psr", "nsr", "rloo", "raft++"):
        assert c(METHODS[name]) == pytest.approx(1.0, rel=1e-9), name
    assert c(METHODS["w_reinforce"]) == pytest.approx(1.1, rel=1e-9)
    for name in ("dr_grpo", "reinforce"):
        assert c(METHODS[name]) == pytest.approx((size - 1) / size, rel=1e-9)
    assert c(METHODS["reinforce_rej"]) == pytest.approx(
        2 - p ** (size - 1) - w ** (size - 1), rel=1e-9
    )
    assert c(METHODS["reinforce_rej_released"]) == pytest.approx(1 - p ** (size - 1), rel=1e-9)
    assert c(METHODS["maxrl"]) == pytest.approx((1 - w ** (size - 1)) / p, rel=1e-9)
    of_order_g = (1 - w**size) / p
    assert c(METHODS["maxrl_positive"]) == pytest.approx(of_order_g, rel=1e-9)
    per_question = times_the_pass_rates_gradient(
        METHODS["online_rft"], p, size, "accepted_per_question"
    )
    assert per_question == pytest.approx(of_order_g, rel=1e-6)
    assert per_question == pytest.approx(sum(w**k for k in range(size)), rel=1e-6)


GRPOS_WEIGHTS = [(0.05, 2.473), (0.2, 2.107), (0.5, 1.856), (0.8, 2.107), (0.95, 2.473)]


@pytest.mark.parametrize(("p", "expected"), GRPOS_WEIGHTS)
def test_grpos_weight_of_a_question_by_its_pass_rate(p: float, expected: float) -> None:
    """Symmetric, and largest where a question tells least."""
    found = times_the_pass_rates_gradient(grpo(ddof=0), p, 8)
    assert found == pytest.approx(expected, abs=5e-4)
    unbiased = times_the_pass_rates_gradient(grpo(ddof=1), p, 8)
    assert unbiased == pytest.approx(found * math.sqrt(7 / 8), rel=1e-5)


def test_one_equation_with_1_over_length_is_not_the_gradient_of_the_pass_rate() -> None:
    """With 1/|o| PSR and NSR differ, as a baseline's share no longer has mean 0."""
    theta, question = random_theta(25), QUESTIONS[0]
    chances = {o: probability(theta, 0, o.tokens) for o in OUTPUTS}
    right = {o: sample(question, o).accepted for o in OUTPUTS}
    scores = {o: score(theta, 0, o.tokens) for o in OUTPUTS}
    psr = sum(chances[o] * scores[o] for o in OUTPUTS if right[o])
    nsr = -sum(chances[o] * scores[o] for o in OUTPUTS if not right[o])
    assert relative_error(psr, nsr) > 0.1
    whole = {o: scores[o] * len(o.tokens) for o in OUTPUTS}
    psr = sum(chances[o] * whole[o] for o in OUTPUTS if right[o])
    nsr = -sum(chances[o] * whole[o] for o in OUTPUTS if not right[o])
    assert relative_error(psr, nsr) < 1e-12


def test_dedupe_is_the_maximum_likelihood_of_each_distinct_answer() -> None:
    """Its expected gradient, divided by all outputs, is that of sum over distinct correct outputs c
    of 1/G sum over k <= G of (1 - (1 - pi_c)^k) / k."""
    theta, question, size = random_theta(26), QUESTIONS[0], 3
    row = METHODS["psr"]
    settings = settings_of(row)
    assert settings.selection is not None
    settings = replace(settings, selection=replace(settings.selection, dedupe="text"))
    chances = {o: probability(theta, 0, o.tokens) for o in OUTPUTS}
    found = np.zeros_like(theta)
    for outputs in itertools.product(OUTPUTS, repeat=size):
        chance = math.prod(chances[o] for o in outputs)
        samples = [sample(question, o, n) for n, o in enumerate(outputs)]
        kept = select(samples, settings)
        for one, weight in zip(kept.samples, weigh(kept, settings), strict=True):
            found += chance * float(weight) * LIMIT * score(theta, 0, one.tokens)
    expected = np.zeros_like(theta)
    for o in OUTPUTS:
        if sample(question, o).accepted:
            slope = (1 - (1 - chances[o]) ** size) / size  # d/d log pi_c of the sum
            expected += slope * score(theta, 0, o.tokens) * len(o.tokens)
    assert relative_error(found, expected) < TOLERANCE


@pytest.mark.usefixtures("_float64")
def test_what_each_kl_estimator_does_in_expectation() -> None:
    """On samples of pi_theta, at one place: k1's gradient has mean 0, k2's is that of
    KL(pi_theta || pi_ref), k3's that of KL(pi_ref || pi_theta)."""
    rng = np.random.default_rng(27)
    theta, frozen = jnp.asarray(rng.normal(size=6)), jnp.asarray(rng.normal(size=6))
    log_ref = jax.nn.log_softmax(frozen)
    chances = jax.lax.stop_gradient(jax.nn.softmax(theta))

    def sampled(estimator: Any) -> Any:
        return jax.grad(lambda t: jnp.sum(chances * estimator(jax.nn.log_softmax(t), log_ref)))

    def reverse(t: jax.Array) -> jax.Array:
        return jnp.sum(jax.nn.softmax(t) * (jax.nn.log_softmax(t) - log_ref))

    def forward(t: jax.Array) -> jax.Array:
        return jnp.sum(jnp.exp(log_ref) * (log_ref - jax.nn.log_softmax(t)))

    np.testing.assert_allclose(sampled(k1)(theta), 0, atol=1e-12)
    np.testing.assert_allclose(sampled(k2)(theta), jax.grad(reverse)(theta), rtol=1e-9)
    np.testing.assert_allclose(sampled(k3)(theta), jax.grad(forward)(theta), rtol=1e-9)
    values = [float(jnp.sum(chances * e(jax.nn.log_softmax(theta), log_ref))) for e in (k1, k3)]
    assert values == pytest.approx([float(reverse(theta))] * 2, rel=1e-9)


# Lengths


def test_dapos_overlong_punishment_is_in_tokens() -> None:
    """The paper's values, L = 20480 and cache 4096. Counted in characters instead, an answer of
    5,000 tokens and 20,000 characters would be punished."""
    lengths = np.array([1, 16384, 16385, 18432, 20479, 20480])
    expected = [0, 0, -1 / 4096, -0.5, -4095 / 4096, -1]
    assert overlong(lengths, 20480, 4096) == pytest.approx(expected)
    assert overlong(np.array([5000]), 20480, 4096) == 0.0 > overlong(np.array([20000]), 20480, 4096)


def test_a_coefficient_of_each_token_is_trained_on_as_it_is() -> None:
    """Rows of [B, T]: the weight of token t is GC_t over the denominator."""
    samples = [sample(QUESTIONS[0], OUTPUTS[n], n) for n in (1, 4, 9)]
    lengths = [len(s.tokens) for s in samples]
    table = np.where(np.arange(LIMIT) < np.array(lengths)[:, None], np.arange(1.0, LIMIT + 1), 0)
    row = Method("policy", "decided", lambda facts: table, "by_token")
    kept = select(samples, settings_of(row))
    weights = weigh(kept, settings_of(row))
    for weight, size in zip(weights, lengths, strict=True):
        assert np.asarray(weight) == pytest.approx(np.arange(1, size + 1) / len(samples))


def test_a_kl_in_the_reward_leaves_maxrls_scale_as_it_is() -> None:
    """Divided by a mean of -beta KL, an output far from pi_ref would be reinforced."""
    settings = settings_of(METHODS["maxrl"])
    objective = replace(settings.objective, kl_coefficient=0.1, kl_in="reward", kl_estimator="k1")
    settings = replace(settings, objective=objective)
    right, wrong = (
        next(o for o in OUTPUTS if sample(QUESTIONS[0], o).accepted == accepted)
        for accepted in (True, False)
    )

    def coefficients(outputs: Sequence[Output]) -> list[float]:
        samples = [
            replace(
                sample(QUESTIONS[0], o, n), reference=(-float(n),) + (0.0,) * (len(o.tokens) - 1)
            )
            for n, o in enumerate(outputs)
        ]
        return [float(one) for one in select(samples, settings).coefficients]

    assert coefficients([wrong, wrong]) == []
    # The rewards are 1, -0.1 and 0.8, of mean 1.7 / 3; that without the KL is 2 / 3.
    expected = [(r - 1.7 / 3) / (2 / 3) for r in (1.0, -0.1, 0.8)]
    assert coefficients([right, wrong, right]) == pytest.approx(expected, rel=1e-6)


def test_undecided_and_single_outputs_have_no_baseline() -> None:
    alone: list[Sample] = [sample(QUESTIONS[0], OUTPUTS[1])]
    for name, (row, _) in ROWS.items():
        if row.group and name != "maxrl_positive":
            facts = facts_of(alone, LIMIT, steps=row.steps)._replace(log_ratios=np.zeros(1))
            assert not coefficients(row, facts).any(), name


def test_ratios_act_only_where_a_rollout_is_for_several_updates() -> None:
    for name, row in METHODS.items():
        if row.source == "policy":
            settings = settings_of(row)
            assert settings.ratio is None, name
            assert replace(settings, update=replace(settings.update, epochs=2)).ratio == row.ratio
    several: UpdateConfig = replace(tiny.online_rft().update, minibatches=2)
    clipped = replace(settings_of(METHODS["grpo"]), update=several)
    objective = replace(clipped.objective, clip_low=0.1, clip_high=0.3, dual_clip=3.0)
    assert replace(clipped, objective=objective).ratio == Ratio(low=0.1, high=0.3, dual=3.0)
