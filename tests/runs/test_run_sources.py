"""What each step trains on: weights, minibatches, epochs, and having nothing."""

from __future__ import annotations

import math
import weakref
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from enumeration import (
    EOS,
    OUTPUTS,
    PROMPTS,
    QUESTIONS,
    Output,
    config,
    formula_weights,
    random_samples,
    sample,
    sampling,
)
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from steps import choose, rollouts, steps

from rft_jax.config import Config, Denominator, Method, PoolConfig, RolloutConfig
from rft_jax.data import stream
from rft_jax.data.stream import Position
from rft_jax.errors import DataError, UserError
from rft_jax.keys import Purpose
from rft_jax.rollout import log as rollout_log
from rft_jax.rollout.engine import Outputs, Rollout
from rft_jax.runs import loop, sources
from rft_jax.runs.sources import FixedSet, PolicySource, Pool, demonstrations
from rft_jax.runs.state import State
from rft_jax.training.packing import TrainingSequence
from rft_jax.training.selection import select, weigh
from rft_jax.types import Question, Sample, Verdict

DENOMINATORS: tuple[Denominator, ...] = ("sampled", "accepted", "accepted_per_question")
RIGHT, WRONG = Output((2, EOS), True), Output((1, EOS), True)
START = Position(0, 0)


def no_policy() -> Any:
    raise AssertionError("a fixed set needs no policy")


def fixed(samples: Sequence[Sample], settings: Config) -> FixedSet:
    """The samples as a fixed set, whose prompts are their questions' ids."""
    kept = select(samples, settings)
    prompts = {one.question_id: (one.question_id + 1,) for one in samples}
    alone = [[number] for number in range(len(kept.samples))]
    return FixedSet(kept, weigh(kept, settings), prompts, alone, settings.update.sequences_per_step)


def minibatches(
    source: FixedSet, settings: Config, count: int, first: State | None = None
) -> list[list[TrainingSequence]]:
    none = Path("no rollout is logged")
    done = steps(settings, source, none, no_policy, count, first=first, policy=no_policy)
    assert all("funnel/sampled" not in one.facts for one in done)
    return [one.sequences for one in done]


def with_size(settings: Config, size: int) -> Config:
    return replace(settings, update=replace(settings.update, sequences_per_step=size))


@pytest.mark.parametrize("denominator", DENOMINATORS)
@pytest.mark.parametrize("size", [1, 3, 4, 10])
def test_minibatches_of_a_pool_have_the_whole_pools_weights_in_expectation(
    denominator: Denominator, size: int
) -> None:
    """Exactly, over as many epochs as end with a minibatch: for any function of an output the mean
    over minibatches of the weighted sum is the whole set's."""
    samples = random_samples(np.random.default_rng(3), per_question=16)
    settings = with_size(config("rft", denominator), size)
    chosen = choose(samples, QUESTIONS, settings, sampling()).sequences
    expected = formula_weights(samples, denominator)
    accepted = [one for one in samples if one.accepted]
    assert [s.weight for s in chosen] == pytest.approx(expected[expected > 0].tolist(), rel=1e-6)
    assert [tuple(s.completion) for s in chosen] == [one.tokens for one in accepted]

    source = fixed(samples, settings)
    count = math.lcm(source.size, size) // size
    totals: Counter[int] = Counter()
    kept, position = [], START
    for _ in range(count):
        rows, position = stream.take(source.size, settings.seed, position, size)
        kept += rows.tolist()
    batches = minibatches(source, settings, count)
    assert [len(batch) for batch in batches] == [size] * count
    for row, one in zip(kept, (one for batch in batches for one in batch), strict=True):
        assert tuple(one.completion) == accepted[row].tokens
        totals[row] += one.weight / count
    assert [totals[row] for row in range(source.size)] == pytest.approx(
        expected[expected > 0].tolist(), rel=1e-6
    )


