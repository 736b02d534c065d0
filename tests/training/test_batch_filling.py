"""Batch filling: what a step samples, trains on, carries over and drops."""

from __future__ import annotations

import itertools
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, get_args
from unittest import mock

import numpy as np
import pytest
from enumeration import config, sampling
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from refilling import NO, OPEN, YES, group, output, settings
from steps import Stepped, choose, steps

from rft_jax.config import Config, Denominator, ObjectiveConfig, RefillConfig, SelectionConfig
from rft_jax.data.prompts import prompt_tokens
from rft_jax.data.stream import Position
from rft_jax.rollout import log as rollout_log
from rft_jax.rollout.engine import Rollout
from rft_jax.runs import loop
from rft_jax.runs.sources import PolicySource
from rft_jax.training import batch_filling
from rft_jax.training.batch_filling import Carried, Surplus
from rft_jax.training.selection import Kept, select, training_sequences, weigh
from rft_jax.types import Question, Sample

DENOMINATORS: tuple[Denominator, ...] = get_args(Denominator)


def names(samples: Sequence[Sample]) -> list[tuple[int, int, int]]:
    return [(one.step, one.question_id, one.sample_index) for one in samples]


def sequence_prompt(question: Question) -> list[int]:
    return prompt_tokens(question.text, sampling().data, sampling().tokenizer)


# A batch


class Filled(NamedTuple):
    """A batch, and what the step leaves."""

    batch: Kept
    surplus: Surplus
    facts: dict[str, int]

    @property
    def trained(self) -> list[Sample]:
        return list(self.batch.samples)


def fill(samples: Sequence[Sample], surplus: Surplus, config: Config, **place: int) -> Filled:
    """The batch of a step that has sampled these."""
    return Filled(*batch_filling.fill(select(samples, config), surplus, config, **place))


@pytest.mark.parametrize("denominator", DENOMINATORS)
def test_without_surplus_one_round_is_a_step_without_refill(denominator: Denominator) -> None:
    samples = [
        *group(0, YES, NO, OPEN, YES),
        *group(1, NO, NO, NO, NO),
        *group(2, OPEN, OPEN, YES, NO),
    ]
    questions = [Question(n, "1", "2") for n in range(3)]
    plain = config("online_rft", denominator)
    refilled = settings(accepted=8, questions=3, samples=4, denominator=denominator)
    chosen = choose(samples, questions, plain, sampling())
    filled = fill(samples, (), refilled, step=0, num_rounds=1)
    prompts = {question.id: sequence_prompt(question) for question in questions}
    weights = weigh(filled.batch, refilled)
    sequences = training_sequences(filled.batch, weights, prompts.__getitem__, refilled)
    assert sequences == chosen.sequences
    assert len(filled.trained) == chosen.num_kept
    assert (filled.batch.num_sampled, filled.batch.num_questions) == (9, 3)
    assert filled.facts == {
        "refill/rounds": 1, "refill/trained": 3, "refill/trained_carried": 0,
        "refill/carried_in": 0, "refill/carried_out": 0, "refill/dropped_stale": 0,
        "refill/dropped_surplus": 0, "refill/cap_reached": 1,
    }  # fmt: skip


def test_the_surplus_takes_its_share_of_the_rejected_outputs_along() -> None:
    """D = 7 decided outputs, K = 4 kept, N = 2: weights add up to 4 / 7, as those of all K do."""
    samples = [*group(0, YES, NO, YES), *group(1, NO, OPEN, NO), *group(2, YES, YES)]
    filled = fill(samples, (), settings(accepted=2), step=0, num_rounds=1)
    assert names(filled.trained) == [(0, 0, 0), (0, 0, 2)]
    assert filled.batch.num_sampled == 7 * 2 / 4
    assert filled.batch.num_questions == 3 * 1 / 2
    assert filled.surplus == ()
    assert filled.facts["refill/dropped_surplus"] == 2
    waiting = fill(samples, (), settings(accepted=2, max_staleness=1), step=0, num_rounds=1)
    assert waiting.batch == filled.batch
    assert names([one.sample for one in waiting.surplus]) == [(0, 2, 0), (0, 2, 1)]
    assert [(one.outputs, one.questions) for one in waiting.surplus] == [(7 / 4, 3 / 2)] * 2
    assert waiting.facts["refill/dropped_surplus"] == 0


