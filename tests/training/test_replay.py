"""Replay: the expected update is J's and w times that of the mean over the replayed set, by
enumeration; what of an update a replayed output takes no part in; where it is read from."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
import tiny
from enumeration import (
    EOS,
    LIMIT,
    OUTPUTS,
    QUESTIONS,
    config,
    probability,
    random_samples,
    random_theta,
    relative_error,
    sample,
    sampling,
)
from steps import choose, steps

from rft_jax.config import Config, ReplayConfig, SelectionConfig
from rft_jax.config.method import Ratio
from rft_jax.data.stream import Position
from rft_jax.errors import DataError, UserError
from rft_jax.rollout import log as rollout_log
from rft_jax.rollout.engine import Rollout
from rft_jax.runs.replay import Replay, open_replay
from rft_jax.runs.setup import Questions
from rft_jax.runs.sources import PolicySource
from rft_jax.training.packing import TrainingSequence, pack
from rft_jax.training.update import Terms, gradients, init_state, update
from rft_jax.types import Verdict

MODEL = tiny.model(compute_dtype="float64")
SHAPE = {"row_length": 8, "rows_per_microbatch": 2, "max_microbatches": 12}
WEIGHT = 0.3
DEMONSTRATIONS = {0: (1, 1, EOS), 1: (2, 1, EOS)}


def opened(folder: Path | None = None, per_step: int = 1, **changes: Any) -> tuple[Replay, Config]:
    """Of the world's demonstrations, or of a log."""
    folders = (str(folder),) if folder else ()
    section = ReplayConfig(per_step, WEIGHT, from_rollouts=folders)
    settings = replace(config("online_rft", "sampled"), replay=section, **changes)
    questions = Questions({"data.train": QUESTIONS})
    return open_replay("run", settings, questions, sampling()), settings


def mean_gradient(params: Any, outputs: list[tuple[int, tuple[int, ...]]]) -> np.ndarray:
    """Of the mean over outputs of 1/|o| sum_t log pi, one output at a time."""
    _, scores = reference.values_and_scores(params, 1.0, MODEL)
    every = np.zeros((len(reference.CASES), LIMIT))
    for question, tokens in outputs:
        every[reference.case_of(question, tokens), : len(tokens)] += 1 / len(tokens) / len(outputs)
    return reference.flat(reference.weighted(scores, every))


@pytest.fixture
def _float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


@functools.partial(jax.jit, static_argnames="terms")
def _gradients(params, frozen, batch, terms):  # type: ignore[no-untyped-def]
    one = jnp.float64(1.0)
    return gradients(params, frozen, batch, one, config=MODEL, terms=terms, chunk=7)


@pytest.mark.slow
@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("per_step", [1, 3])
def test_the_expected_update_is_that_of_j_and_of_the_replayed_mean(per_step: int) -> None:
    """Every rollout of one output, by its chance, and every minibatch of whole epochs."""
    params, theta = reference.params64(MODEL, 0), random_theta(1)
    replay, settings = opened(per_step=per_step)
    drawn: list[list[TrainingSequence]] = []
    position = Position()
    while not drawn or position.index:
        some, position = replay.take(position)
        drawn.append(some)
    terms = Terms(replay=True)
    found: Any = 0.0
    plain: Any = 0.0
    for output, rehearsed in itertools.product(OUTPUTS, drawn):
        chance = probability(theta, 0, output.tokens) / len(drawn)
        own = choose([sample(QUESTIONS[0], output)], QUESTIONS, settings, sampling()).sequences
        batch = pack([*own, *rehearsed], **SHAPE)
        found -= chance * reference.flat(_gradients(params, None, batch, terms).gradients)
        if own:
            alone = _gradients(params, None, pack(own, **SHAPE), terms)
            plain -= chance * reference.flat(alone.gradients)
    expected = plain + WEIGHT * mean_gradient(params, list(DEMONSTRATIONS.items()))
    assert np.linalg.norm(plain) > 0
    assert relative_error(found, expected) < 1e-6


@pytest.mark.slow
@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize(
    "terms",
    [
        Terms(kl_coefficient=0.2),
        Terms(ratio=Ratio()),
        Terms(ratio=Ratio("sequence")),
        Terms(ratio=Ratio("output", how="weight", of="negatives")),
        Terms(importance_cap=2.0),
    ],
    ids=["kl", "token", "sequence", "weight", "importance"],
)
def test_a_replayed_output_has_no_ratio_and_no_kl(terms: Terms) -> None:
    params, frozen = reference.params64(MODEL, 0), reference.params64(MODEL, 1)
    replay, settings = opened(per_step=2)
    objective = replace(settings.objective, kl_coefficient=terms.kl_coefficient)
    settings = replace(settings, objective=objective)
    samples = random_samples(np.random.default_rng(4), per_question=6)
    samples = [replace(one, log_probs=(-0.9,) * len(one.tokens)) for one in samples]
    own = choose(samples, QUESTIONS, settings, sampling()).sequences
    rehearsed, _ = replay.take(Position())
    alone = _gradients(params, frozen, pack(own, **SHAPE), terms)
    found = _gradients(
        params, frozen, pack([*own, *rehearsed], **SHAPE), terms._replace(replay=True)
    )
    slopes = WEIGHT * mean_gradient(params, list(DEMONSTRATIONS.items()))
    beside = reference.flat(alone.gradients) - reference.flat(found.gradients)
    assert relative_error(beside, slopes) < 1e-6
    for name in ("value", "kl", "mismatch", "ratio", "clipped", "tokens"):
        ours, theirs = getattr(found.totals, name), getattr(alone.totals, name)
        assert float(ours) == pytest.approx(float(theirs), rel=1e-12)
    assert float(found.maxima.mismatch) == pytest.approx(float(alone.maxima.mismatch))