def test_minibatches_follow_the_seed_and_the_position() -> None:
    samples = [replace(sample(QUESTIONS[0], RIGHT), question_id=row) for row in range(7)]
    settings = with_size(config("rft"), 4)
    source = fixed(samples, settings)
    first = minibatches(source, settings, 4)
    assert first == minibatches(source, settings, 4)
    assert first != minibatches(source, replace(settings, seed=1), 4)
    order = [one.prompt[0] for batch in first for one in batch]
    assert sorted(order[:7]) == sorted(order[7:14]) == list(range(1, 8))
    later = State(mock.sentinel.train, step=9, position=Position(0, 4))
    assert minibatches(source, settings, 1, first=later)[0] == first[1]


@pytest.mark.parametrize("denominator", DENOMINATORS)
def test_demonstrations_are_outputs_of_weight_one_over_their_number(
    denominator: Denominator,
) -> None:
    settings = with_size(config("sft", denominator), 2)
    source = demonstrations(QUESTIONS, settings, sampling())
    (sequences,) = minibatches(source, settings, 1)
    sequences = sorted(sequences, key=lambda one: one.prompt)
    assert [tuple(s.prompt) for s in sequences] == [PROMPTS[0], PROMPTS[1]]
    assert [tuple(s.completion) for s in sequences] == [(1, 1, EOS), (2, 1, EOS)]
    assert [s.weight for s in sequences] == [0.5, 0.5]
    assert [s.kl_weight for s in sequences] == [0.0, 0.0]