def test_fresh_outputs_come_first_and_carried_ones_fill_up_oldest_first() -> None:
    surplus = (
        Carried(output(5, 0, step=1), 4.0, 2.0),
        Carried(output(5, 1, step=2), 3.0, 1.5),
        Carried(output(6, 0, step=2), 3.0, 1.5),
    )
    samples = [*group(0, YES, NO, NO, step=3), *group(5, NO, YES, NO, step=3)]
    filled = fill(samples, surplus, settings(accepted=4, max_staleness=2), step=3, num_rounds=2)
    assert names(filled.trained) == [(3, 0, 0), (3, 5, 1), (1, 5, 0), (2, 5, 1)]
    assert filled.batch.num_sampled == 6 + 4 + 3
    assert filled.batch.num_questions == 2  # question 5 is there already
    assert filled.surplus == surplus[2:]  # it may wait for step 4
    assert filled.facts == {
        "refill/rounds": 2, "refill/trained": 4, "refill/trained_carried": 2,
        "refill/carried_in": 3, "refill/carried_out": 1, "refill/dropped_stale": 0,
        "refill/dropped_surplus": 0, "refill/cap_reached": 0,
    }  # fmt: skip
    # None of this step: what it sampled in vain counts all the same.
    nothing = [*group(0, NO, NO, NO, step=3), *group(7, NO, OPEN, NO, step=3)]
    filled = fill(nothing, surplus, settings(accepted=4, max_staleness=2), step=3, num_rounds=1)
    assert names(filled.trained) == [(1, 5, 0), (2, 5, 1), (2, 6, 0)]
    assert filled.batch.num_sampled == 5 + 4 + 3 + 3
    assert filled.batch.num_questions == 2 + 2.0 + 1.5
    assert filled.facts["refill/cap_reached"] == 1


def test_a_batch_of_two_policies_is_the_mean_of_their_estimates() -> None:
    """Weighted by the outputs that each stands for: here 3 of 6 in step 0, and 4 in step 1."""
    refilled = settings(accepted=2, max_staleness=1, denominator="sampled")
    first = fill(
        [*group(0, YES, YES, NO), *group(1, YES, YES, NO)], (), refilled, step=0, num_rounds=1
    )
    assert [one.outputs for one in first.surplus] == [1.5, 1.5]
    second = fill(group(2, YES, NO, NO, NO, step=1), first.surplus, refilled, step=1, num_rounds=1)
    assert names(second.trained) == [(1, 2, 0), (0, 1, 0)]
    of_old, of_new = 1 / 1.5, 1 / 4  # what each estimates: its acceptance
    assert 2 / second.batch.num_sampled == pytest.approx((1.5 * of_old + 4 * of_new) / (1.5 + 4))


def test_selection_sees_carried_outputs_beside_fresh_ones() -> None:
    surplus = (
        Carried(output(0, 0, text="2"), 1.0, 1.0),
        Carried(output(0, 1, text="11"), 1.0, 1.0),
        Carried(output(1, 0, text="2"), 1.0, 1.0),
    )
    samples = [output(0, 0, step=1, text="2"), output(0, 1, step=1, text="2 ")]
    deduped = settings(
        accepted=4, max_staleness=2, selection=SelectionConfig(dedupe="text"), samples=4
    )
    filled = fill(samples, surplus, deduped, step=1, num_rounds=1)
    assert names(filled.trained) == [(1, 0, 0), (0, 0, 1), (0, 1, 0)]
    assert filled.facts["refill/dropped_surplus"] == 1
    capped = settings(accepted=2, max_staleness=2, selection=SelectionConfig(max_per_question=1))
    filled = fill(samples, surplus, capped, step=1, num_rounds=1)
    assert names(filled.trained) == [(1, 0, 0), (0, 1, 0)]
    assert filled.facts["refill/dropped_surplus"] == 2