@pytest.mark.slow
@pytest.mark.usefixtures("_float64")
def test_an_update_on_replayed_outputs_only_has_no_entropy() -> None:
    batch = pack(opened(per_step=2)[0].take(Position())[0], **SHAPE)
    ascent = optax.sgd(0.1)
    _, metrics = update(
        init_state(reference.params64(MODEL, 0), ascent), None, batch, jnp.float64(1.0), None,
        jnp.float64(0.1), config=MODEL, optimizer=ascent, terms=Terms(entropy=True, replay=True),
        chunk=7,
    )  # fmt: skip
    assert np.isnan(metrics.entropy)
    assert metrics.finite
    assert metrics.gradient_norm > 0


def test_the_demonstrations_of_data_train_are_not_those_of_a_schedule() -> None:
    _, settings = opened()
    other = replace(QUESTIONS[1], id=10_000_000, solution=None)
    parts = {"data.train": QUESTIONS[:1], "schedule.sources[b]": (other,)}
    replay = open_replay("run", settings, Questions(parts), sampling())
    assert [one.completion for one in replay.sequences] == [DEMONSTRATIONS[0]]


def test_demonstrations_in_an_order_of_their_own_epoch_after_epoch() -> None:
    replay, _ = opened(per_step=3)
    position, seen = Position(), []
    for _ in range(2):
        some, position = replay.take(position)
        seen += some
    assert position == Position(3, 0)
    tokens = [one.completion for one in seen]
    assert sorted(tokens) == sorted([*DEMONSTRATIONS.values()] * 3)
    assert all(one.replayed and one.weight == WEIGHT / 3 for one in seen)
    assert not replay.inputs  # they are those of data.train


def write_log(folder: Path) -> list[tuple[int, tuple[int, ...]]]:
    """A rollout of each output twice; those that are correct, once each."""
    samples = [
        replace(sample(question, output, 2 * n + again), log_probs=(0.0,) * len(output.tokens))
        for question in QUESTIONS
        for n, output in enumerate(OUTPUTS)
        for again in (0, 1)
    ]
    rollout_log.write(folder, 0, samples, QUESTIONS, seed=0)
    return sorted({(s.question_id, s.tokens) for s in samples if s.accepted})


def test_accepted_outputs_of_a_log_less_what_selection_drops(tmp_path: Path) -> None:
    right = write_log(tmp_path)
    replay, _ = opened(tmp_path)
    assert len(replay.sequences) == 2 * len(right)
    once, _ = opened(tmp_path, selection=SelectionConfig(dedupe="text"))
    assert sorted(one.completion for one in once.sequences) == sorted(t for _, t in right)
    assert replay.inputs["replay"].where == str(tmp_path)
    line = (tmp_path / "step-000000.jsonl").read_text().splitlines()
    (tmp_path / "step-000000.jsonl").write_text("\n".join(line[:-1]).replace("60", "59") + "\n")
    other, _ = opened(tmp_path)
    assert other.inputs["replay"].sha256 != replay.inputs["replay"].sha256


def test_what_cannot_be_replayed_is_refused(tmp_path: Path) -> None:
    wrong = [sample(QUESTIONS[0], OUTPUTS[0])]
    rollout_log.write(tmp_path, 0, wrong, QUESTIONS, seed=0)
    with pytest.raises(UserError, match="replay finds no accepted output and no demonstration"):
        opened(tmp_path)
    settings = opened()[1]
    bare = Questions({"data.train": (replace(QUESTIONS[0], solution=None),)})
    with pytest.raises(DataError, match="question 0 has no solution"):
        open_replay("run", settings, bare, sampling())


@pytest.mark.parametrize("right", [True, False])
def test_a_step_without_an_accepted_output_trains_on_the_replay(
    tmp_path: Path, right: bool
) -> None:
    """And where there are some, on both; the position moves with every update."""
    replay, settings = opened(per_step=2)
    source = PolicySource(QUESTIONS, replace(settings, steps=2), sampling())
    verdict = Verdict.CORRECT if right else Verdict.INCORRECT

    def draw(questions: Any, **options: Any) -> Rollout:
        samples = [
            sample(question, OUTPUTS[1], n, verdict)
            for question in questions
            for n in range(options["num_samples"])
        ]
        return Rollout(samples, samples, np.zeros(len(samples)), 1.0, 0.0, 0.0, ())

    settings = replace(
        settings,
        rollout=replace(settings.rollout, questions_per_step=2),  # type: ignore[type-var]
    )
    source = PolicySource(QUESTIONS, settings, sampling())
    first, second = steps(settings, source, tmp_path, draw, 2, replay=replay)
    own = 4 if right else 0
    assert [one.replayed for one in first.sequences] == [False] * own + [True] * 2
    assert first.facts["update/sequences"] == own
    assert first.facts["replay/sequences"] == 2
    assert (first.facts.get("policy/log_prob_mismatch_max", 0) is None) == (not right)
    assert second.state.replayed == Position(2, 0)
    assert second.state.counters.updates == 2
    assert second.state.counters.skipped_updates == 0