@examples(max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_with_kl_every_decided_sample_is_returned(seed: int) -> None:
    samples = random_samples(np.random.default_rng(seed), per_question=4)
    decided = [one for one in samples if one.verdict is not Verdict.UNDECIDED]
    for denominator in DENOMINATORS:
        plain = choose(samples, QUESTIONS, config("online_rft", denominator), sampling())
        with_kl = choose(
            samples,
            QUESTIONS,
            config("online_rft", denominator, kl_coefficient=0.1),
            sampling(),
        )
        assert [tuple(s.completion) for s in with_kl.sequences] == [o.tokens for o in decided]
        assert [s.kl_weight for s in with_kl.sequences] == [1 / len(decided)] * len(decided)
        assert [s._replace(kl_weight=0.0) for s in with_kl.sequences if s.weight] == (
            plain.sequences
        )
        assert (with_kl.num_distinct, with_kl.num_kept) == (plain.num_distinct, plain.num_kept)


def test_every_process_has_the_outputs_whole_that_a_kl_is_measured_on() -> None:
    settings, wrong = config("online_rft"), sample(QUESTIONS[0], WRONG)
    outputs = mock.create_autospec(Outputs, instance=True)
    for count, whole in ((0, False), (4, True)):
        measured = replace(settings, objective=replace(settings.objective, kl_outputs=count))
        with mock.patch.object(sources, "sample", return_value=outputs) as drawn:
            PolicySource(QUESTIONS, measured, sampling()).outputs([0], dict, 0)
        shares = drawn.call_args.kwargs["shares"]
        assert shares(wrong) == whole
        assert not shares(replace(wrong, verdict=Verdict.UNDECIDED))


@pytest.mark.parametrize("verdict", [Verdict.INCORRECT, Verdict.UNDECIDED])
@pytest.mark.parametrize("denominator", DENOMINATORS)
def test_nothing_accepted_gives_no_sequences(verdict: Verdict, denominator: Denominator) -> None:
    samples = [sample(QUESTIONS[0], WRONG, n, verdict) for n in range(3)]
    chosen = choose(samples, QUESTIONS, config("online_rft", denominator), sampling())
    assert chosen == ([], 0, 0)


class Drawn:
    """Stands in for the rollout: one right and one wrong output for each question asked."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []
        self.steps: list[int] = []
        self.purposes: set[Purpose] = set()

    def __call__(self, questions: Sequence[Question], **settings: Any) -> Rollout:
        self.purposes.add(settings.pop("purpose"))
        self.asked.append([question.id for question in questions])
        self.steps.append(settings["step"])
        right = next(o for o in OUTPUTS if sample(QUESTIONS[0], o).accepted)
        samples = [
            replace(sample(QUESTIONS[0], output, n), question_id=question.id, step=settings["step"])
            for question in questions
            for n, output in enumerate((right, WRONG))
        ]
        return Rollout(samples, samples, np.full(len(samples), 0.5), 3.0, 2.0, 1.0, (), 4)


MANY = [Question(10 + row, "1", "2") for row in range(5)]


def asking(settings: Config, count: int) -> Config:
    rollout = RolloutConfig(questions_per_step=count, samples_per_question=2)
    return replace(settings, rollout=rollout)


def test_online_samples_the_current_policy_at_each_step(tmp_path: Path) -> None:
    drawn = Drawn()
    settings = asking(config("online_rft", "sampled"), 2)
    source = PolicySource(MANY, settings, sampling())
    asked_for: list[str] = []
    (result,) = steps(
        settings, source, tmp_path, drawn, 1,
        first=State(mock.MagicMock(), step=6),
        policy=lambda: asked_for.append("policy"),
    )  # fmt: skip
    assert asked_for == ["policy"]
    assert (result.state.step, result.state.position) == (7, Position(0, 2))
    assert [s.weight for s in result.sequences] == [0.25, 0.25]
    assert [s.log_probs for s in result.sequences] == [
        one.log_probs for _, one in rollout_log.read(tmp_path / "rollouts" / "step-000006.jsonl")
    ][::2]
    facts, counters = result.facts, result.state.counters
    assert (facts["funnel/sampled"], facts["funnel/kept"], facts["pass_rate"]) == (4, 2, 0.5)
    assert (counters.sampled_outputs, counters.sampled_tokens, counters.updates) == (4, 8, 1)
    assert (facts["policy/entropy"], facts["seconds/sampling"]) == (0.5, 3.0)
    assert (facts["seconds/verifying"], facts["seconds/verifying_hidden"]) == (2.0, 1.0)
    assert (drawn.steps, drawn.purposes) == ([6], {Purpose.ROLLOUT})


def test_a_question_that_ends_an_epoch_and_starts_the_next_is_asked_once(tmp_path: Path) -> None:
    drawn, settings = Drawn(), asking(config("online_rft"), 4)
    source = PolicySource(MANY, settings, sampling())
    done = steps(settings, source, tmp_path, drawn, 60)
    assert done[-1].state.position == Position(48, 0)
    sizes = [len(asked) for asked in drawn.asked]
    assert all(len(set(asked)) == len(asked) for asked in drawn.asked)
    assert set(sizes) > {4}  # the case did occur
    # Each epoch asks every question; one asked for two epochs at once answers for both.
    assert Counter(q for asked in drawn.asked for q in asked).keys() == {q.id for q in MANY}


def test_a_reference_is_renewed_between_rollouts_also_after_a_skipped_update(
    tmp_path: Path,
) -> None:
    """The first rollout gives no update, so that the fourth step is within the second's four."""
    drawn, base = Drawn(), config("online_rft", kl_coefficient=0.1)

    def first_undecided(questions: Sequence[Question], **settings: Any) -> Rollout:
        rollout = drawn(questions, **settings)
        if settings["step"]:
            return rollout
        undecided = [replace(one, verdict=Verdict.UNDECIDED) for one in rollout.samples]
        return rollout._replace(samples=undecided, own=undecided)

    settings = replace(
        asking(base, 2),
        steps=12,
        update=replace(base.update, minibatches=4),
        objective=replace(base.objective, reference_every=4),
    )
    source = PolicySource(MANY[:4], settings, sampling())
    with mock.patch.object(loop, "as_reference", side_effect=range(9)):
        done = steps(settings, source, tmp_path, first_undecided, 9, first=State(mock.MagicMock()))
    assert drawn.steps == [0, 1, 5]
    assert [one.state.reference for one in done] == [None] * 4 + [0] * 4 + [1]


def pool_settings(count: int, steps: int) -> Config:
    settings = asking(config("rft", "accepted"), count)
    return replace(settings, pool=PoolConfig(rollout_steps=steps))


def test_a_pool_is_sampled_once(tmp_path: Path) -> None:
    drawn = Drawn()
    settings = pool_settings(2, 3)
    answers = iter([0, 0, 1])
    questions = MANY[:4]
    pool = Pool(questions, settings, sampling(), tmp_path)
    with rollouts(drawn):
        assert pool.fill(lambda: None, lambda: next(answers)) is None  # a signal came
        assert drawn.steps == [0, 1]
        seconds = pool.fill(lambda: None, lambda: 0)
    assert drawn.steps == [0, 1, 2]  # what was there is not repeated
    assert drawn.purposes == {Purpose.POOL}
    assert seconds == {
        "seconds/sampling": 3.0,
        "seconds/verifying": 2.0,
        "seconds/verifying_hidden": 1.0,
        "funnel/slow_verdicts": 4,
    }
    asked = [question for step in drawn.asked for question in step]
    assert sorted(asked[:4]) == [q.id for q in questions]

    source, facts = pool.read()
    assert source.size == 6
    assert source.weights == pytest.approx([1 / 6] * 6)
    assert (facts["sampled_outputs"], facts["sampled_tokens"]) == (12, 24)
    assert (facts["funnel/sampled"], facts["funnel/correct"], facts["funnel/kept"]) == (12, 6, 6)


def test_a_pool_that_an_earlier_version_began_is_filled_as_it_was(tmp_path: Path) -> None:
    settings, first = pool_settings(2, 2), Drawn()
    with rollouts(first):
        Pool(MANY, settings, sampling(), tmp_path).fill(lambda: None, iter([0, 1]).__next__)
    path = rollout_log.path_of(tmp_path, 0)
    path.write_text(path.read_text().replace(', "purpose": "pool"', ""))
    second = Drawn()
    with rollouts(second):
        Pool(MANY, settings, sampling(), tmp_path).fill(lambda: None, lambda: 0)
    assert (first.purposes, second.purposes) == ({Purpose.POOL}, {Purpose.ROLLOUT})
    assert rollout_log.purpose_of(tmp_path, 1) is Purpose.ROLLOUT


def test_a_pool_is_what_its_steps_say(tmp_path: Path) -> None:
    """A file of a later step, left by another setting, is not part of it."""
    with rollouts(Drawn()):
        Pool(MANY, pool_settings(2, 3), sampling(), tmp_path).fill(lambda: None, lambda: 0)
    assert Pool(MANY, pool_settings(2, 2), sampling(), tmp_path).read()[0].size == 4


def from_rollouts(*folders: Path) -> Config:
    pool = PoolConfig(from_rollouts=tuple(map(str, folders)))
    return replace(config("rft", "accepted"), rollout=None, pool=pool)


def test_a_pool_unites_the_logs_of_earlier_runs(tmp_path: Path) -> None:
    for name, outputs in (("a", [RIGHT, WRONG]), ("b", [RIGHT])):
        samples = [sample(QUESTIONS[0], output, n) for n, output in enumerate(outputs)]
        rollout_log.write(tmp_path / name, 0, samples, QUESTIONS, seed=0)
    settings = from_rollouts(tmp_path / "a", tmp_path / "b")
    source, facts = Pool(MANY, settings, sampling(), tmp_path / "nothing").read()
    assert [one.tokens for one in source.kept.samples] == [RIGHT.tokens] * 2
    assert (list(source.weights), tuple(source.prompt(0))) == ([0.5, 0.5], PROMPTS[0])
    assert facts["funnel/sampled"] == 3


def test_a_log_whose_questions_are_evaluated_or_too_long(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    long = Question(id=9, text=QUESTIONS[0].text * 40, answer="1")
    samples = [sample(QUESTIONS[0], RIGHT), replace(sample(QUESTIONS[0], RIGHT), question_id=9)]
    rollout_log.write(tmp_path / "a", 0, samples, [*QUESTIONS, long], seed=0)
    settings, evaluated = from_rollouts(tmp_path / "a"), {"data.test": QUESTIONS}
    pool = Pool(MANY, settings, sampling(), tmp_path / "rft" / "rollouts", evaluated)
    with pytest.raises(DataError, match=r"a: 1 of 2 prompts have more tokens than .*question 9 ha"):
        pool.read()
    data = replace(settings.data, drop_too_long=True)
    source, facts = replace(pool, config=replace(settings, data=data)).read()
    assert [one.question_id for one in source.kept.samples] == [0]
    assert (facts["data/too_long"], facts["funnel/sampled"]) == (1, 1)
    assert "pool.from_rollouts and data.test share 1" in caplog.text


def test_a_pool_without_a_correct_output_is_an_error(tmp_path: Path) -> None:
    samples: list[Sample] = [sample(QUESTIONS[0], WRONG, n) for n in range(3)]
    rollout_log.write(tmp_path, 0, samples, QUESTIONS, seed=0)
    with pytest.raises(
        UserError,
        match=r"none of 3 sampled outputs is trained on \(method rft; 0 are correct\): look at "
        r"them in the report, start from a better model, or sample more \(pool\.rollout_steps, "
        r"rollout\.samples_per_question\)\.$",
    ):
        Pool(MANY, from_rollouts(tmp_path), sampling(), tmp_path).read()


def test_a_log_may_hold_any_eos_and_ids_of_a_larger_embedding(tmp_path: Path) -> None:
    """As models do that end with one of several EOS ids, and whose embedding is padded."""
    first = sample(QUESTIONS[0], Output((1, 1, EOS), True))
    other = replace(first, tokens=(1, 1, 2), sample_index=1)
    padded = replace(first, tokens=(1, 7, 1), sample_index=2, finished=False)
    padded = replace(padded, verdict=Verdict.INCORRECT)
    rollout_log.write(tmp_path, 0, [first, other, padded], QUESTIONS, seed=0)
    settings = from_rollouts(tmp_path)
    wide = replace(settings, model=replace(settings.model, vocab_size=8))
    tokenizer = replace(sampling().tokenizer, eos_ids=(EOS, 2))
    several = replace(sampling(), tokenizer=tokenizer)
    source, _ = Pool(MANY, wide, several, tmp_path).read()
    assert [one.tokens for one in source.kept.samples] == [(1, 1, EOS), (1, 1, 2)]
    for narrow, one in ((settings, several), (wide, sampling())):
        with pytest.raises(UserError, match="question 0 are not its text under digits: name"):
            Pool(MANY, narrow, one, tmp_path).read()


def test_the_policy_of_the_rollout_is_gone_before_the_update(tmp_path: Path) -> None:
    """Its parameters are a copy that the update needs the room of."""
    settings = asking(config("online_rft"), 2)
    made: list[weakref.ref[Any]] = []

    class Parameters:
        pass

    def policy() -> Parameters:
        parameters = Parameters()
        made.append(weakref.ref(parameters))
        return parameters

    def update(train: Any, batch: Any, **place: int) -> Any:
        assert [one() for one in made] == [None]
        return train, {"objective/value": 0.0}

    source = PolicySource(MANY, settings, sampling())
    steps(settings, source, tmp_path, Drawn(), 1, policy=policy, update=update)


def test_no_demonstration_with_a_coefficient_is_an_error() -> None:
    row = Method("demonstrations", "accepted", lambda facts: np.zeros(len(facts.correct)), "none")
    with pytest.raises(UserError, match="method none gives no demonstration of a a coefficient"):
        demonstrations(QUESTIONS, replace(config("sft"), method=row), sampling())