# A step


@dataclass
class World:
    """Stands in for the rollout: each output is correct with its question's probability.

    step, rounds, filled: what the steps asked for in each round, and trained on.
    """

    pass_rate: Callable[[int], float]
    seed: int = 0
    undecided: float = 0.0
    texts: int = 3
    rounds: list[list[list[int]]] = field(default_factory=list)
    filled: list[Filled] = field(default_factory=list)

    def rollout(self, questions: Sequence[Question], **options: Any) -> Rollout:
        step, samples = options["step"], []
        self.rounds[-1].append([question.id for question in questions])
        for question in questions:
            rng = np.random.default_rng([self.seed, step, question.id])
            for index in range(options["num_samples"]):
                right = rng.random() < self.pass_rate(question.id)
                verdict = OPEN if rng.random() < self.undecided else YES if right else NO
                text = str(rng.integers(self.texts))
                samples.append(output(question.id, index, verdict, step=step, text=text))
        return Rollout(samples, samples, np.full(len(samples), 0.5), 1.0, 2.0, 3.0, ())

    def fill(self, *args: Any, **options: Any) -> Any:
        self.rounds.append([])
        self.filled.append(Filled(*batch_filling.fill(*args, **options)))
        return tuple(self.filled[-1])

    def carry_out(self, config: Config, questions: int, steps_: int, folder: Path) -> list[Stepped]:
        """These many steps on a set of these many questions."""
        asked = [Question(n, "1", "2") for n in range(questions)]
        source = PolicySource(asked, config, sampling())
        self.rounds.append([])
        stand_in = mock.Mock(wraps=batch_filling, fill=self.fill)
        with mock.patch.object(loop, "batch_filling", stand_in):
            done = steps(config, source, folder, self.rollout, steps_)
        self.rounds.pop()
        return done


def test_nothing_accepted_ends_at_the_cap_with_nothing_to_train_on(tmp_path: Path) -> None:
    world = World(lambda question: 0.0)
    refilled = settings(accepted=3, rounds=4, max_staleness=1)
    supplied = world.carry_out(refilled, questions=20, steps_=2, folder=tmp_path)
    for step, one in enumerate(supplied):
        assert (one.sequences, one.state.surplus) == ([], ())
        assert one.state.position == Position(0, 8 * (step + 1))
        assert one.facts["refill/rounds"] == 4
        assert one.facts["refill/cap_reached"] == 1
        assert one.facts["funnel/sampled"] == 16
        counters = one.state.counters
        assert (counters.sampled_outputs, counters.sampled_tokens) == (
            16 * (step + 1),
            32 * (step + 1),
        )
        assert one.facts["seconds/sampling"] == 4.0
        assert one.facts["seconds/verifying"] == 8.0
        assert one.facts["policy/entropy"] == 0.5


def test_the_cap_leaves_a_short_batch(tmp_path: Path) -> None:
    world = World(lambda question: 1.0)
    refilled = settings(
        accepted=4, rounds=2, samples=4, selection=SelectionConfig(max_per_question=1)
    )
    full = world.carry_out(refilled, questions=20, steps_=1, folder=tmp_path)[0]
    assert (len(full.sequences), full.facts["refill/cap_reached"]) == (4, 0)
    world = World(lambda question: float(question % 2))
    short = world.carry_out(refilled, questions=20, steps_=6, folder=tmp_path)
    assert {len(one.sequences) for one in short} > {1, 2}
    for one in short:
        assert one.facts["refill/rounds"] == 2
        assert one.facts["refill/cap_reached"] == (len(one.sequences) < 4)
        # The denominator is the whole step's, both rounds.
        assert [s.weight for s in one.sequences] == [1 / 16] * len(one.sequences)


def test_a_step_stops_as_soon_as_the_batch_is_full(tmp_path: Path) -> None:
    world = World(lambda question: 1.0)
    refilled = settings(accepted=7, rounds=8, max_staleness=1)
    one, two, three = world.carry_out(refilled, questions=30, steps_=3, folder=tmp_path)
    assert [len(rounds) for rounds in world.rounds] == [2, 2, 2]
    assert [len(step.state.surplus) for step in (one, two, three)] == [1, 1, 1]
    # The carried output was not needed and grew too old, in favour of a fresh one.
    assert [step.facts["refill/dropped_stale"] for step in (one, two, three)] == [0, 1, 1]
    world = World(lambda question: 1.0)
    refilled = settings(accepted=6, rounds=8, max_staleness=1)
    one, two, three = world.carry_out(refilled, questions=30, steps_=3, folder=tmp_path)
    assert [len(rounds) for rounds in world.rounds] == [2, 1, 2]
    assert [step.facts["refill/trained_carried"] for step in (one, two, three)] == [0, 2, 0]
    assert [len(s.log_probs) for s in two.sequences] == [2, 2, 2, 2, 0, 0]


def test_a_step_asks_the_whole_set_at_most_once(tmp_path: Path) -> None:
    world = World(lambda question: 0.0)
    refilled = settings(accepted=3, rounds=100, questions=2)
    supplied = world.carry_out(refilled, questions=5, steps_=4, folder=tmp_path)
    for step, rounds in enumerate(world.rounds):
        assert sorted(itertools.chain(*rounds)) == [0, 1, 2, 3, 4]
        assert supplied[step].facts["refill/cap_reached"] == 1
        logged = rollout_log.read(rollout_log.path_of(tmp_path / "rollouts", step))
        assert [sample.question_id for _, sample in logged[::2]] == [*itertools.chain(*rounds)]
        assert {sample.step for _, sample in logged} == {step}


def test_a_step_samples_until_it_has_mixed_groups(tmp_path: Path) -> None:
    """Questions 0, 3, 6, ... tell right from wrong now and then, the others never do."""
    world = World(lambda question: (0.5, 0.0, 1.0)[question % 3])
    base = settings(accepted=1, rounds=8, samples=4)
    refill = RefillConfig(mixed_groups=2, max_sampled=64)
    grouped = replace(base, method="grpo", refill=refill, objective=ObjectiveConfig("tokens"))
    done = world.carry_out(grouped, questions=30, steps_=6, folder=tmp_path)
    for one, filled, rounds in zip(done, world.filled, world.rounds, strict=True):
        facts, ids = one.facts, [sample.question_id for sample in filled.batch.samples]
        assert set(Counter(ids).values()) == {4}  # whole groups, with a coefficient each
        assert all(question % 3 == 0 for question in ids)
        assert facts["refill/mixed_groups"] == len(set(ids)) == 2
        assert facts["refill/trained"] == len(one.sequences) == 8
        assert facts["refill/rounds"] == len(rounds)
        assert facts["refill/cap_reached"] == 0
        # The batch stands for its own outputs: 8 of 2 tokens.
        assert filled.batch.num_sampled == 8
        assert sum(abs(float(s.weight)) for s in one.sequences) > 0.7
    assert len({len(rounds) for rounds in world.rounds}) > 1


def test_a_step_without_a_mixed_group_trains_on_nothing(tmp_path: Path) -> None:
    world = World(lambda question: float(question % 2))
    base = settings(accepted=1, rounds=2, samples=4)
    refill = RefillConfig(mixed_groups=2, max_sampled=16)
    grouped = replace(base, method="grpo", refill=refill)
    (one,) = world.carry_out(grouped, questions=30, steps_=1, folder=tmp_path)
    assert one.sequences == []
    assert one.facts["refill/cap_reached"] == 1
    assert one.state.counters.skipped_updates == 1


@pytest.mark.slow
@examples(max_examples=60)
@given(st.data())
def test_laws_of_every_step(data: st.DataObject) -> None:
    questions = data.draw(st.integers(2, 12), "questions")
    per_round = data.draw(st.integers(1, min(questions, 4)), "questions_per_step")
    cap = data.draw(st.integers(0, 3), "max_per_question")
    samples, rounds = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5), "rounds")
    most = rounds * per_round * min(cap or samples, samples)
    refilled = settings(
        accepted=data.draw(st.integers(1, most), "accepted"),
        rounds=rounds,
        max_staleness=data.draw(st.integers(0, 3), "max_staleness"),
        questions=per_round,
        samples=samples,
        selection=SelectionConfig(data.draw(st.sampled_from(["none", "text"])), cap),
    )
    rates = data.draw(st.lists(st.sampled_from([0.0, 0.2, 0.7, 1.0]), min_size=12, max_size=12))
    world = World(lambda question: rates[question], data.draw(st.integers(0, 99)), 0.1)
    assert refilled.refill is not None
    wanted, oldest = refilled.refill.accepted, refilled.refill.max_staleness
    with tempfile.TemporaryDirectory() as folder:
        supplied = world.carry_out(refilled, questions, steps_=6, folder=Path(folder))
        log_of = Path(folder) / "rollouts"
        logs = [
            [sample for _, sample in rollout_log.read(rollout_log.path_of(log_of, step))]
            for step in range(6)
        ]
    trained_before: set[tuple[int, int, int]] = set()
    carried: Surplus = ()
    for step, (one, filled, log) in enumerate(zip(supplied, world.filled, logs, strict=True)):
        facts, trained = one.facts, filled.trained
        assert len(one.sequences) == len(trained) == facts["refill/trained"] <= wanted
        assert len(log) == facts["funnel/sampled"] <= refilled.refill.max_sampled
        asked = [question for ids in world.rounds[step] for question in ids]
        assert len(set(asked)) == len(asked)
        assert facts["refill/rounds"] == len(world.rounds[step]) >= 1

        # Only kept outputs, none too old and none twice; selection holds for the batch.
        assert all(sample.accepted for sample in trained)
        assert all(0 <= step - sample.step <= oldest for sample in trained)
        assert not trained_before & set(names(trained))
        trained_before |= set(names(trained))
        per_question = Counter(sample.question_id for sample in trained)
        assert not cap or max(per_question.values(), default=0) <= cap
        if refilled.selection and refilled.selection.dedupe == "text":
            assert len({(s.question_id, s.text) for s in trained}) == len(trained)

        # Nothing is lost or made up.
        old = [sample for sample in trained if sample.step < step]
        assert facts["refill/trained_carried"] == len(old)
        assert facts["refill/carried_in"] == len(carried)
        assert facts["funnel/kept"] + facts["refill/carried_in"] == (
            facts["refill/trained"] + facts["refill/carried_out"]
            + facts["refill/dropped_stale"] + facts["refill/dropped_surplus"]
        )  # fmt: skip
        assert facts["refill/carried_out"] == len(one.state.surplus)
        assert all(step + 1 - c.sample.step <= oldest for c in one.state.surplus)
        assert [c.sample.step for c in one.state.surplus] == sorted(
            c.sample.step for c in one.state.surplus
        )
        assert set(names(old)) <= set(names([c.sample for c in carried]))

        # A carried output is trained on where fresh ones do not suffice, and nowhere else.
        if old:
            assert facts["funnel/kept"] == len(trained) - len(old)
        # A short batch has a reason, and no round is sampled for nothing.
        short = len(trained) < wanted
        assert facts["refill/cap_reached"] == short
        ended = len(asked) == questions or (
            len(log) + per_round * samples > refilled.refill.max_sampled
        )
        assert not short or ended
        if len(world.rounds[step]) > 1:
            last = set(world.rounds[step][-1])
            before = fill(
                [s for s in log if s.question_id not in last],
                carried, refilled, step=step, num_rounds=1,
            )  # fmt: skip
            assert len(before.trained) < wanted

        # Weights: the batch stands for its share of the decided outputs.
        decided = sum(sample.verdict is not OPEN for sample in log)
        total = sum(sequence.weight for sequence in one.sequences)
        if not carried and trained:
            assert total == pytest.approx(facts["funnel/kept"] / decided, rel=1e-5)
        assert total <= 1 + 1e-5
        carried = one.state.surplus
